"""Facts of rows: lengths, cuts, repeats, and what train and held-out rows share."""

from contrl.continual.row_facts import describe_rows
from contrl.interfaces import Completion, Group


def group(prompt: int, *completions: int, ended: bool = True, shift: int = 0) -> Group:
    """A group whose prompt and completions have these lengths."""
    answers = [Completion(ids=[shift] * length, ended=ended) for length in completions]
    return Group(task="a", row_id=str(prompt), prompt_ids=[shift] * prompt, completions=answers)


def test_lengths_cuts_and_repeats():
    """Prompts of 1..11 tokens: p10 is the second shortest, p90 the second longest."""
    groups = [group(n, 2 * n, 3) for n in range(1, 12)]
    facts = describe_rows([*groups, group(5, 10, 3), group(6, 1, ended=False)], [{}] * 15, [])
    assert facts["tokens"]["prompt"] == {"least": 1, "p10": 2, "median": 6, "p90": 10, "most": 11}
    assert facts["tokens"]["completion"]["most"] == 22
    assert (facts["cut"], facts["left_out"], facts["repeated"], facts["shared"]) == (1, 2, 1, None)


def test_prompts_without_answers_have_one_length():
    facts = describe_rows([group(4), group(4, shift=1)], [{}, {}], [])
    assert facts["tokens"] == {"prompt": {"least": 4, "p10": 4, "median": 4, "p90": 4, "most": 4}}
    assert facts["repeated"] == 0


def test_shared_prompts_are_found_by_content():
    chat = [{"role": "user", "content": "hi"}]
    train = [{"prompt": "1+1=", "id": "a"}, {"prompt": chat, "id": "b"}]
    held_out = [{"prompt": "1+1=", "id": "x"}, {"prompt": [dict(chat[0])], "id": "y"}, {"prompt": "2+2=", "id": "z"}]
    assert describe_rows([], train, held_out)["shared"] == 2
    assert describe_rows([], [{"text": "plain"}], [{"text": "plain"}])["shared"] is None
