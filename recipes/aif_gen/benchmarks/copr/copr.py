"""AIF-Gen: DPO through the tasks of a continual file, with COPR."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("aif_gen/benchmarks/copr/copr.py"))
