"""RLHF with small models: PPO on the adapter of stage 1, rewarded by a trained reward model."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("small_rlhf/ppo_training.py"))
