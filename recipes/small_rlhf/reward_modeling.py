"""RLHF with small models: a reward model as a LoRA adapter."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("small_rlhf/reward_modeling.py"))
