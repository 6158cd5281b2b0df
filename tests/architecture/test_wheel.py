"""The wheel alone is enough: built, installed outside the clone, used from there, with its templates and configs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import contrl

pytestmark = pytest.mark.slow


def run(command: list[str | Path], folder: Path) -> str:
    """Run a command outside the clone, as a user's shell would: no PYTHONPATH, no colours."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"NO_COLOR": "1"}
    outcome = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built with the back end that is installed: no network."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, root], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with only this wheel; third-party packages are borrowed from the running one by path.

    Packages on a path of a .pth file are found after the environment's own, and .pth files *inside* that path are not
    read, so an editable install of the clone stays invisible.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)), encoding="utf-8")
    return folder


def test_the_wheel_holds_the_whole_package(wheel: Path, root: Path) -> None:
    source = root / "src"
    files = (path for path in (source / "contrl").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(source).as_posix() for path in files}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert any(name.startswith("contrl/configs/") and name.endswith(".yaml") for name in packed)
    assert any(name.startswith("contrl/report/templates/") and name.endswith(".j2") for name in packed)
    assert "contrl/py.typed" in packed


def test_the_installed_command_answers_from_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    where = run([installed / "bin" / "python", "-c", "import contrl; print(contrl.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    assert run([installed / "bin" / "contrl", "--version"], tmp_path).split()[-1] == contrl.__version__
    assert "demo" in run([installed / "bin" / "contrl", "--help"], tmp_path)


def test_the_shipped_demo_is_found_from_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(run([installed / "bin" / "contrl", "demo", "--print_config"], tmp_path))
    assert config["tasks"]
    assert config["method"]["name"] == "rloo"
