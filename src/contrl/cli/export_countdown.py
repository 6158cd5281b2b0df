"""``contrl export-countdown``: models, logs, metrics and the plot of a continual Countdown run, from its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """Write what the continual Countdown experiment reads, from a run folder: never from console text.

  metrics/initial_<round>_<group>/, metrics/final_<round>_<group>/    the models of a stage, as links
  metrics/metrics_<round>_<group>_<size>.json                         its steps
  metrics/consolidated_metrics_<size>.json                            the steps of all stages, one object each
  metrics/export_<size>.json                                          which run this is, and what each key means
  logs/ContinualCountdown_R<round>_<group>.log                        the steps as lines
  plots/training_metrics_<size>.png

Names of other sizes than 0.5b say so: final_1_plus_1.5b, ContinualCountdown1.5B_R1_plus.log. What was not recorded at
a step is null. An unfinished run is exported as far as it is; repeat the command later.
"""
EPILOG = """examples:
  contrl export-countdown models/countdown_continual
  contrl export-countdown models/countdown_continual_1.5b --size 1.5b --output_dir results
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--size", default="0.5b", help="of the model, as it stands in the names (default: %(default)s)")
    parser.add_argument("--output_dir", default=".", metavar="FOLDER", help="holds the three folders (default: here)")
    for name in ("metrics", "logs", "plots"):
        parser.add_argument(f"--{name}_dir", metavar="FOLDER", help=f"instead of OUTPUT_DIR/{name}")
    parser.add_argument("--overwrite", action="store_true", help="replace the artefacts of another run")


def command(options: argparse.Namespace) -> int:
    """Export."""
    from contrl.continual.countdown_artefacts import Places, export
    from contrl.continual.records import write_atomic
    from contrl.report.countdown_figure import figure
    from contrl.report.svg import draw, figure_png

    output = Path(options.output_dir)
    metrics, logs, plots = (Path(getattr(options, f"{n}_dir") or output / n) for n in ("metrics", "logs", "plots"))
    places = Places(metrics, logs, options.size)
    steps = export(Path(options.run), places, overwrite=options.overwrite, say=print)
    plots.mkdir(parents=True, exist_ok=True)
    plot = plots / f"training_metrics_{options.size}.png"
    write_atomic(plot, figure_png(draw(figure(steps, options.size))))
    print(f"{len(steps)} steps: {places.consolidated}\nplot: {plot}")
    return 0
