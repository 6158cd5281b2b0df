"""AIF-Gen: DPO through the tasks of a continual file, held by EWC."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("aif_gen/benchmarks/dpo_ewc/dpo_EWC_continual.py"))
