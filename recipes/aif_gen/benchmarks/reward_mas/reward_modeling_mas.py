"""AIF-Gen: one reward model through all tasks of a continual file, held by MAS."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("aif_gen/benchmarks/reward_mas/reward_modeling_mas.py"))
