"""One trainer behind all of TRL's names: what it was given becomes a plan, and contrl's runner runs it.

One data set is trained as transformers does: ``output_dir/checkpoint-N``, and the model where ``save_model`` puts it. A
list of data sets is a sequence of tasks, and ``output_dir`` a run folder with a results matrix.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from accelerate import Accelerator
from peft import PeftModel
from transformers import PrinterCallback, TrainerState, trainer_pt_utils
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import TrainOutput

from contrl.base_stage import save_policy
from contrl.compatibility import partial_gradients
from contrl.continual.processes import Ranks
from contrl.continual.results import Results, read
from contrl.continual.rotation import Rotate, Rotation, remove_checkpoints
from contrl.continual.rotation import checkpoints as checkpoints_in
from contrl.continual.run_folder import RunFolder
from contrl.continual.runner import Plan, Progress, Runner
from contrl.continual.trackers import Trackers
from contrl.engine.checkpoint import STAGING, newest_checkpoint, whole_folder
from contrl.engine.rows import prepare_all
from contrl.engine.trainer import Engine
from contrl.errors import UserError
from contrl.experiment import find
from contrl.interfaces import Setting, Stage, Strategy, Task, TaskSequence
from contrl.launch import finish
from contrl.models.card import write_card
from contrl.models.load import Policy
from contrl.models.value_head import save_value, without_value
from contrl.planning import build_plan, usable
from contrl.trainers import records
from contrl.trainers.configs import TrainerConfig
from contrl.trainers.given import sort_out
from contrl.trainers.models import Given
from contrl.trainers.optimizer import optimizers_of
from contrl.trainers.strategies import make_strategy
from contrl.trainers.tasks import Reader, as_method_takes, held_rows, is_sequence, make_tasks


class Face:
    """What all trainers do; see ``faces.py`` for their constructors.

    Attributes:
        model: the model that is trained; of a model object, that object.
        args: the configuration.
        processing_class: the tokenizer.
        train_dataset, eval_dataset: as given.
        results: of a list of data sets, the results matrix once trained.
    """

    log_metrics, save_metrics = trainer_pt_utils.log_metrics, trainer_pt_utils.save_metrics
    config_class: ClassVar[type[TrainerConfig]] = TrainerConfig
    suffix: ClassVar[str] = ""
    sampler: Any = None
    """Another program that samples in the policy's place; of trainers that sample."""

    def __init__(self, model: Any, args: Any, train: Any, held_out: Any, further: dict[str, Any]) -> None:
        path = model if isinstance(model, str) else str(getattr(model, "name_or_path", "") or type(model).__name__)
        output_dir = f"{Path(path).name}-{self.suffix}"
        self.args, self._given = sort_out(further, args, self.config_class, output_dir)
        method = find("method", self.args.method)
        models = Given(
            model,
            self._given.processing_class,
            self._given.peft_config,
            self._given.quantization_config,
            self._given.ref_model,
            classifier="scores" in method.needs,
        )
        if train is None:
            raise UserError("there is no train_dataset")
        self.train_dataset, self.eval_dataset = train, held_out
        self._ranks = Ranks()
        training = self.args.training(self._ranks.world_size)
        self._ranks.join(training)
        self.processing_class = models.read_tokenizer(self.args)
        self.is_sequence = is_sequence(train)
        self._reader = Reader(
            getattr(self.args, "dataset_text_field", "text"), self._given.formatting_func, self._most(training)
        )
        self._plan = self._make_plan(method, training)
        device = self._ranks.device(training)
        self._policy: Policy = models.load(self.processing_class, self.args, device)
        self.model, self.ref_model = self._policy.model, models.load_reference(self.args, device)
        first = self._plan.method_for(self._plan.sequence.stages[0])
        setting = Setting(first, self.is_peft, partial_gradients([training]))
        self._strategy = make_strategy(self._given.strategies, setting)
        self._callbacks = list(self._given.callbacks)
        self._optimizers = optimizers_of(self._given, self.model, self.args, is_sequence=self.is_sequence)
        self.state = TrainerState()
        self.results: Results | None = None
        self._last: Runner | None = None

    # --- what was given becomes a plan ------------------------------------------------------------------

    def _most(self, training: dict[str, Any]) -> int | None:
        """Rows that a stream can be asked for: as many as ``max_steps`` visits."""
        steps = int(training.get("max_steps", -1))
        return self.args.rows_visited(steps, self._ranks.world_size) if steps > 0 else None

    def _tasks(self) -> list[Task]:
        return make_tasks(self.train_dataset, self.eval_dataset, self._reader)

    def _method_fields(self, method: Any) -> dict[str, Any]:
        return self.args.method_fields(method, self._ranks.world_size)

    def _make_plan(self, method: Any, training: dict[str, Any]) -> Plan:
        fields = self._method_fields(method)
        tasks = [as_method_takes(task, method(**{**fields, **task.method}), self.say) for task in self._tasks()]
        sequence = TaskSequence.in_order(tasks)
        evaluates = getattr(self.args.eval_strategy, "value", self.args.eval_strategy)
        if evaluates != "no" and not any(task.eval for task in tasks):
            raise UserError(f"eval_strategy is {evaluates!r} and there is no eval_dataset")
        world_size = self._ranks.world_size
        self._config = records.run_config(self.args, fields, sequence, training, self._given.strategies, world_size)
        plan = build_plan(self._config, sequence, self._ranks.world_size)
        judged = self.is_sequence and any(task.eval for task in tasks)
        if self.is_sequence and not judged:
            self.say("there is no eval_dataset: what is forgotten will not be measured")
        plan = replace(plan, evaluates=judged)
        return replace(plan, sequence=usable(sequence, plan, self.processing_class, self.say))

    def say(self, text: str) -> None:
        """A line to standard output, on rank 0."""
        if self._ranks.rank == 0:
            print(text, flush=True)

    def _runner(self, checkpoint_of: Callable[[Path], Path | None]) -> Runner:
        folder = RunFolder(Path(self.args.output_dir), writes=self._ranks.rank == 0, is_flat=not self.is_sequence)
        self._trackers = Trackers.of(
            self.args.report_to, folder, self.args.run_name, {"method": self.args.method}, self.say
        )
        return Runner(
            self._plan,
            folder,
            self._policy,
            self._strategy,
            self._base(folder) if self.is_sequence else None,
            Progress(self.say, self._callbacks_of, scores=self._trackers.scores),
            self._ranks.rank,
            self._ranks.world_size,
            optimizers=self._optimizers,
            reference=self.ref_model,
            checkpoint_of=checkpoint_of,
            holds_out=True,
            sampler=self.sampler,
        )

    def _callbacks_of(self, stage: Stage, steps: int) -> list[Any]:
        shown = PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK
        found = [self._trackers.stage(stage), *self._callbacks, *([shown] if self._ranks.rank == 0 else [])]
        if self.args.save_total_limit is not None and not self.is_sequence:
            found.append(Rotate(Path(self.args.output_dir), Rotation(1, self.args.save_total_limit)))
        return found

    def _base(self, folder: RunFolder) -> Path | None:
        """Where the untouched weights of a sequence lie; an adapter's base is not touched anyway."""
        if self.is_peft:
            return None
        place = folder.path / "base"
        if self._ranks.rank == 0 and not place.exists():
            save_policy(self._policy, place)
        self._ranks.barrier()
        return place

    # --- training ----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None) -> TrainOutput:
        """Train, from the start or from a checkpoint.

        Args:
            resume_from_checkpoint: True for the newest checkpoint in ``output_dir``, or a checkpoint's folder. Of a
                list of data sets, True continues the run in ``output_dir`` where it stopped.

        Raises:
            UserError: when there is nothing to resume, or ``output_dir`` holds a run that is not a trainer's.
        """
        place = Path(self.args.output_dir)
        checkpoint = records.checkpoint_to_resume(place, resume_from_checkpoint, is_sequence=self.is_sequence)
        if self._ranks.rank == 0:
            records.prepare(
                place,
                self._config,
                self._plan.sequence,
                resumed=bool(resume_from_checkpoint),
                is_sequence=self.is_sequence,
                world_size=self._ranks.world_size,
            )
        self._ranks.barrier()
        history = records.History()
        runner = self._runner(newest_checkpoint if self.is_sequence else lambda folder: checkpoint)
        self._callbacks.append(history)
        self._last = runner
        try:
            runner.run()
        finally:
            self._callbacks.remove(history)
            self._trackers.close()
        self.state = history.state(checkpoint, in_sequence=self.is_sequence)
        self._finish(runner.folder)
        return history.output(self.state)

    def _finish(self, folder: RunFolder) -> None:
        if self._ranks.rank == 0:
            if self.is_sequence:
                finish(folder)
                self.results = read(folder.path)
            elif str(getattr(self.args.save_strategy, "value", self.args.save_strategy)) == "no":
                # The engine saves the last step for those who resume; transformers would not.
                keep = [step for step in checkpoints_in(folder.path) if step != self.state.global_step]
                remove_checkpoints(folder.path, keep)
        self._ranks.barrier()
        if self.args.push_to_hub:
            self.push_to_hub()

    # --- evaluation --------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The method's loss and metrics on held-out rows, under ``eval_`` names.

        Of a list of data sets the score of every task, ``eval_<task>_<metric>``.

        Raises:
            UserError: when there are no rows, or the reference of new rows is gone.
        """
        if self.is_sequence:
            return self._evaluate_tasks(metric_key_prefix)
        engine = self._last.engine if self._last is not None else None
        if engine is None:
            engine = self._runner(lambda folder: None).begin(self._plan.sequence.stages[0])[0]
        before = engine.work.eval_groups
        try:
            if eval_dataset is not None:
                engine.work.eval_groups = self._groups(eval_dataset, engine)
            if not engine.work.eval_groups:
                raise UserError("there are no rows to evaluate on", fix="give eval_dataset")
            return engine.evaluate(metric_key_prefix=metric_key_prefix)
        finally:
            engine.work.eval_groups = before

    def _groups(self, dataset: Any, engine: Engine) -> Any:
        method, task = engine.work.method, self._plan.sequence[0]
        rows = method.rows(held_rows(dataset, self._reader), self.say)
        limit = self.args.max_bad_rows
        pairs = [(task, row) for row in rows]
        groups = prepare_all(pairs, method, self.processing_class, self.say, max_bad_rows=limit)
        method.pair(groups, self.args.seed)
        reference = engine.work.reference
        if reference is not None and reference.is_ready and reference.live is None and reference.rows.missing(groups):
            raise UserError(
                "the reference has not seen these rows, and it is gone",
                why="it was the weights at the start of training",
                fix="give them as eval_dataset to the trainer, or a ref_model",
            )
        return groups

    def _evaluate_tasks(self, prefix: str) -> dict[str, float]:
        found: dict[str, float] = {}
        runner = self._last or self._runner(newest_checkpoint)
        for task in self._plan.sequence.tasks:
            if task.eval:
                score = runner.score(task)
                values = {score.metric: score.value, **score.extras}
                found |= {f"{prefix}_{task.name}_{name}": v for name, v in values.items() if v is not None}
        if not found:
            raise UserError("there are no rows to evaluate on", fix="give eval_dataset")
        return found

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Not there: logits never exist as a whole."""
        raise UserError("predict would return logits, which never exist as a whole here", fix="call evaluate")

    # --- saving ------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write weights and tokenizer into a folder, ``output_dir`` of the configuration by default."""
        target = Path(output_dir or self.args.output_dir)
        target.mkdir(parents=True, exist_ok=True)
        engine = self._last.engine if self._last is not None else None
        if engine is not None and engine.is_fsdp_enabled:
            engine.save_model(str(target))
        elif self._ranks.rank == 0:
            staging = target / f"{STAGING}model"
            with whole_folder(staging) as place:
                with without_value(self.model):
                    self.model.save_pretrained(place)
                self.processing_class.save_pretrained(place)
                save_value(self.model, place)
            # One by one and by renaming: what lies there may be a hard link to a stage's weights.
            for file in sorted(staging.iterdir()):
                os.replace(file, target / file.name)
            staging.rmdir()
            self.create_model_card(folder=target)

    def save_state(self) -> None:
        """Write ``trainer_state.json`` into ``output_dir``."""
        if self._ranks.rank == 0:
            Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
            self.state.save_to_json(str(Path(self.args.output_dir) / "trainer_state.json"))

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: Any = None, *, folder: Any = None
    ) -> None:
        """Write README.md: what the weights are and what they were trained with."""
        facts = {
            "title": model_name or Path(self.args.output_dir).name,
            "base": self._policy.source,
            "data": dataset_name,
            "method": {"name": self.args.method, **self._config.method.fields},
            "sequence": [task.name for task in self._plan.sequence.tasks] if self.is_sequence else None,
            "tags": [tags] if isinstance(tags, str) else list(tags or ()),
        }
        write_card(Path(folder or self.args.output_dir), facts)

    def push_to_hub(self, commit_message: str = "End of training", **kwargs: Any) -> Any:
        """Upload model and tokenizer to ``args.hub_model_id``, or the name of ``output_dir``; only when asked."""
        about = {name: kwargs.pop(name) for name in ("model_name", "dataset_name", "tags") if name in kwargs}
        if about:
            self.create_model_card(**about)
        name = self.args.hub_model_id or Path(self.args.output_dir).name
        options = {"token": self.args.hub_token, "private": self.args.hub_private_repo, **kwargs}
        self.processing_class.push_to_hub(name, commit_message=commit_message, **options)
        return self.model.push_to_hub(name, commit_message=commit_message, **options)

    # --- what programs look at -----------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """``processing_class`` as it was called until 2024."""
        return self.processing_class

    @property
    def is_peft(self) -> bool:
        """Whether an adapter is trained."""
        return isinstance(self.model, PeftModel)

    @property
    def accelerator(self) -> Any:
        """accelerate's object: of the last training, or a new one."""
        engine = self._last.engine if self._last is not None else None
        return engine.accelerator if engine is not None else Accelerator(cpu=bool(self.args.use_cpu))

    def is_world_process_zero(self) -> bool:
        """Whether this process is the one that writes."""
        return self._ranks.rank == 0

    @property
    def strategy(self) -> Strategy:
        """All strategies as one."""
        return self._strategy

    def add_callback(self, callback: Any) -> None:
        """Add a callback of transformers, an object or a class."""
        self._callbacks.append(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback that was added, or all of a class."""
        self._callbacks = [c for c in self._callbacks if not (c is callback or type(c) is callback)]

    def pop_callback(self, callback: Any) -> Any:
        """Remove a callback and return it."""
        found = next((c for c in self._callbacks if c is callback or type(c) is callback), None)
        self.remove_callback(callback)
        return found
