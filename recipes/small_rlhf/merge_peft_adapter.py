"""RLHF with small models: an adapter added to its base."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("small_rlhf/merge_peft_adapter.py"))
