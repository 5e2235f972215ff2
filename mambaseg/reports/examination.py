"""The table and the JSON of an examined data set."""

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mambaseg.datamodules.examination import Finding, Report, Result
from mambaseg.io.atomic import write_text

if TYPE_CHECKING:
    from rich.console import Console

SHOWN_CASES = 4
SHOWN_FINDINGS = 4


def show_report(console: "Console", report: Report) -> None:
    """Print a row for every check: what it found, in which scans, and what to do."""
    from rich.table import Table
    from rich.text import Text

    console.print(f"[bold]{report.name}[/bold]: {report.scans} scans of {report.patients} patients in {report.where}")
    console.print(f"Splits: {', '.join(report.splits) or 'none to look for leaks in; --split names one'}\n")
    table = Table("Check", "Result", "Found", "What to do", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for result in report.results:
        word, style = verdict(result)
        advice = result.fix if result.defects else ""
        table.add_row(result.name, Text(word, style=style), Text("\n".join(lines(result.findings))), advice)
    console.print(table, soft_wrap=False)
    defects = sum(bool(result.defects) for result in report.results)
    if defects:
        console.print(f"\n{defects} of {len(report.results)} checks found defects. Mend them before training.")
    else:
        console.print("\nNo defects.")


def verdict(result: Result) -> tuple[str, str]:
    """Return the word for a check's result and its colour."""
    if result.defects:
        return "DEFECT", "bold red"
    return ("remark", "yellow") if result.findings else ("ok", "green")


def lines(findings: tuple[Finding, ...]) -> list[str]:
    """Return findings as lines, cases with the same one together, grave ones first."""
    cases: dict[tuple[bool, str], list[str]] = defaultdict(list)
    for finding in findings:
        cases[not finding.grave, finding.what].extend(finding.cases)
    told = [f"{shortened(named)}: {what}" if named else what for (_, what), named in sorted(cases.items())]
    rest = len(told) - SHOWN_FINDINGS
    return [*told[:SHOWN_FINDINGS], f"... and {rest} more (--json lists all)"] if rest > 0 else told


def shortened(cases: list[str]) -> str:
    """Return the first cases by name and the number of the others."""
    rest = len(cases) - SHOWN_CASES
    return ", ".join(cases[:SHOWN_CASES]) + (f" and {rest} more" if rest > 0 else "")


def save_report(report: Report, path: Path) -> None:
    """Write everything that was found as JSON."""
    write_text(path, json.dumps({"sound": report.sound, **asdict(report)}, indent=1) + "\n")
