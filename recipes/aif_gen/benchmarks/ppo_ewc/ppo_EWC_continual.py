"""AIF-Gen: PPO through the tasks of a continual file, held by EWC."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("aif_gen/benchmarks/ppo_ewc/ppo_EWC_continual.py"))
