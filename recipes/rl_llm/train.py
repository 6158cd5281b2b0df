"""SFT, DPO and RLOO pipeline: --method sft, dpo, rloo or eval."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("rl_llm/train.py"))
