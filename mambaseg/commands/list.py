"""``mambaseg list``: what exists, by kind."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mambaseg.experiment import experiment_folder


def experiments() -> list[tuple[str, str]]:
    """Return every experiment file with the first line of its header."""
    return [(path.stem, _purpose(path)) for path in sorted(experiment_folder().glob("*.yaml"))]


def networks() -> list[Sequence[str]]:
    """Return every network with its size, its cost, the images it takes and its paper."""
    from mambaseg.networks.cost import listed_costs
    from mambaseg.networks.register import NETWORKS

    rows: list[Sequence[str]] = []
    for name, cost in listed_costs().items():
        channels = f"{cost.in_channels}→{cost.num_classes}"
        giga = [f"{value / 1e9:.3f}" for value in (cost.macs, cost.total)]
        steps = cost.takes.removeprefix("any size, steps of ")
        rows.append([name, f"{cost.parameters:,}", *giga, channels, steps, _paper(NETWORKS.get(name))])
    return rows


def methods() -> list[tuple[str, str]]:
    """Return every method with its summary."""
    from mambaseg import methods as package
    from mambaseg.methods import CoTrainingModule

    found = [getattr(package, name) for name in package.__all__]
    return [(method.__name__, _summary(method)) for method in found if method is not CoTrainingModule]


def splits() -> list[tuple[str, str]]:
    """Return every built-in split with its note."""
    from mambaseg.datamodules.splits import load_split, split_names

    return [(name, load_split(name).note) for name in split_names()]


def transforms() -> list[tuple[str, str]]:
    """Return every augmentation recipe with its summary."""
    from mambaseg.datamodules.transforms import TRANSFORMS

    return [(name, _summary(TRANSFORMS.get(name))) for name in TRANSFORMS.names()]


def datasets() -> list[tuple[str, str]]:
    """Return every dataset with its summary."""
    from mambaseg.datamodules import list_datasets
    from mambaseg.datamodules.base import DATAMODULES

    return [(name, _summary(DATAMODULES.get(name))) for name in list_datasets()]


KINDS: dict[str, Callable[[], Sequence[Sequence[str]]]] = {
    "experiments": experiments,
    "networks": networks,
    "methods": methods,
    "datasets": datasets,
    "splits": splits,
    "transforms": transforms,
}
HEADER = ("name", "what it is")
NETWORK_HEADER = ("name", "parameters", "G MACs", "and scan", "for", "steps of", "arXiv")
"""Together they fit 80 columns."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("kind", nargs="?", default="experiments", choices=list(KINDS), help="default: experiments")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    of_networks = arguments.kind == "networks"
    table = Table(box=None, pad_edge=False, padding=(0, 2 if not of_networks else 1, 0, 0))
    for place, title in enumerate(NETWORK_HEADER if of_networks else HEADER):
        number = of_networks and 1 <= place <= 3
        table.add_column(title, justify="right" if number else "left", no_wrap=number or place == 0, overflow="fold")
    rows = KINDS[arguments.kind]()
    for row in rows:
        table.add_row(*row)
    console = Console()
    if arguments.kind == "experiments" and not rows:
        console.print(f"There are no experiments in {experiment_folder().resolve()}.")
        console.print("\nNext: go to mambaseg's folder, or write one there (docs/methods.md shows the form)")
        return 0
    console.print(table)
    if of_networks:
        from mambaseg.networks.cost import CONVENTION

        console.print(f"\n{CONVENTION}\nNext: network: <name> for a student in an experiment; mambaseg weights")
    if arguments.kind == "experiments":
        console.print("\nNext: make train EXP=<name>")
    return 0


def _summary(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _paper(thing: object) -> str:
    """Return the number of the first paper on arXiv that the documentation of a network links to."""
    link = re.search(r"arxiv\.org/abs/([\d.]+\d)", thing.__doc__ or "")
    return link[1] if link else ""


def _purpose(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").removeprefix("Purpose: ")
