"""``python -m contrl``: the same as the command, for torchrun and accelerate launch."""

import sys

from contrl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
