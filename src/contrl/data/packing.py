"""Packing: short examples laid one after another into sequences of one length, under TRL's name and strategies.

Best-fit decreasing puts the longest example first and each next one where the least room is left for it; the column
``seq_lengths`` keeps where each example ends, so that none attends to another.
"""

from __future__ import annotations

import bisect
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, Literal, get_args

from contrl.errors import UserError

Strategy = Literal["bfd", "bfd_split", "wrapped"]
Columns = dict[str, list[list[Any]]]


def pack_dataset(
    dataset: Any, seq_length: int, strategy: Strategy = "bfd", map_kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Pack columns of equally long lists into sequences of at most ``seq_length``.

    Args:
        dataset: a ``datasets.Dataset`` or ``DatasetDict`` (packed batch by batch), or columns of lists.
        seq_length: the most tokens of a sequence.
        strategy: "bfd" keeps examples whole and cuts what is longer; "bfd_split" packs the rest of what is longer as
            well; "wrapped" fills every sequence and cuts anywhere.
        map_kwargs: for the data set's ``map``.

    Returns:
        The same kind; with "bfd" and "bfd_split" a further column ``seq_lengths``.

    Raises:
        UserError: for an unknown strategy, a length below 1, or columns that are not lists of one length.
    """
    if strategy not in get_args(Strategy):
        raise UserError(f"unknown packing strategy {strategy!r}", fix=f"use one of {', '.join(get_args(Strategy))}")
    if seq_length < 1:
        raise UserError(f"cannot pack into sequences of {seq_length} tokens")
    if not hasattr(dataset, "map"):
        return pack_columns(dict(dataset), seq_length, strategy)
    if isinstance(dataset, dict):
        return type(dataset)({name: pack_dataset(part, seq_length, strategy) for name, part in dataset.items()})
    return dataset.map(
        lambda batch: pack_columns(dict(batch), seq_length, strategy),
        batched=True,
        remove_columns=dataset.column_names,
        **(map_kwargs or {}),
    )


def pack_columns(columns: Columns, seq_length: int, strategy: Strategy) -> Columns:
    """Columns of lists, packed together; see ``pack_dataset``."""
    lengths = _lengths(columns)
    if strategy == "wrapped":
        flat = {name: [item for values in column for item in values] for name, column in columns.items()}
        starts = range(0, sum(lengths), seq_length)
        return {name: [items[start : start + seq_length] for start in starts] for name, items in flat.items()}
    step = seq_length if strategy == "bfd_split" else max([seq_length, *lengths])
    # (example, start, end) of every piece, in order; an empty example has none.
    pieces = [
        (example, start, min(start + seq_length, length))
        for example, length in enumerate(lengths)
        for start in range(0, length, step)
    ]
    bins = best_fit([end - start for _, start, end in pieces], seq_length)
    packed: Columns = {
        name: [[item for piece in members for item in _cut(column, pieces[piece])] for members in bins]
        for name, column in columns.items()
    }
    return {**packed, "seq_lengths": [[pieces[piece][2] - pieces[piece][1] for piece in members] for members in bins]}


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` in bins that hold at most ``capacity``: best fit, longest first, ties in order."""
    bins: list[list[int]] = []
    rooms: list[int] = []
    by_room: dict[int, deque[int]] = defaultdict(deque)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect.bisect_left(rooms, lengths[index])
        if place == len(rooms):
            room = capacity
            number = len(bins)
            bins.append([])
        else:
            room = rooms[place]
            number = by_room[room].popleft()
            if not by_room[room]:
                rooms.pop(place)
        bins[number].append(index)
        left = room - lengths[index]
        if left > 0:
            if not by_room[left]:
                bisect.insort(rooms, left)
            by_room[left].append(number)
    return bins


def _cut(column: list[list[Any]], piece: tuple[int, int, int]) -> list[Any]:
    example, start, end = piece
    return column[example][start:end]


def _lengths(columns: Columns) -> list[int]:
    """The common lengths of the columns' lists."""
    if not columns:
        return []
    if not all(isinstance(values, list) for column in columns.values() for values in column):
        raise UserError("packing needs columns of lists", fix="tokenise first, and leave other columns out")
    all_lengths = [[len(values) for values in column] for column in columns.values()]
    if any(lengths != all_lengths[0] for lengths in all_lengths):
        raise UserError(f"the columns {', '.join(columns)} have lists of different lengths", fix="leave others out")
    return all_lengths[0]
