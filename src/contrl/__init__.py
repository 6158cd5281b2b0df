"""contrl: one engine for post-training language models on a sequence of tasks.

The public names, nothing else. They are loaded when first used, so that importing the package (and
`contrl --help`) loads neither torch nor transformers.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "run": "contrl.api",
    "resume": "contrl.api",
    **dict.fromkeys(
        (
            "Batch",
            "Completion",
            "Context",
            "Group",
            "LossOutput",
            "Method",
            "Metric",
            "OnlineMethod",
            "Outputs",
            "Reward",
            "Strategy",
            "Task",
        ),
        "contrl.interfaces",
    ),
    "UserError": "contrl.errors",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'contrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
