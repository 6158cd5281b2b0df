"""AIF-Gen: CPPO through the tasks of a continual file, each rewarded by its own reward model."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("aif_gen/benchmarks/cppo/cppo.py"))
