"""AIF-Gen: every checkpoint of a run on every task."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("aif_gen/benchmarks/continual_eval_checkpoint.py"))
