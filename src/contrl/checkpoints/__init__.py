"""Judge saved weights afterwards: a results matrix from checkpoints of a run of ours, or of models trained elsewhere.

A run of ours gets the very numbers that training would have logged, in its own folder: the same plan, the same code,
the weights and the strategies' state that each stage saved. Everything else goes into a folder that reads like a run's.
Each cell is on disk before the next is begun, so a killed command repeats nothing but the cell it was at.
"""

from contrl.checkpoints.asked import Asked
from contrl.checkpoints.judging import judge
from contrl.checkpoints.saved import SavedRun, find_saved

__all__ = ["Asked", "SavedRun", "find_saved", "judge"]
