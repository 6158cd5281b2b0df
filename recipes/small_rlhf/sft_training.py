"""RLHF with small models, stage 1: supervised fine-tuning of a LoRA adapter."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("small_rlhf/sft_training.py"))
