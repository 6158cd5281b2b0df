"""The results matrix in the terminal, with the three numbers that sum it up and the formula of each.

One layout serves all outputs: rich styles it on a colour terminal, everywhere else (a pipe, a log, NO_COLOR, a dumb
terminal) the same text is plain, without escape codes or carriage returns. What colour says a character says too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TextIO

from contrl.continual.metrics import FORMULAS
from contrl.continual.movement import drift
from contrl.continual.results import Results
from contrl.report.numbers import interval, item_counts, margin, number
from contrl.report.terminal import can_write, clean, encodable, wants_colour
from contrl.report.verdict import facts

if TYPE_CHECKING:
    from rich.console import Console

HEADLINES = ("average", "forgetting", "bwt")
FLIPS = ("lost", "gained")


class Symbols(NamedTuple):
    """The characters that carry meaning; an old console gets its ASCII ones."""

    down: str = "▼"
    up: str = "▲"
    plus_minus: str = "±"
    dot: str = "·"
    dash: str = "–"


UNICODE, ASCII = Symbols(), Symbols("v", "^", "+/-", "|", "-")


class Span(NamedTuple):
    """A piece of a line and the rich style it takes on a colour terminal."""

    text: str
    style: str = ""


Line = list[Span]


def print_results(results: Results, stream: TextIO | None = None) -> None:
    """Print the table to ``stream`` (default: standard output), styled when it is a colour terminal."""
    stream = stream or sys.stdout
    if wants_colour(stream):
        from rich.console import Console

        render(results, Console(file=stream))
        return
    stream.write(encodable(plain(results, symbols=symbols_for(stream.encoding)), stream.encoding))
    stream.flush()


def render(results: Results, console: Console | None = None) -> str | None:
    """Print to a rich console and return None; without one return the plain text."""
    if console is None:
        return plain(results)
    symbols, width = symbols_for(console.encoding), console.width if console.is_terminal else None
    if not console.is_terminal or console.no_color:
        console.file.write(encodable(plain(results, symbols, width), console.encoding))
        return None
    from rich.text import Text

    for line in layout(results, symbols, width):
        text = Text.assemble(*((encodable(span.text, console.encoding), span.style) for span in line))
        console.print(text, soft_wrap=True, highlight=False)
    return None


def plain(results: Results, symbols: Symbols = UNICODE, width: int | None = None) -> str:
    """The table as text; ends with a newline."""
    lines = ("".join(span.text for span in line).rstrip() for line in layout(results, symbols, width))
    return "".join(f"{line}\n" for line in lines)


def symbols_for(encoding: str | None) -> Symbols:
    """The symbols this encoding can write."""
    return UNICODE if can_write("".join(UNICODE), encoding) else ASCII


def layout(results: Results, symbols: Symbols, width: int | None) -> list[Line]:
    """Every line of the output; columns that do not fit ``width`` go into further blocks below."""
    return [
        *_heading(results, symbols),
        [],
        *_matrix(results, symbols, width),
        [],
        _headline(results, symbols),
        *_further(results, symbols),
        *_legend(results, symbols),
    ]


# --- the parts, from top to bottom -------------------------------------------------------------------


def _heading(results: Results, symbols: Symbols) -> list[Line]:
    counts = item_counts([cell for row in results.matrix for cell in row if cell]).replace("–", symbols.dash)
    scores = f"{clean(results.metric)}, {symbols.plus_minus} 95% CI{f', n={counts}' if counts else ''}"
    lines: list[Line] = [
        [Span(f" {symbols.dot} ".join(clean(fact) for fact in facts(results)), "bold")],
        [Span(scores, "dim")],
    ]
    if not results.finished:
        status = clean(str(results.run.get("status", "unfinished")))
        after = f"the figures below are after {clean(results.rows[results.end])}"
        progress = after if results.end >= 0 else "nothing was scored yet"
        lines.append([Span(f"{status}, not finished: {progress}", "yellow")])
    return lines


def _matrix(results: Results, symbols: Symbols, width: int | None) -> list[Line]:
    labels = ["after stage", *(clean(row.replace("-", " ", 1)) for row in results.rows)]
    margin_width = max(map(len, labels)) + 2
    columns = [_column(results, column, symbols) for column in range(len(results.tasks))]
    lines: list[Line] = []
    for block in _blocks([len(column[0].text) + 2 for column in columns], (width or sys.maxsize) - margin_width):
        lines.extend([[]] if lines else [])
        for row, label in enumerate(labels):
            line = [Span(label.ljust(margin_width), "bold" if row == 0 else "")]
            for column in block:
                line.extend([columns[column][row], Span("  ")])
            lines.append(line)
    return lines


def _column(results: Results, column: int, symbols: Symbols) -> list[Span]:
    """Header and cells of one task, padded to one width."""
    spans = [Span(f"{clean(results.tasks[column])}  ", "bold")]
    spans.extend(_cell(results, row, column, symbols) for row in range(len(results.rows)))
    width = max(len(span.text) for span in spans)
    return [Span(span.text.rjust(width), span.style) for span in spans]


def _cell(results: Results, row: int, column: int, symbols: Symbols) -> Span:
    """``[0.98 ±0.01] `` when this stage trained the task, `` 0.41 ±0.04 ▼`` after a significant drop."""
    cell, trained = results.matrix[row][column], column in results.trained[row]
    opening, closing = "[]" if trained else "  "
    if cell is None:
        return Span(f"{opening}{symbols.dash}{closing} ", "dim")
    width = margin(cell)
    change = results.change(row, column)
    mark, style = " ", "bold" if trained else ""
    if change is not None and change.value is not None and change.outside_noise:
        mark, style = (symbols.down, "red") if change.value < 0 else (symbols.up, "green")
    error = f" {symbols.plus_minus}{width}" if width else ""
    return Span(f"{opening}{number(cell.value)}{error}{closing}{mark}", style)


def _headline(results: Results, symbols: Symbols) -> Line:
    line: Line = []
    for name in HEADLINES:
        metric = results.metrics[name]
        line.extend([Span(f" {symbols.dot} ")] if line else [])
        line.append(Span(f"{FORMULAS[name].title} {number(metric.value, symbols.dash)}", "bold"))
        line.append(Span(f" {interval(metric)}".rstrip()))
    return line


def _further(results: Results, symbols: Symbols) -> list[Line]:
    """One line of what else is known: items that changed sides, and the drift of the answers; none without either."""
    texts = [
        f"{FORMULAS[name].title} {number(metric.value)} {interval(metric)}".rstrip()
        for name in FLIPS
        if (metric := results.metrics[name]).value is not None
    ]
    stages = {stage["stage"]: stage for stage in drift(results)["stages"]}
    known = {name: (stages.get(results.end) or {}).get(name, {}).get("kl") for name in ("new", "old")}
    kl = [f"{value:.3f} on {name} prompts" for name, value in known.items() if value is not None]
    texts += [f"KL from the start {', '.join(kl)} (nats per token)"] if kl else []
    return [[Span(f" {symbols.dot} ".join(texts))]] if texts else []


def _legend(results: Results, symbols: Symbols) -> list[Line]:
    width = max(len(FORMULAS[name].title) for name in HEADLINES)
    bases = list(dict.fromkeys(m.basis for name in HEADLINES if (m := results.metrics[name]).low is not None))
    texts = [f"  {FORMULAS[name].title.ljust(width)} = {FORMULAS[name].text}" for name in HEADLINES]
    texts.append("  R[k, j]: score on task j after stage k; end: last stage; first(j), last(j): stages that trained j")
    if bases:
        texts.append(f"  [low, high]: 95% CI over evaluation items, {'; '.join(bases)}")
    texts.append(
        f"  [ ] trained in this stage, {symbols.down} {symbols.up} significantly below / above its score "
        f"when it was last trained, {symbols.dash} not measured or not defined"
    )
    notes: list[Line] = [[Span(f"  note: {clean(note)}", "yellow")] for note in results.notes]
    return [*([Span(text, "dim")] for text in texts), *notes]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Column numbers in groups whose widths fit the room; at least one a group."""
    blocks: list[list[int]] = []
    used = 0
    for column, width in enumerate(widths):
        if not blocks or used + width > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += width
    return blocks
