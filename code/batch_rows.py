"""Which rows of the caller's batch are in a forward pass, so that what belongs to a row follows it.

A search sorts its inputs, answers equal ones once and drops those that have ended. Whoever gives rows something of
their own, as `serving/adapters.py` does, binds their owners; the search says which rows are left:

    with bound(Rows(source, owners)):     the caller: one owner for each row
        with only_rows([2, 0]):           the search, around a forward pass of the third row and the first
            model(...)

Threads have rows of their own. Where none are bound, `only_rows` does nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Rows:
    """The owner of each row, who bound them, and what was made of them, which is kept as long as they are."""

    source: object
    owners: tuple[Any, ...]
    side_by_side: bool = False  # each may be several rows of a batch, as `generate` makes of its beams
    memo: dict[Any, Any] = field(default_factory=dict)
    picked: tuple[list[int], Rows] | None = None  # by the last `only_rows`, which a search enters at every token

    def require(self, number: int) -> None:
        """Raise ValueError if a batch of so many rows is not of these rows."""
        if number == 0 or (number % len(self.owners) if self.side_by_side else number != len(self.owners)):
            raise ValueError(
                f"expected a batch of {len(self.owners)} rows, one for each name, found {number}; name every row, "
                "with None for the base model"
            )


_bound: ContextVar[tuple[Rows, ...]] = ContextVar("rows", default=())  # the innermost last


def rows_of(source: object) -> Rows | None:
    """The rows that `source` has bound; ValueError if another source has bound its own inside of them."""
    rows = _bound.get()
    if rows and rows[-1].source is source:
        return rows[-1]
    if any(outer.source is source for outer in rows):
        raise ValueError(
            f"expected no other rows inside those of this {type(source).__name__}, found those of another one; use "
            "this model when that block has ended"
        )
    return None


@contextmanager
def bound(rows: Rows) -> Iterator[Rows]:
    """Bind these rows, in place of those bound before."""
    token = _bound.set((*_bound.get(), rows))
    try:
        yield rows
    finally:
        _bound.reset(token)


def row_owners(number: int) -> tuple[Any, ...]:
    """The owner of each of so many rows, None where no rows are bound; ValueError if others are bound."""
    if not (rows := _bound.get()):
        return (None,) * number
    rows[-1].require(number)
    return rows[-1].owners


@contextmanager
def only_rows(places: Sequence[int]) -> Iterator[None]:
    """Of the rows that are bound, these alone and in this order."""
    rows = _bound.get()[-1] if _bound.get() else None
    if rows is None or [*places] == [*range(len(rows.owners))]:
        yield
        return
    if rows.picked is None or rows.picked[0] != [*places]:
        rows.picked = list(places), Rows(rows.source, tuple(rows.owners[place] for place in places))
    with bound(rows.picked[1]):
        yield
