"""``mambaseg list``: what exists, by kind."""

import argparse
from collections.abc import Callable
from pathlib import Path

from mambaseg.experiment import experiment_folder


def experiments() -> list[tuple[str, str]]:
    """Return every experiment file with the first line of its header."""
    return [(path.stem, _purpose(path)) for path in sorted(experiment_folder().glob("*.yaml"))]


def networks() -> list[tuple[str, str]]:
    """Return every network with its summary."""
    from mambaseg.networks import list_networks
    from mambaseg.networks.register import NETWORKS

    return [(name, _summary(NETWORKS.get(name))) for name in list_networks()]


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


KINDS: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "experiments": experiments,
    "networks": networks,
    "methods": methods,
    "datasets": datasets,
    "splits": splits,
    "transforms": transforms,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("kind", nargs="?", default="experiments", choices=list(KINDS), help="default: experiments")


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what it is", box=None, pad_edge=False)
    for name, summary in KINDS[arguments.kind]():
        table.add_row(name, summary)
    console = Console()
    console.print(table)
    if arguments.kind == "experiments":
        console.print("\nNext: make train EXP=<name>")
    return 0


def _summary(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _purpose(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").removeprefix("Purpose: ")
