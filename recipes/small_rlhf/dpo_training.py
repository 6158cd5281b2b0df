"""RLHF with small models, stage 2: DPO on the adapter of stage 1."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("small_rlhf/dpo_training.py"))
