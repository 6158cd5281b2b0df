"""The repository as data: what the architecture tests read, parsed once."""

from __future__ import annotations

import ast
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_FOLDER = ROOT / "src" / "contrl"


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def pyproject() -> dict[str, Any]:
    """pyproject.toml, parsed."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def sources() -> dict[str, ast.Module]:
    """Path inside the package ("engine/trainer.py") -> syntax tree, for every source file."""
    files = sorted(SOURCE_FOLDER.rglob("*.py"))
    assert files, f"no source files under {SOURCE_FOLDER}"
    return {
        file.relative_to(SOURCE_FOLDER).as_posix(): ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
        for file in files
    }


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    """Path inside the repository -> text, for every text file that git tracks or would track.

    Without git (an unpacked archive) every file outside hidden folders counts.
    """
    return {name: text for name in _file_names() if (text := _text_of(ROOT / name)) is not None}


def _file_names() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
        return sorted(
            path.as_posix() for path in found if not any(part.startswith((".", "__py")) for part in path.parts[:-1])
        )
    return sorted(name for name in listing.split("\0") if name)


def _text_of(path: Path) -> str | None:
    """The file's text; None for a binary file or one deleted since git listed it."""
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, FileNotFoundError):
        return None
