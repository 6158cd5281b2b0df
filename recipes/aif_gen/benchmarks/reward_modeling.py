"""AIF-Gen: a reward model for one task of a continual file, or with --all_datasets for each."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("aif_gen/benchmarks/reward_modeling.py"))
