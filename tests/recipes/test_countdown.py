"""Continual Countdown: a valid compose file, whose services' commands run in a shell and leave the origin's artefacts.

No Docker engine is needed: paths of the container are put where its mounts would have them, and variables are
interpolated as Compose does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from contrl.config import RunConfig, load
from contrl.experiment import find
from tests import runs as small
from tests.runs import ROOT, environment, events, sha

world = small.world

RECIPE = ROOT / "recipes" / "countdown"
GROUPS = ("plus", "plus_minus", "plus_minus_mul", "plus_minus_mul_div")
SERVICES = ("data-generator", "continual-trainer-0.5b", "continual-trainer-1.5b", "evaluator")
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
FEW = "--train_size 4 --test_size 1 --num_operands 3 --max_number 20 --target_range 5 50 --template compact"
SCALED = (
    "rounds=2 prompts_per_step=2 method.num_minibatches=2 method.max_new_tokens=4 training.max_steps=2 "
    "training.logging_steps=2 training.report_to=none training.learning_rate=1e-3 tokens_per_pass=512"
)


def interpolated(text: str, host: Mapping[str, str]) -> str:
    """``${NAME:-default}`` as Compose reads it: the host's value unless that is empty."""
    return VARIABLE.sub(lambda match: host.get(match[1]) or match[2], text)


def compose(host: Mapping[str, str]) -> dict[str, Any]:
    """The compose file, with the variables of a host."""
    text = (RECIPE / "docker-compose.yml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(interpolated(text, host))
    return loaded


class Host:
    """A folder that looks like the container's ``/app`` with its mounts; commands run in it as in a shell."""

    def __init__(self, folder: Path) -> None:
        self.app, self.cache = folder / "app", folder
        shutil.copytree(RECIPE, self.app, ignore=shutil.ignore_patterns("__pycache__"))

    def there(self, text: str) -> str:
        """Container paths as they are here."""
        volumes = (*compose({})["services"]["evaluator"]["volumes"], ".:/app")
        mounts = {container: host for host, container in (volume.split(":") for volume in volumes)}
        found = "|".join(map(re.escape, sorted(mounts, key=len, reverse=True)))
        return re.sub(found, lambda match: os.path.normpath(self.app / mounts[match[0]]), text)

    def service(self, name: str, more: str = "", **host: str) -> subprocess.CompletedProcess[str]:
        """The command of a service, with further words, under the service's environment."""
        found = compose(host)["services"][name]
        given = {key: self.there(str(value)) for key, value in found.get("environment", {}).items() if value}
        return self.shell(f"{self.there(found['command'])} {more}", **given)

    def shell(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        full = environment(self.cache, PATH=path, **variables)
        return subprocess.run(
            ["bash", "-c", command], cwd=self.app, env=full, capture_output=True, text=True, check=False
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


# --- the compose file ---------------------------------------------------------------------------------


def test_the_compose_file_keeps_the_compose_schema() -> None:
    schema = json.loads((ROOT / "tests" / "fixtures" / "compose-spec.json").read_text(encoding="utf-8"))
    check = jsonschema.Draft202012Validator(schema)
    check.check_schema(schema)
    assert list(check.iter_errors(compose({}))) == []
    wrong = compose({})
    wrong["services"]["evaluator"] |= {"comand": "bash"}
    assert len(list(check.iter_errors(wrong))) > 0


def test_services_volumes_and_variables_are_the_origins() -> None:
    services = compose({})["services"]
    assert tuple(services) == SERVICES
    mounts = {"./data:/data/countdown", *(f"./{n}:/app/{n}" for n in ("wandb", "logs", "metrics", "plots", "models"))}
    assert all(set(service["volumes"]) == mounts for service in services.values())
    for size, folder in (("0.5b", "/app/models/qwen"), ("1.5b", "/app/models/qwen1.5b")):
        found = services[f"continual-trainer-{size}"]["environment"]
        assert found["BASE_MODEL"] == folder
        assert (found["N_GPUS"], found["NVIDIA_VISIBLE_DEVICES"], found["ROLLOUT_TP_SIZE"]) == (4, "all", 1)
    image = (RECIPE / "Dockerfile").read_text(encoding="utf-8")
    assert "FROM nvidia/cuda:12.1.0-devel-ubuntu22.04" in image
    assert image.rstrip().splitlines()[-2:] == ["USER zero", "WORKDIR /app"]
    assert "--name zero" in image
    assert not re.search(r"passw(or)?d[ =:]|chpasswd|777", image)


@pytest.mark.parametrize(
    ("size", "batch", "mini", "micro"), [("0.5b", 256, 16, 8), ("1.5b", 128, 8, 4)], ids=["0.5b", "1.5b"]
)
def test_the_configurations_have_the_origins_settings(
    size: str, batch: int, mini: int, micro: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in GROUPS:
        (tmp_path / "data" / "continual" / group).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config: RunConfig = load(RECIPE / f"train_{size}.yaml", resolve=find).config
    fields = config.method.fields
    assert config.method.name == "ppo"
    assert config.prompts_per_step == mini
    assert mini * fields["num_minibatches"] == batch
    assert config.tokens_per_pass == micro * (config.max_prompt_tokens + fields["max_new_tokens"])
    assert config.training["logging_steps"] == fields["num_minibatches"]
    assert [task.name for task in config.tasks] == list(GROUPS)
    assert (config.rounds, config.training["num_train_epochs"]) == (3, 15)
    assert Path(config.output_dir).name == f"countdown_continual{'' if size == '0.5b' else '_1.5b'}"


# --- the scripts --------------------------------------------------------------------------------------


def test_tensor_parallel_sampling_is_refused_with_the_reason(host: Host) -> None:
    for name in ("continual-trainer-0.5b", "continual-trainer-1.5b"):
        ended = host.service(name, ROLLOUT_TP_SIZE="2")
        assert ended.returncode == 2
        assert "ROLLOUT_TP_SIZE=2 cannot be had" in ended.stderr
        assert "samples in the training processes" in ended.stderr
    assert "N_GPUS=four is no number" in host.service("continual-trainer-0.5b", N_GPUS="four").stderr


def test_several_gpus_are_started_by_torchrun(host: Host) -> None:
    """A stand-in for Python tells the words that it was started with."""
    python = host.cache / "say"
    python.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    script = "./scripts/train_continual_countdown.sh seed=7"
    given = {"PYTHON": str(python), "BASE_MODEL": "org/model", "OVERRIDES": "rounds=1 training.max_steps=5"}
    words = host.shell(script, N_GPUS="4", **given).stdout.split("\n")
    assert words[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "4"]
    assert words[5:10] == ["-m", "contrl", "run", "train_0.5b.yaml", "model=org/model"]
    assert "tasks.plus_minus.data=data/continual/plus_minus" in words
    assert words[-4:-1] == ["rounds=1", "training.max_steps=5", "seed=7"]
    assert host.shell(script, N_GPUS="1", **given).stdout.split("\n")[:3] == ["-m", "contrl", "run"]
    missing = host.shell(script, PYTHON=str(python))
    assert missing.returncode == 2
    assert "there is no model at" in missing.stderr


def test_the_evaluator_says_what_is_not_there(host: Host) -> None:
    nothing = host.service("evaluator")
    assert nothing.returncode == 2
    assert "no model is trained" in nothing.stderr
    assert "use 0.5b or 1.5b" in host.service("evaluator", "--model-size 3b").stderr
    assert "--model_size is unknown" in host.service("evaluator", "--model_size 0.5b").stderr
    assert "--logs-dir needs a value" in host.service("evaluator", "--logs-dir").stderr


@pytest.mark.slow
def test_every_service_runs_as_a_plain_command(host: Host, world: Path) -> None:
    """Data, both sizes (here of one tiny model) through four groups and two rounds, and the artefacts."""
    made = host.service("data-generator", FEW)
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in (host.app / "data" / "continual").iterdir()) == sorted(GROUPS)
    for size, model, run in (("0.5b", "qwen", "countdown_continual"), ("1.5b", "qwen1.5b", "countdown_continual_1.5b")):
        shutil.copytree(world / "model", host.app / "models" / model)
        trained = host.service(f"continual-trainer-{size}", N_GPUS="1", OVERRIDES=SCALED)
        assert trained.returncode == 0, trained.stderr
        assert [line["stage"] for line in events(host.app / "models" / run, "saved")] == list(range(1, 9))
    evaluated = host.service("evaluator")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = host.app / "metrics"
    for own, log, size in (("", "", "0.5b"), ("_1.5b", "1.5B", "1.5b")):
        before = sha(host.app / "models" / f"qwen{size.removeprefix('0.5b')}" / "model.safetensors")
        for r in (1, 2):
            for group in GROUPS:
                initial, final = (metrics / f"{state}_{r}_{group}{own}" for state in ("initial", "final"))
                assert sha(initial / "model.safetensors") == before
                before = sha(final / "model.safetensors")
                assert sha(initial / "model.safetensors") != before
                lines = (host.app / "logs" / f"ContinualCountdown{log}_R{r}_{group}.log").read_text().splitlines()
                assert re.fullmatch(
                    r"step:2 - success_rate:\S+ - loss:\S+ - grad_norm:\S+ - response_length:4", lines[0]
                )
        steps = json.loads((metrics / f"consolidated_metrics_{size}.json").read_text(encoding="utf-8"))
        assert [(step["round"], step["group"]) for step in steps] == [(r, g) for r in (1, 2) for g in GROUPS]
        assert all(step["weight_change"] > 0 for step in steps)
        assert (host.app / "plots" / f"training_metrics_{size}.png").stat().st_size > 10_000
