"""READ FIRST: the nouns of contrl and the contracts between them; types only, no behaviour to speak of.

A *method* says how to learn, a *strategy* how not to forget; neither knows the other. Everything that is
trained is a *group* (one prompt with its 0..G completions), so one forward serves every method. Losses
return sums, never means: the engine alone divides, by counts taken over the whole optimizer step.
"""

from contrl.interfaces.batches import Batch, Completion, Group, LossOutput, Outputs, Rollouts
from contrl.interfaces.methods import Method, OnlineMethod, Pool
from contrl.interfaces.strategies import Context, Origin, Refusal, Services, Setting, Strategy, Teacher
from contrl.interfaces.tasks import LIKELIHOOD, Metric, Reward, Row, Stage, Task, TaskSequence

__all__ = [
    "LIKELIHOOD",
    "Batch",
    "Completion",
    "Context",
    "Group",
    "LossOutput",
    "Method",
    "Metric",
    "OnlineMethod",
    "Origin",
    "Outputs",
    "Pool",
    "Refusal",
    "Reward",
    "Rollouts",
    "Row",
    "Services",
    "Setting",
    "Stage",
    "Strategy",
    "Task",
    "TaskSequence",
    "Teacher",
]
