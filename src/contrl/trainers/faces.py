"""TRL's trainers by name, with TRL's order of arguments; what they do stands in ``base.py``.

Besides the named arguments all take, by keyword, those of ``given.Arguments``: ``callbacks``, ``optimizers``,
``peft_config``, ``quantization_config`` ..., and contrl's ``strategies``. ``train_dataset`` may be a list of data sets:
a sequence of tasks.
"""

from __future__ import annotations

from typing import Any, ClassVar

from contrl.errors import UserError
from contrl.trainers.base import Face
from contrl.trainers.configs import (
    CPOConfig,
    DPOConfig,
    KTOConfig,
    ORPOConfig,
    RewardConfig,
    SFTConfig,
    TrainerConfig,
)


class _Simple(Face):
    """Trainers without a reference."""

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        **further: Any,
    ) -> None:
        if "ref_model" in further:
            raise UserError(f"{type(self).__name__} has no reference", fix="leave ref_model out")
        further |= {"data_collator": data_collator}
        if processing_class is not None:
            further["processing_class"] = processing_class
        super().__init__(model, args, train_dataset, eval_dataset, further)


class _WithReference(Face):
    """Trainers with a reference: ``ref_model``, or the weights that training starts from."""

    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **further: Any,
    ) -> None:
        further |= {"data_collator": data_collator, "ref_model": ref_model}
        super().__init__(model, args, train_dataset, eval_dataset, further)


class SFTTrainer(_Simple):
    """Supervised fine-tuning; ``formatting_func`` makes the text of a row."""

    config_class: ClassVar[type[TrainerConfig]] = SFTConfig
    suffix: ClassVar[str] = "SFT"


class RewardTrainer(_Simple):
    """Reward models, from pairs; the model is a sequence classifier with one label."""

    config_class: ClassVar[type[TrainerConfig]] = RewardConfig
    suffix: ClassVar[str] = "Reward"


class DPOTrainer(_WithReference):
    """Direct preference optimisation and its relatives."""

    config_class: ClassVar[type[TrainerConfig]] = DPOConfig
    suffix: ClassVar[str] = "DPO"


class KTOTrainer(_WithReference):
    """Kahneman-Tversky optimisation, from labelled answers or pairs."""

    config_class: ClassVar[type[TrainerConfig]] = KTOConfig
    suffix: ClassVar[str] = "KTO"


class CPOTrainer(_Simple):
    """Contrastive preference optimisation, SimPO and AlphaPO."""

    config_class: ClassVar[type[TrainerConfig]] = CPOConfig
    suffix: ClassVar[str] = "CPO"


class ORPOTrainer(_Simple):
    """Odds-ratio preference optimisation."""

    config_class: ClassVar[type[TrainerConfig]] = ORPOConfig
    suffix: ClassVar[str] = "ORPO"
