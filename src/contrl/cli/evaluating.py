"""Carries an evaluation out: prompts, references, answers of every model, then the judge, then files and a table.

All answers are there before the judge is asked for the first time, so what it will cost is known by then; one model is
in memory at a time. The files are written last and whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from contrl.cli import judges
from contrl.cli.console import quiet_libraries, say
from contrl.cli.eval_table import print_comparison, print_one
from contrl.cli.eval_tracking import track
from contrl.cli.evaluate import REFERENCE, Request
from contrl.continual.records import write_atomic
from contrl.data.sources import fingerprint
from contrl.errors import ConfigErrors, EnvironmentFault, UserError
from contrl.evaluation.answers import Answer, Answers, Generation, shown
from contrl.evaluation.judging import WhoJudges
from contrl.evaluation.lineage import short_name, started_from
from contrl.evaluation.prompts import read_prompts
from contrl.evaluation.win_rate import compare
from contrl.faults import reach
from contrl.interfaces import Row
from contrl.models import embedded
from contrl.models.folders import is_classifier, is_hub_id, weights_folder
from contrl.rollout.choose import Sampling

METRICS_FILE, ROWS_FILE, COMPARISON_FILE = "evaluation_metrics.json", "detailed_results.parquet", "comparison.json"


@dataclass(frozen=True)
class Side:
    """A model, what it is compared with, what it is called, and the folder of its results."""

    model: str
    reference: str
    name: str
    folder: Path


def carry_out(request: Request) -> list[dict[str, Any]]:
    """Evaluate; returns what each evaluation_metrics.json holds, nothing after a dry run.

    Raises:
        UserError: a model, data set, metric or row that cannot be used.
        EnvironmentFault: a hub, a judge or the disk.
    """
    quiet_libraries()
    options = request.options
    sides = _sides(request)
    kept = Path(options.answers_dir) if options.answers_dir else request.output_dir / "answers"
    rows, notes = read_prompts(options.dataset_name, options.num_prompts, options.split, options.dataset_index)
    judge = judges.build(options, request.key, kept)
    judge.check(rows)
    answers = Answers(kept, rows, _generation(options), say)
    for line in notes:
        say(line)
    say(f"prompts: the first {len(rows)} of {options.dataset_name}; judge: {judge.name}")
    _announce(sides, answers, judge, options)
    if options.dry_run:
        return []
    given = {model: answers.of(model) for model in _models(sides)}
    _announce_cost(sides, rows, given, judge)
    found = []
    for side in sides:
        result = compare(rows, given[side.model], given[side.reference], judge, options.seed)
        choices = _choices(side, answers, judge, options)
        _write(side.folder, ROWS_FILE, result.as_parquet())
        reach("saving")
        _write(side.folder, METRICS_FILE, result.as_json(choices))
        found.append({**result.metrics, **choices})
    for line in judges.told(judge):
        say(line)
    _show(sides, found, request.output_dir)
    for side, metrics in zip(sides, found, strict=True):
        track(options, side.folder, options.run_name or f"eval_{side.name}", metrics, say)
    return found


# --- what is compared --------------------------------------------------------------------------------------


def _sides(request: Request) -> list[Side]:
    """Each model with its reference, all mistakes at once."""
    errors: list[UserError] = []
    sides: list[Side] = []
    names: list[str] = []
    for model in request.models:
        name = short_name(model)
        while name in names:
            name += "-2"
        names.append(name)
        folder = request.output_dir / name if len(request.models) > 1 else request.output_dir
        errors += _unusable(model, "--model_path")
        if errors:
            continue
        reference, why = _reference(model, request.reference)
        told = _unusable(reference, "--reference_model")
        errors += told if not any(str(error) == str(known) for error in told for known in errors) else []
        say(f"{name}: {model}\n  against {reference} ({why})")
        sides.append(Side(model, reference, name, folder))
    if errors:
        raise ConfigErrors(errors)
    return sides


def _reference(model: str, given: str | None) -> tuple[str, str]:
    """The reference and why it is that."""
    if given:
        return given, "as given"
    found = started_from(model)
    if found:
        return found, "the model its run started from; --reference_model names another"
    return REFERENCE, "the default where no run.json is; --reference_model names another"


def _unusable(name: str, flag: str) -> list[UserError]:
    """Why a name can be no model that answers; a hub is not asked."""
    try:
        folder = weights_folder(name)
    except UserError as error:
        return [UserError(error.what, where=flag, why=error.why, fix=error.fix)]
    if folder is None:
        if name in embedded.NAMES or is_hub_id(name):
            return []
        return [UserError(f"there is no model {name}", where=flag, fix="a folder, a hub id, tiny or smollm2")]
    if is_classifier(folder):
        fix = "name a language model; a reward model judges: --reward_model"
        return [UserError(f"{name} is a classifier, it answers nothing", where=flag, fix=fix)]
    return []


def _models(sides: Sequence[Side]) -> list[str]:
    """Every model that answers, each once."""
    return list(dict.fromkeys(name for side in sides for name in (side.reference, side.model)))


def _generation(options: Any) -> Generation:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise UserError(f"there is no device {device!r}", fix="cpu, cuda, cuda:1, mps ...") from error
    return Generation(
        Sampling(options.max_new_tokens, 1, options.temperature, options.top_p),
        options.seed,
        options.tokens_per_chunk,
        options.dtype,
        options.trust_remote_code,
        device,
    )


# --- what it costs -----------------------------------------------------------------------------------------


def _announce(sides: Sequence[Side], answers: Answers, judge: WhoJudges, options: Any) -> None:
    """How much is to be generated; before a dry run ends also the most that the judge can cost."""
    rows = answers.rows
    missing = answers.missing(_models(sides))
    due, whole = sum(missing.values()), len(missing) * len(rows)
    say(
        f"generations: {due} of up to {options.max_new_tokens} tokens, so up to {due * options.max_new_tokens} tokens"
        f" ({len(rows)} prompts; different models: {len(missing)}; kept already: {whole - due})"
    )
    if not options.dry_run:
        return
    if judge.cost([], [], []) is None:
        say(f"judge calls: none to others; {whole} answers are scored on this machine")
    elif not due:
        given = {model: answers.of(model) for model in _models(sides)}
        _announce_cost(sides, rows, given, judge)
    else:
        prompts = sum(len(shown(row["prompt"])) for row in rows) // 4 + 1
        # A judge of pairs reads both answers, in both orders; one that scores reads each answer once.
        calls = 2 * len(sides) * len(rows) if options.pairwise else whole
        each = 2 * options.max_new_tokens if options.pairwise else options.max_new_tokens
        tokens = prompts * (calls // len(rows)) + calls * each
        say(f"judge calls: up to {calls}, up to about {tokens} tokens to read")


def _announce_cost(
    sides: Sequence[Side], rows: Sequence[Row], given: dict[str, list[Answer]], judge: WhoJudges
) -> None:
    """What a remote judge still has to be asked, now that the answers are there."""
    costs = [judge.cost(rows, given[side.model], given[side.reference]) for side in sides]
    known = [cost for cost in costs if cost is not None]
    if known:
        most = "up to " if len(sides) > 1 else ""
        calls, tokens = (sum(part) for part in zip(*known, strict=True))
        say(f"judge calls: {most}{calls}, about {tokens} tokens to read; what was answered before is free")


# --- what is left behind -----------------------------------------------------------------------------------


def _choices(side: Side, answers: Answers, judge: WhoJudges, options: Any) -> dict[str, Any]:
    """How the numbers came about; nothing of when, where or in how many attempts."""
    return {
        "model": side.model,
        "model_digest": answers.digest(side.model),
        "reference_model": side.reference,
        "reference_digest": answers.digest(side.reference),
        "dataset_name": options.dataset_name,
        "split": options.split,
        "dataset_digest": fingerprint(answers.rows),
        "judge": judge.name,
        "tie_margin": options.tie_margin,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_new_tokens": options.max_new_tokens,
        "seed": options.seed,
        "interval": "95 %, paired bootstrap over prompts",
    }


def _write(folder: Path, name: str, data: bytes) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, data)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {folder / name}: {error.strerror}", fix="make room or give another --output_dir"
        ) from error


def _show(sides: Sequence[Side], found: Sequence[dict[str, Any]], output_dir: Path) -> None:
    """Tables, and where the files lie."""
    if len(sides) == 1:
        print_one(found[0])
    else:
        listed = [{"name": side.name, **metrics} for side, metrics in zip(sides, found, strict=True)]
        text = json.dumps({"models": listed}, ensure_ascii=False, allow_nan=False, indent=1)
        _write(output_dir, COMPARISON_FILE, f"{text}\n".encode())
        print_comparison(listed)
    for side in sides:
        say(f"{side.folder / METRICS_FILE} and {ROWS_FILE}")
