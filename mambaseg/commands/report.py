"""``mambaseg report``: one self-contained HTML file about a run, or about several side by side."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mambaseg.runs import find_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or an experiment: its newest run")
    parser.add_argument(
        "--output", type=Path, help="the HTML file (default: RUN/report.html, of several runs ./comparison.html)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report."""
    folders = [locate(name) for name in arguments.runs]
    output: Path = arguments.output or (folders[0] / "report.html" if len(folders) == 1 else Path("comparison.html"))

    from rich.console import Console

    from mambaseg.io.atomic import write_text
    from mambaseg.reports.run_record import read_run
    from mambaseg.reports.run_report import report_html

    records = [read_run(folder, name) for folder, name in zip(folders, distinct_names(folders), strict=True)]
    write_text(output, report_html(records))
    console = Console(soft_wrap=True)
    console.print(f"Report: {output}", markup=False)
    console.print("Next: open it in a browser; it is one file and needs no network.")
    return 0


def locate(name: str) -> Path:
    """Return the run folder that is meant: a folder with a record, or the newest run of an experiment."""
    path = Path(name)
    return path if (path / "metrics.jsonl").is_file() else find_run(name)


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for every folder: its own, with as many parents before it as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(set(parts)):
            return _numbered(names)
    return _numbered([str(folder) for folder in folders])


def _numbered(names: Sequence[str]) -> list[str]:
    """Return the names with a number after those that stand there twice."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]
