"""The tables of README.md, made from bench.csv: one for each device, precision, batch and image size."""

import csv
from pathlib import Path

from mambaseg.io.atomic import write_text

BEGIN, END = "<!-- tables: bench.py --table -->", "<!-- end of tables -->"
GROUP = ("device", "precision", "batch", "size")
Row = dict[str, str]


def write_tables(results: Path, readme: Path) -> None:
    """Replace what stands between the marks of ``readme`` by the tables of ``results``.

    Raises:
        SystemExit: A file is missing, or has no marks.
    """
    for path in (results, readme):
        if not path.is_file():
            raise SystemExit(f"{path} does not exist; run the benchmark first, or give --output")
    with results.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme} lacks the lines {BEGIN!r} and {END!r} between which the tables go")
    write_text(readme, before + BEGIN + "\n" + "\n".join(tables(rows)) + END + after)


def tables(rows: list[Row]) -> list[str]:
    """Return the tables; a later row replaces an earlier one of the same measurement."""
    groups: dict[tuple[str, ...], dict[str, dict[tuple[str, str], Row]]] = {}
    for row in rows:
        networks = groups.setdefault(tuple(row[name] for name in GROUP), {})
        networks.setdefault(row["network"], {})[row["pass"], row["mode"]] = row
    return [table(*group) for group in groups.items()]


def table(group: tuple[str, ...], networks: dict[str, dict[tuple[str, str], Row]]) -> str:
    """Return one table: images a second of every pass and mode, and the peak memory of every pass."""
    device, precision, batch, size = group
    measured = [key for cells in networks.values() for key in cells]
    keys = list(dict.fromkeys(sorted(measured, key=lambda key: key[0])))
    passes = list(dict.fromkeys(of for of, _ in keys))
    several = len({mode for _, mode in keys}) > 1
    titles = [f"{of}, {mode}" if several else of for of, mode in keys] + [f"{of}, GiB" for of in passes]
    lines = [
        f"\n**{device}**, {precision}, batch {batch}, {size}²; images a second, and peak memory. {origin(networks)}\n"
    ]
    lines.append("| network | " + " | ".join(titles) + " |")
    lines.append("|:---|" + "---:|" * len(titles))
    for name, cells in sorted(networks.items()):
        rates = [rate(cells[key]) if key in cells else "–" for key in keys]
        peaks = [peak([row for (of, _), row in cells.items() if of == wanted]) for wanted in passes]
        lines.append(f"| `{name}` | " + " | ".join(rates + peaks) + " |")
    return "\n".join(lines) + "\n"


def origin(networks: dict[str, dict[tuple[str, str], Row]]) -> str:
    rows = [row for cells in networks.values() for row in cells.values()]
    versions = sorted(
        {f"torch {row['torch']}" + (f", Triton {row['triton']}" if row["triton"] else "") for row in rows}
    )
    dates = sorted({row["date"] for row in rows})
    return f"{'; '.join(versions)}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."


def rate(row: Row) -> str:
    if row["error"]:
        return "fails"
    value = float(row["img_per_s"])
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def peak(rows: list[Row]) -> str:
    """Return the peak of the eager mode where it was measured, else of any."""
    known = sorted((row["mode"] != "eager", row["peak_gib"]) for row in rows if row["peak_gib"])
    return known[0][1] if known else "–"
