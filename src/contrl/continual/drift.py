"""How far the policy drifted from the weights it began with, told by answers: KL(first weights || policy).

A few prompts of every task are answered once by the first weights; the answers and their log-probabilities are kept.
After a stage one teacher-forced pass gives the rest: the mean of log p0(y) - log p(y) over y drawn from p0 is that KL,
without bias. On new prompts it predicts forgetting (RL's Razor, arXiv:2509.04259), on old prompts forgetting happens;
both come from these records.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from contrl.continual.estimate import PROBE_TOKENS
from contrl.continual.plan import Plan
from contrl.continual.run_folder import RunFolder
from contrl.data.chat import encode_prompt, template_options
from contrl.data.tokens import prepare_rows
from contrl.engine.batching import overhead, plan_passes, to_batch
from contrl.engine.forward import Routing, score_batch
from contrl.engine.lm_head import LMHead
from contrl.errors import UserError
from contrl.interfaces import Completion, Group, OnlineMethod, Row, Stage, Task
from contrl.models.load import Policy, end_tokens
from contrl.models.modes import evaluating
from contrl.rollout.sampler import Noise, Sampling, generate

STREAM = 0x6B6C
"""Apart from the noise of everything else that is sampled with the run's seed."""


@dataclass
class Drift:
    """The probe answers of a run's tasks, and the policy's KL on them. Each rank has its share of the prompts."""

    plan: Plan
    folder: RunFolder
    policy: Policy
    rank: int = 0
    world_size: int = 1
    probes: dict[str, list[Group]] = field(default_factory=dict)

    @property
    def measures(self) -> bool:
        """Whether there is a KL to measure: a classifier has none, and a decode loop must be able to sample."""
        model, plan = self.policy.model, self.plan
        method = plan.method_for(plan.sequence.stages[0])
        adapters: dict[str, Any] = getattr(model, "peft_config", None) or {}
        samples = not any(adapter.is_prompt_learning for adapter in adapters.values())
        samples = samples and not getattr(model.config, "is_encoder_decoder", False)
        return plan.evaluates and plan.drift_prompts > 0 and samples and "scores" not in method.needs

    def sample(self) -> None:
        """Answer the probe prompts; to be called while the policy has its first weights. What is known stays known."""
        if not self.measures or self.folder.is_flat:
            return
        path = self.folder.path / "eval" / f"probe-{self.rank}-of-{self.world_size}.safetensors"
        self.probes |= _load(path, [task.name for task in self.plan.sequence.tasks])
        missing = [task for task in self.plan.sequence.tasks if task.name not in self.probes]
        for task in missing:
            self.probes[task.name] = self._answered(task)
        if missing:
            _save(path, [self.probes[task.name] for task in self.plan.sequence.tasks])

    def measure(self, stage: Stage, task: Task) -> dict[str, Any] | None:
        """The record of a task after a stage; None where nothing is measured. ``kl`` is null without any answer."""
        if not self.probes:
            return None
        rows = []
        for group, logps in self._scored(self.probes.get(task.name, [])):
            first = group.completions[0].old_logps
            assert first is not None
            rows.append((math.fsum(a - b for a, b in zip(first, logps, strict=True)), float(len(logps))))
        if self.world_size > 1:
            everyone: list[list[tuple[float, float]]] = [[] for _ in range(self.world_size)]
            torch.distributed.all_gather_object(everyone, rows)
            rows = [row for part in everyone for row in part]
        return {"stage": stage.index, "task": task.name, **summarise(rows)}

    def _answered(self, task: Task) -> list[Group]:
        prompts = self._prompts(task)
        if not prompts:
            return []
        model = self.policy.model
        sampling = Sampling(min(PROBE_TOKENS, self.plan.max_new_tokens), 1, 1.0)
        noise, tokens = Noise((self.plan.seed, STREAM)), self.plan.tokens_per_chunk
        answers = generate(model, prompts, sampling, noise, end_tokens(model), tokens)
        groups = [
            Group(name, task.name, ids, [Completion(answer[0].ids)])
            for (name, ids), answer in zip(prompts, answers, strict=True)
        ]
        for group, logps in self._scored(groups):
            group.completions[0].old_logps = logps
        return groups

    def _prompts(self, task: Task) -> list[tuple[str, list[int]]]:
        """The first prompts of the rows to judge by, as they are judged; those that cannot be had are left out."""
        rows, tokenizer = (
            list(task.eval)[: self.plan.drift_prompts][self.rank :: self.world_size],
            self.policy.tokenizer,
        )
        method = self.plan.judge_for(task)
        if isinstance(method, OnlineMethod) or (task.metric is not None and task.metric.score is not None):
            found = [(str(row["id"]), _encoded(row, tokenizer)) for row in rows]
        else:
            made = prepare_rows(rows, method, tokenizer)
            found = [(group.row_id, group.prompt_ids) for group in made if not isinstance(group, UserError)]
        return [(name, ids) for name, ids in found if ids]

    def _scored(self, groups: list[Group]) -> list[tuple[Group, list[float]]]:
        """Each group with its answer's log-probabilities under the policy now, in the same passes every time."""
        if not groups:
            return []
        model, scored = self.policy.model, []
        head, device = LMHead(model), next(model.parameters()).device
        with torch.no_grad(), evaluating(model):
            for part in plan_passes(groups, self.plan.tokens_per_chunk, layout="plain", overhead=overhead(device)):
                batch = to_batch(part, device)
                table = score_batch(model, head, batch, Routing("plain"))["logps"].float().cpu()
                lengths = [len(group.completions[0].ids) for group in part]
                scored += [
                    (group, table[i, :n].tolist()) for i, (group, n) in enumerate(zip(part, lengths, strict=True))
                ]
        return scored


def summarise(rows: list[tuple[float, float]]) -> dict[str, Any]:
    """KL in nats per token and per answer, from (sum of log-ratios, tokens) of each answer, with standard errors.

    Per token it is a ratio of two means; its error is that of the linearised ratio (Cochran 1977, section 2.11).
    """
    rows = [(kl, tokens) for kl, tokens in rows if math.isfinite(kl) and tokens]
    n, tokens = len(rows), math.fsum(tokens for _, tokens in rows)
    if not n:
        return {"kl": None, "kl_sequence": None, "n": 0, "se": None, "se_sequence": None}
    total = math.fsum(kl for kl, _ in rows)
    per_token, per_sequence = total / tokens, total / n

    def error(residuals: list[float]) -> float | None:
        return math.sqrt(math.fsum(r * r for r in residuals) / (n - 1) / n) if n > 1 else None

    of_ratio = error([(kl - per_token * length) * n / tokens for kl, length in rows])
    of_mean = error([kl - per_sequence for kl, _ in rows])
    return {"kl": per_token, "kl_sequence": per_sequence, "n": n, "se": of_ratio, "se_sequence": of_mean}


def _encoded(row: Row, tokenizer: Any) -> list[int]:
    return encode_prompt(row["prompt"], tokenizer, **template_options(row)) if row.get("prompt") is not None else []


# --- on disk ------------------------------------------------------------------------------------------


def _save(path: Path, tasks: list[list[Group]]) -> None:
    """Flat tables of each task; whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    for number, groups in enumerate(tasks):
        answers = [group.completions[0] for group in groups]
        for name, lists in (
            ("names", [list(group.row_id.encode()) for group in groups]),
            ("prompts", [group.prompt_ids for group in groups]),
            ("answers", [answer.ids for answer in answers]),
        ):
            tensors[f"{number}.{name}"] = torch.tensor([each for ids in lists for each in ids], dtype=torch.int64)
            tensors[f"{number}.{name}.lengths"] = torch.tensor([len(ids) for ids in lists], dtype=torch.int64)
        logps = [value for answer in answers for value in answer.old_logps or ()]
        tensors[f"{number}.logps"] = torch.tensor(logps, dtype=torch.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.tmp")
    save_file(tensors, staging)
    staging.replace(path)


def _load(path: Path, tasks: list[str]) -> dict[str, list[Group]]:
    """What a file holds; one that is not there, or broken, holds nothing."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return {}
    found: dict[str, list[Group]] = {}
    for number, task in enumerate(tasks):

        def lists(name: str, number: int = number) -> list[list[int]]:
            lengths = tensors[f"{number}.{name}.lengths"].tolist()
            return [part.tolist() for part in tensors[f"{number}.{name}"].split(lengths)] if lengths else []

        if f"{number}.logps" not in tensors:
            return {}
        names, prompts, answers = lists("names"), lists("prompts"), lists("answers")
        logps = tensors[f"{number}.logps"].split([len(ids) for ids in answers]) if answers else ()
        found[task] = [
            Group(bytes(name).decode(), task, prompt, [Completion(ids, old_logps=values.tolist())])
            for name, prompt, ids, values in zip(names, prompts, answers, logps, strict=True)
        ]
    return found
