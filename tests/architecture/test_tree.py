"""What no file may hold: names that say nothing, traces of one machine, secrets, executed text, guessed encodings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}

# Written with a bracketed letter each, so that this file does not match itself.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$}/-])/(?:roo[t]|op[t]|wor[k]|tm[p]|mn[t]|hom[e]/\w+|User[s]/\w+)(?:/\w|\b(?=[\s'\"`]))"
)
REGISTRY_HOST = re.compile(
    r"pyp[i]\.org|pythonhoste[d]\.org|anaconda\.or[g]|(?:index-ur[l]|find-link[s])[= ]|file:/[/]"
)
# The one address a reader may have to type: where torch's CPU builds are.
TORCH_INDEX = re.compile(r"https://download\.pytorch\.org/whl/cpu")
TORCH_HOST = re.compile(r"download\.pytorc[h]\.org")
SECRET = re.compile(r"\b(?:nvapi-[\w-]{20,}|hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|ghp_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})\b")


def matches(texts: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    """ "file:line: what matched" for every match."""
    return [
        f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in texts.items()
        for match in pattern.finditer(text)
    ]


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call of something that has a name, with that name as written: "torch.load", "open"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func), node


def test_names_say_something(texts: dict[str, str]) -> None:
    named = {
        part.removesuffix(".py") for path in texts if path.startswith(("src/", "tests/")) for part in path.split("/")
    }
    assert not {name for name in named if name.removeprefix("test_") in EMPTY_NAMES}


def test_every_module_opens_with_its_job(sources: dict[str, ast.Module]) -> None:
    assert [path for path, tree in sources.items() if not (ast.get_docstring(tree) or "").strip()] == []


def test_no_file_knows_a_machine(texts: dict[str, str]) -> None:
    assert matches(texts, MACHINE_PATH) == []


def test_no_file_names_a_package_registry(texts: dict[str, str]) -> None:
    """Where packages come from is pip's setting, not ours; the page that explains it may name torch's CPU index."""
    assert matches(texts, REGISTRY_HOST) == []
    pages = {path: TORCH_INDEX.sub("", text) if path.endswith(".md") else text for path, text in texts.items()}
    assert matches(pages, TORCH_HOST) == []


def test_no_file_holds_a_secret(texts: dict[str, str]) -> None:
    assert matches(texts, SECRET) == []


def test_the_patterns_find_what_they_seek() -> None:
    slash = "/"
    planted = {"a": f"x\nopen('{slash}root/x')", "b": f"see {slash}home/ada/runs", "c": f"../{'tmp'}/x and a/{'opt'}/b"}
    assert [found.partition(":")[0] for found in matches(planted, MACHINE_PATH)] == ["a", "b"]
    assert matches({"d": "key = 'hf_" + "a" * 24 + "'"}, SECRET) == ["d:1: hf_" + "a" * 24]
    assert len(matches({"e": "https://pypi" + ".org/simple"}, REGISTRY_HOST)) == 1


def test_text_is_never_executed(sources: dict[str, ast.Module]) -> None:
    """No eval, exec or pickle anywhere; torch.load only as weights."""
    forbidden = {"eval", "exec", "compile", "pickle.load", "pickle.loads"}
    for path, tree in sources.items():
        for name, call in calls(tree):
            assert name not in forbidden, f"{path}:{call.lineno} calls {name}"
            if name == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("weights_only") == "True", f"{path}:{call.lineno} loads more than weights"


def test_every_text_file_is_opened_as_utf_8(sources: dict[str, ast.Module]) -> None:
    """Reading or writing text names its encoding; binary modes and file descriptors have none."""
    for path, tree in sources.items():
        for name, call in calls(tree):
            method = name.rpartition(".")[2]
            if method not in ("open", "read_text", "write_text", "fdopen") or name in ("os.open", "webbrowser.open"):
                continue
            literals = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant)]
            binary = any(isinstance(text, str) and re.fullmatch(r"[rwax]\+?b\+?|[rwax]b\+?", text) for text in literals)
            named = any(keyword.arg in ("encoding", None) for keyword in call.keywords)
            assert binary or named, f"{path}:{call.lineno} {method} without encoding"
