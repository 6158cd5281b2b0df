"""StackLLaMA 2: DPO with a 4-bit base under a LoRA adapter."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("trl/dpo_llama2.py"))
