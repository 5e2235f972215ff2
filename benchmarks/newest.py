"""Which rows of a benchmark's file are drawn."""

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, str]


def newest(rows: Sequence[Row], same: Sequence[str], kind: Callable[[Row], Any]) -> list[Row]:
    """Return the newest row of each kind, kinds in order, of the rows like the last one in the columns ``same``."""
    alike = [row for row in rows if all(row[column] == rows[-1][column] for column in same)]
    latest = {kind(row): row for row in alike}
    return [latest[key] for key in sorted(latest)]
