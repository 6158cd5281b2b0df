"""TRL of mid-2024: DPO."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("trl/examples/scripts/dpo.py"))
