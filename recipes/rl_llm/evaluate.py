"""Win rate of a trained model against a reference, judged by a reward model."""

import os
import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    os.environ.setdefault("WANDB_PROJECT", "cs224r_deeprl_final")
    sys.exit(main("rl_llm/evaluate.py"))
