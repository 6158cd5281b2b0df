"""The packaging files say one thing: requirements, constraints, groups, versions and their documentation agree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import contrl


def lines_of(path: Path) -> list[str]:
    """The lines of a requirements-style file, without comments and blank lines."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, Version]:
    """constraints.txt: canonical name -> the one version it admits."""
    pins: dict[str, Version] = {}
    for line in lines_of(root / "constraints.txt"):
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", f"constraints.txt pins exact versions, not {line!r}"
        pins[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pins


def declared(pyproject: dict[str, Any]) -> list[Requirement]:
    """Every requirement of pyproject.toml: run time, extras, dependency groups."""
    extras = pyproject["project"].get("optional-dependencies", {}).values()
    groups = pyproject["dependency-groups"].values()
    return [Requirement(line) for some in (pyproject["project"]["dependencies"], *extras, *groups) for line in some]


def test_requirements_txt_equals_the_run_time_dependencies(root: Path, pyproject: dict[str, Any]) -> None:
    assert lines_of(root / "requirements.txt") == pyproject["project"]["dependencies"]


def test_every_declared_requirement_is_pinned_to_a_version_it_admits(
    pyproject: dict[str, Any], pins: dict[str, Version]
) -> None:
    for requirement in declared(pyproject):
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(pin), f"{requirement} does not admit the tested version {pin}"


def test_torch_and_the_peer_are_the_named_versions(pins: dict[str, Version]) -> None:
    assert (str(pins["torch"]), str(pins["trl"])) == ("2.13.0", "1.16.0")


def test_direct_dependencies_have_a_lower_bound(pyproject: dict[str, Any]) -> None:
    for line in pyproject["project"]["dependencies"]:
        assert any(specifier.operator == ">=" for specifier in Requirement(line).specifier), line


def test_environment_yml_installs_the_tested_versions_on_the_oldest_python(
    root: Path, pyproject: dict[str, Any]
) -> None:
    dependencies = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    oldest = pyproject["project"]["requires-python"].removeprefix(">=")
    assert f"python={oldest}" in dependencies
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-r requirements.txt", "-e ."]


def test_one_version_number_everywhere(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[(.+?)\]", (root / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest is not None
    assert (citation["version"], newest[1]) == (contrl.__version__, contrl.__version__)


def test_every_dependency_has_its_reason_on_paper(root: Path, pyproject: dict[str, Any]) -> None:
    page = (root / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for requirement in declared(pyproject):
        assert f"`{requirement.name}`" in page, f"docs/dependencies.md does not say why {requirement.name} is needed"


def test_the_dpo_experiments_group_keeps_the_name_their_readme_uses(pyproject: dict[str, Any]) -> None:
    assert {"dev", "bench", "benchmarks.dpo"} <= set(pyproject["dependency-groups"])
