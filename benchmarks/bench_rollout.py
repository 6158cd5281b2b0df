"""Sampling 8 prompts x 8 completions of at most 64 tokens: contrl's decode loop beside transformers and TRL.

Same weights, prompts, temperature and end token, float32. ``generate`` prefills each prompt once per sample and decodes
every row until the last one ends; contrl prefills a prompt once and drops finished rows. What that is worth depends on
how early answers end: so one set of prompts has short answers, one has mixed ones, and one run disables the end token.
On a GPU where there is one. Every answer is fetched from the device, so the clock stops after the last token.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import side_by_side
from side_by_side import Options, Run, alternate, cpu_ratio, median, ratio, spread, table

SAMPLES, LIMIT = 8, 64

SHORT = (
    ("What is the capital of Portugal?", "Lisbon", "What is the capital of Austria?", "Vienna", "And of Norway?"),
    ("12 + 5", "17", "8 - 3", "5", "9 + 6"),
    ("Opposite of tall?", "short", "Opposite of early?", "late", "Opposite of heavy?", "light", "Opposite of noisy?"),
    ("Merci beaucoup", "French", "Guten Morgen", "German", "Dove si trova la stazione?"),
    ("Is 14 even?", "yes", "Is 9 even?", "no", "Is 27 even?"),
    (
        "Positive or negative? 'The kettle boils quickly and looks good on the counter.'",
        "positive",
        "Positive or negative? 'After two weeks the lid no longer closed and the water tasted of plastic.'",
        "negative",
        "Positive or negative? 'The shop sent a new one at once, and my mother uses it every day.'",
    ),
    ("Name the animal: 'The cat sleeps on the mat.'", "cat", "Name the animal: 'Two horses stood by the gate.'"),
    (
        "I will read you a note and ask short questions about it. 'The old mill stood at the bend of the stream, half "
        "a mile below the village. Until the spring floods broke its wheel, it had ground the grain of eleven farms. "
        "Afterwards the miller's son used the building to dry apples.' How many farms?",
        "eleven",
        "What broke the wheel?",
        "spring floods",
        "Which fruit?",
    ),
)
"""Questions after examples of answers in one word, as rewards that compare answers ask them. Turns alternate."""

MIXED = (
    ("What is the capital of Norway? Answer with one word.",),
    ("Is the sentence 'The train was late again' a complaint? Answer yes or no, and nothing else.",),
    ("A shelf has 4 boards and 9 books stand on each board. Anna takes 7 books home. How many books are left?",),
    ("Write one short sentence that uses the words river, lantern and patient.",),
    (
        "Tidy up this note and give back only the corrected text: 'meeting moved to thursday 3 pm, room are "
        "the same, pleas bring the printed figures and tell marta that she does not have to come'",
    ),
    (
        "Here is a review: 'The kettle boils quickly and looks good on the counter, but after two weeks the "
        "lid no longer closes and the water tastes of plastic. The shop offered a refund without any "
        "questions.' Name the one defect that you would tell the manufacturer about first.",
    ),
    ("Explain in simple terms why the sky is blue during the day and red in the evening.",),
    (
        "Read the passage and answer the question. 'The old mill stood at the bend of the stream, half a mile"
        " below the village. Until the spring floods broke its wheel, it had ground the grain of eleven "
        "farms. Afterwards the miller's son used the building to dry apples, and the farmers carried their "
        "grain to the town, a day's journey by cart. It took six years until a new wheel was built, and by "
        "then only four of the farms still grew grain.' Question: how many farms stopped growing grain before"
        " the new wheel was built?",
    ),
)
"""Short and long answers; several fill the 64 tokens nearly always."""

Lengths = list[int]
"""Tokens of each of the 64 completions, the end token included."""


def messages(turns: Sequence[str]) -> list[dict[str, str]]:
    """Turns of user and assistant in alternation; the last is the user's."""
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]


@dataclass
class Prompts:
    """A set of prompts as the samplers want them: ids for contrl, left-padded tensors for transformers."""

    conversations: Sequence[Sequence[str]]
    model: Any
    tokenizer: Any

    def __post_init__(self) -> None:
        import torch

        from contrl.data.chat import encode_prompt

        self.ids = [encode_prompt(messages(turns), self.tokenizer) for turns in self.conversations]
        width = max(len(ids) for ids in self.ids)
        device = self.model.device
        self.padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in self.ids], device=device)
        self.seen = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in self.ids], device=device)
        self.end = int(self.model.generation_config.eos_token_id)

    def contrl(self, seed: int, *, ends: bool = True) -> Lengths:
        """contrl's decode loop; it keeps the log-probability of every token."""
        from contrl.rollout.sampler import Noise, Sampling, generate

        named = [(str(number), ids) for number, ids in enumerate(self.ids)]
        end_ids = [self.end] if ends else []
        sampled = generate(self.model, named, Sampling(LIMIT, SAMPLES), Noise((seed,)), end_ids)
        return [len(completion.ids) for group in sampled for completion in group]

    def transformers(self, seed: int, *, ends: bool = True) -> Lengths:
        """``generate`` with all rows in one call; the distribution is the plain softmax."""
        import torch

        torch.manual_seed(seed)
        with torch.no_grad():
            out = self.model.generate(
                input_ids=self.padded,
                attention_mask=self.seen,
                max_new_tokens=LIMIT,
                min_new_tokens=None if ends else LIMIT,
                num_return_sequences=SAMPLES,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
            )
        return [self._length(row) for row in out[:, self.padded.shape[1] :].tolist()]

    def _length(self, row: list[int]) -> int:
        return row.index(self.end) + 1 if self.end in row else len(row)


def peer(prompts: Prompts, folder: str) -> Callable[[int], Lengths]:
    """TRL's rollout: its call of ``generate``, and the forward that computes the log-probabilities of the samples."""
    import torch
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    rows = [{"prompt": messages(turns)} for turns in prompts.conversations]
    config = RLOOConfig(
        output_dir=folder,
        per_device_train_batch_size=len(rows) * SAMPLES,
        num_generations=SAMPLES,
        max_completion_length=LIMIT,
        temperature=1.0,
        beta=0.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=prompts.model.device.type == "cpu",
        report_to=[],
    )
    trainer = RLOOTrainer(
        model=copy.deepcopy(prompts.model),  # it replaces the model's forward
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=prompts.tokenizer,
    )
    inputs = [row for row in rows for _ in range(SAMPLES)]

    def rollout(seed: int) -> Lengths:
        torch.manual_seed(seed)
        return trainer._generate_and_score_completions(inputs)["completion_mask"].sum(1).tolist()

    return rollout


def summary(prompts: str, name: str, runs: Sequence[Run], reference: Sequence[Run]) -> list[object]:
    """One row of the table; ``reference`` are the runs of transformers on the same prompts."""
    lengths = [length for run in runs for length in run.value]
    error = statistics.stdev(lengths) / len(lengths) ** 0.5
    tokens = statistics.median(sum(run.value) / run.seconds for run in runs)
    cut = sum(length == LIMIT for length in lengths) / len(lengths)
    return [
        prompts,
        name,
        f"{statistics.mean(lengths):.1f} ± {error:.1f}",
        f"{cut:.0%}",
        median(runs),
        spread(runs),
        tokens,
        ratio(runs, reference),
        cpu_ratio(runs, reference),
    ]


def measure(options: Options) -> tuple[list[list[object]], dict[str, Any]]:
    """Run all variants in alternation; returns the table's rows and the raw numbers."""
    import torch

    model, tokenizer = side_by_side.smollm2(options.threads)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    short, mixed = Prompts(SHORT, model, tokenizer), Prompts(MIXED, model, tokenizer)
    variants: dict[str, Callable[[int], Lengths]] = {
        "short answers / contrl": short.contrl,
        "short answers / transformers": short.transformers,
        "mixed answers / contrl": mixed.contrl,
        "mixed answers / transformers": mixed.transformers,
        "always 64 tokens / contrl": lambda seed: mixed.contrl(seed, ends=False),
        "always 64 tokens / transformers": lambda seed: mixed.transformers(seed, ends=False),
    }
    with tempfile.TemporaryDirectory() as folder:
        if side_by_side.has_peer():
            variants["mixed answers / TRL rollout"] = peer(mixed, folder)
        mixed.model(input_ids=mixed.padded)  # the first call of a process is slow
        runs = alternate(variants, options.repeats)
    rows = []
    for variant, made in runs.items():
        prompts, name = variant.split(" / ")
        rows.append(summary(prompts, name, made, runs[f"{prompts} / transformers"]))
    rows.sort(key=lambda row: ("short answers", "mixed answers", "always 64 tokens").index(str(row[0])))
    numbers = {
        variant: [{"lengths": r.value, "seconds": r.seconds, "cpu_seconds": r.cpu_seconds} for r in made]
        for variant, made in runs.items()
    }
    return rows, numbers


def main() -> None:
    """Measure and print."""
    options = side_by_side.read_options(__doc__.splitlines()[0])
    rows, numbers = measure(options)
    header = ["prompts", "sampler", "mean length", "cut at 64", "median s", "s", "tokens/s", "ratio", "ratio (CPU s)"]
    title = (
        "Rollout of 8 prompts x 8 samples x at most 64 tokens, SmolLM2-135M, float32; ratio: times as fast as generate"
    )
    side_by_side.report(title, table(header, rows), options, numbers)


if __name__ == "__main__":
    main()
