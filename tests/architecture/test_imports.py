"""Who may import whom, and what a light command must not load: the layers of docs/architecture.md."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Needed though no source file names them: what needs them, and how.
INDIRECT: dict[str, str] = {}
HEAVY = ("torch", "transformers", "accelerate", "peft", "datasets")


def absolute_imports(tree: ast.Module) -> Iterator[str]:
    """The first part of every absolute import, lazy ones included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.fixture(scope="module")
def imported(sources: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Distribution -> the source files that import it (the standard library and contrl left out)."""
    distributions = packages_distributions()
    users: dict[str, set[str]] = {}
    for path, tree in sources.items():
        for name in set(absolute_imports(tree)) - {"contrl"} - sys.stdlib_module_names:
            for distribution in distributions.get(name, [name]):
                users.setdefault(canonicalize_name(distribution), set()).add(path)
    return users


def test_every_imported_package_is_declared(imported: dict[str, set[str]], pyproject: dict[str, Any]) -> None:
    extras = [line for some in pyproject["project"]["optional-dependencies"].values() for line in some]
    known = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"] + extras}
    undeclared = {name: sorted(users) for name, users in imported.items() if name not in known}
    assert not undeclared


def test_every_package_the_tests_import_is_installed_with_them(root: Path, pyproject: dict[str, Any]) -> None:
    """The scripts that record golden values run a peer, by hand: they use the group bench and are left out."""
    files = [file for file in sorted((root / "tests").rglob("*.py")) if not file.name.startswith("record_")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    own = {"contrl", "tests", *(file.stem for file in files)}
    names = {name for tree in trees for name in absolute_imports(tree)} - own - sys.stdlib_module_names
    distributions = packages_distributions()
    used = {canonicalize_name(some) for name in names for some in distributions.get(name, [name])}
    lines = pyproject["project"]["dependencies"] + pyproject["dependency-groups"]["dev"]
    assert used - {canonicalize_name(Requirement(line).name) for line in lines} == set()


def test_every_declared_dependency_is_imported(imported: dict[str, set[str]], pyproject: dict[str, Any]) -> None:
    direct = {canonicalize_name(Requirement(line).name) for line in pyproject["project"]["dependencies"]}
    assert direct - set(imported) == set(INDIRECT)


# --- the contracts of pyproject.toml -----------------------------------------------------------------


def lint_imports(folder: Path, source: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter with the pyproject.toml in ``folder`` on the package under ``source``."""
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", script, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(source), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_contracts_are_kept(root: Path) -> None:
    outcome = lint_imports(root, root / "src")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.parametrize(
    ("path", "line", "contract"),
    [
        ("losses/wrong.py", "import transformers", "Losses are arithmetic"),
        ("methods/wrong.py", "import contrl.engine", "layers below it"),
        ("methods/wrong.py", "import contrl.strategies", "layers below it"),
        ("continual/wrong.py", "import contrl.methods", "Only experiment.py chooses"),
        ("report/wrong.py", "import torch", "The report reads run folders"),
        ("config/wrong.py", "import transformers", "Light modules"),
        ("utils/__init__.py", "", "layers below it"),
    ],
)
def test_a_wrong_import_breaks_its_contract(root: Path, tmp_path: Path, path: str, line: str, contract: str) -> None:
    shutil.copy(root / "pyproject.toml", tmp_path)
    shutil.copytree(root / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "src" / "contrl" / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(line, encoding="utf-8")
    outcome = lint_imports(tmp_path, tmp_path / "src")
    assert outcome.returncode != 0
    broken = re.findall(r"^(.*) BROKEN", outcome.stdout, flags=re.MULTILINE)
    assert any(contract in name for name in broken), outcome.stdout + outcome.stderr


# --- what is loaded at run time (a contract sees imports, not what an imported package drags in) -------


@pytest.mark.parametrize(
    "module",
    [
        "contrl",
        "contrl.errors",
        "contrl.config",
        "contrl.cli.main",
        "contrl.rewards.countdown",
        "contrl.data.countdown",
    ],
)
def test_a_light_module_loads_nothing_heavy(root: Path, module: str) -> None:
    assert heavy_modules_after(root, module) == []


def test_the_report_loads_no_torch(root: Path) -> None:
    assert "torch" not in heavy_modules_after(root, "contrl.report")


def heavy_modules_after(root: Path, module: str) -> list[str]:
    """Import a module in a fresh interpreter: which heavy packages are loaded then?"""
    script = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    loaded = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return loaded.stdout.split()
