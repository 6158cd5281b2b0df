"""Continual Countdown: train and test rows of the four operator groups, in veRL's columns."""

import sys

from contrl.cli.origins import main

if __name__ == "__main__":
    sys.exit(main("countdown/data_gen.py"))
