"""The page beside saved weights: what they are, what they were trained on and how; the README.md hubs show.

Written from facts alone, so it needs no network and can be written again from a run folder.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from contrl import __version__
from contrl.models.folders import is_hub_id

_SECTIONS = ("base", "data", "method", "strategy", "sequence")
_FILES = {".json", ".jsonl", ".csv", ".parquet", ".arrow", ".gz", ".txt"}
_HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets")


def write_card(folder: Path, facts: Mapping[str, Any]) -> Path:
    """Write ``README.md`` into a model folder.

    Args:
        folder: holds the weights.
        facts: any of ``title``, ``base`` (name of the base model), ``data`` (names of data sets), ``method``,
            ``strategy``, ``sequence`` (text, a list, or a mapping of settings), ``matrix`` (``{"columns": [...],
            "rows": [[name, value or None, ...]], "metric": text}``), ``command`` (text or the list of arguments),
            ``tags``, ``language`` and ``license``. What is not given is left out.

    Returns:
        The file.
    """
    path = folder / "README.md"
    path.write_text(card(facts), encoding="utf-8")
    return path


def card(facts: Mapping[str, Any]) -> str:
    """The page's text; see ``write_card``."""
    title = str(facts.get("title") or "Model")
    parts = [f"---\n{_front_matter(facts)}---", f"# {title}"]
    parts += [f"## {name.capitalize()}\n\n{_body(facts[name])}" for name in _SECTIONS if facts.get(name)]
    if facts.get("matrix"):
        parts.append(f"## Results\n\n{_table(facts['matrix'])}")
    if facts.get("command"):
        command = facts["command"]
        line = command if isinstance(command, str) else " ".join(map(str, command))
        parts.append(f"## Command\n\n```\n{line}\n```")
    parts.append(f"## Versions\n\n{_body(versions())}")
    return "\n\n".join(parts) + "\n"


def versions() -> dict[str, str]:
    """The versions of what a model is trained with."""
    found = {"contrl": __version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _front_matter(facts: Mapping[str, Any]) -> str:
    tags = ["contrl", *_names(facts.get("method")), *facts.get("tags", ())]
    head: dict[str, Any] = {"library_name": str(facts.get("library_name") or "transformers")}
    # A hub refuses a card whose base or data sets are no names on it; a path of one machine says nothing elsewhere.
    base = [_HUB_NAMES.get(name, name) for name in _names(facts.get("base")) if name != "tiny" and _is_public(name)]
    head |= {"base_model": base[0]} if base else {}
    data = [name for name in _names(facts.get("data")) if _is_public(name)]
    head |= {"datasets": data} if data else {}
    head |= {"tags": list(dict.fromkeys(tags))}
    head |= {name: facts[name] for name in ("language", "license") if facts.get(name)}
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _is_public(name: str) -> bool:
    return is_hub_id(name) and not Path(name).exists() and Path(name).suffix not in _FILES


def _names(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [str(value["name"])] if "name" in value else []
    if isinstance(value, str):
        return [value]
    return [str(item) for item in value] if isinstance(value, Sequence) else []


def _body(value: Any) -> str:
    if isinstance(value, Mapping):
        return "\n".join(f"- {name}: {item}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\n".join(f"{number}. {item}" for number, item in enumerate(value, start=1))
    return str(value)


def _table(matrix: Mapping[str, Any]) -> str:
    columns = ["after", *(str(name).replace("|", "\\|") for name in matrix["columns"])]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in matrix["rows"]:
        cells = [
            "–" if cell is None else cell.replace("|", "\\|") if isinstance(cell, str) else f"{cell:.3f}"
            for cell in row
        ]
        lines.append(f"| {' | '.join(cells)} |")
    caption = f"{matrix['metric']}: each task after each stage.\n\n" if matrix.get("metric") else ""
    return caption + "\n".join(lines)
