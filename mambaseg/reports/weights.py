"""What was loaded into the students before training, on the screen and in the run's folder."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mambaseg.io.atomic import write_text
from mambaseg.networks import Network
from mambaseg.networks.weights import LoadReport

FILE = "weights.json"
EXAMPLES = 2


def weights_table(name: str, report: LoadReport) -> Table:
    """Return a table of what became of every tensor.

    Args:
        name: Of the network or student.
        report: What was loaded into it.
    """
    title = f"{name}: {Path(report.source).name}, {report.fraction:.1%} of {report.part}"
    table = Table("tensors", "number", "values", "such as", box=None, pad_edge=False, title=title, title_justify="left")
    for words, fate in report.fates():
        shown = [f"{key}: {remark}" if remark else key for key, remark in list(fate.tensors.items())[:EXAMPLES]]
        more = " ..." if len(fate.tensors) > EXAMPLES else ""
        table.add_row(words, str(len(fate.tensors)), f"{fate.values:,}", "; ".join(shown) + more)
    return table


def record_weights(networks: Mapping[str, Network], run_dir: Path) -> None:
    """Print what was loaded into a run's networks and keep it, tensor by tensor, in the run's folder.

    Args:
        networks: The students by name; those with fresh weights are passed over.
        run_dir: The run's folder.
    """
    reports = {name: network.weights_report for name, network in networks.items()}
    loaded = {name: report for name, report in reports.items() if report is not None}
    if not loaded:
        return
    console = Console()
    for name, report in loaded.items():
        console.print(weights_table(name, report))
    record = {name: asdict(report) | {"fraction": report.fraction} for name, report in loaded.items()}
    write_text(run_dir / FILE, json.dumps(record, indent=1) + "\n")
