"""CSV files that grow over months, and get new columns meanwhile."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mambaseg.errors import InputError
from mambaseg.io.atomic import write_text


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> None:
    """Append rows, one a line; columns that the file lacks are added, and stay empty in the rows it has.

    Args:
        path: The file, made when it does not exist. It is replaced as a whole, or not at all.
        rows: Values by column; None, or no value, is written as nothing.
        columns: In which order columns stand that the file lacks; others follow.

    Raises:
        InputError: The file is there and is no such table.
    """
    before: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = dict.fromkeys(reader.fieldnames or ())
            before = list(reader)
        if any(None in row for row in before):
            raise InputError(f"{path}: a line has more values than the first line has columns. Give another file.")
    for given in (columns, *rows):
        names |= dict.fromkeys(given)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows([*before, *rows])
    write_text(path, text.getvalue())
