"""``mambaseg weights``: published weights listed, fetched, and tried on a network."""

import argparse

from mambaseg.errors import InputError

ACTIONS = ("list", "fetch", "check")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("action", nargs="?", default="list", choices=ACTIONS, help="default: list")
    parser.add_argument("source", nargs="?", metavar="PATH|ID", help="for fetch: an id; for check: a file or an id")
    parser.add_argument("--sha256", metavar="HEX", help="checksum that the file must have")
    parser.add_argument("--unverified", action="store_true", help="for fetch: take a file whose checksum nobody gave")
    parser.add_argument("--network", help="for check: the network to try the weights on")
    parser.add_argument("--in-channels", type=int, default=1, help="for check: channels of the images (default: 1)")
    parser.add_argument("--num-classes", type=int, default=4, help="for check: classes (default: 4)")
    parser.add_argument("--no-mirror", action="store_true", help="for check: leave the decoder's blocks fresh")


def run(arguments: argparse.Namespace) -> int:
    """List, fetch or check."""
    if arguments.action == "list":
        return _list()
    if not arguments.source:
        raise InputError(
            f"mambaseg weights {arguments.action}: say which; `mambaseg weights` lists the published ones."
        )
    return _fetch(arguments) if arguments.action == "fetch" else _check(arguments)


def _list() -> int:
    from rich.console import Console
    from rich.table import Table

    from mambaseg.networks.weights import PUBLISHED
    from mambaseg.networks.weights.files import weights_folder

    table = Table("id", "here", "checksum", "licence", "names", "for", "note", box=None, pad_edge=False)
    for name in PUBLISHED.names():
        entry = PUBLISHED.get(name)
        here = "yes" if (weights_folder() / entry.file).is_file() else "no"
        checksum = "known" if entry.sha256 else "unknown"
        networks = ", ".join(entry.networks)
        table.add_row(name, here, checksum, entry.licence, entry.key_map.name, networks, entry.note)
    console = Console()
    console.print(table)
    console.print(
        f"\nFolder: {weights_folder()}\nNext: mambaseg weights fetch ID, then fit --weights [STUDENT=]ID or, in an "
        "experiment, options: {weights: ID}"
    )
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mambaseg.datamodules.download import fetch
    from mambaseg.io.atomic import write_text
    from mambaseg.networks.weights import PUBLISHED
    from mambaseg.networks.weights.files import check_sha256, recorded_sha256, weights_folder

    entry = PUBLISHED.get(arguments.source)
    target = weights_folder() / entry.file
    if entry.url is None:
        raise InputError(f"{arguments.source}: has no address to fetch ({entry.note}). Put the file at {target}.")
    expected = arguments.sha256 or entry.sha256
    if expected is None and not arguments.unverified:
        raise InputError(
            f"{arguments.source}: no trusted checksum of {entry.url} is known. Give one with --sha256 HEX, or take "
            "what comes with --unverified."
        )
    fetch(entry.url, target, expected)
    digest = check_sha256(target, expected)
    write_text(recorded_sha256(target), f"{digest}\n")
    console = Console(soft_wrap=True)
    console.print(f"{target}: sha256 {digest}{'' if expected else ' (nobody vouched for it; it is noted from now on)'}")
    console.print(f"Next: mambaseg weights check {arguments.source} --network {entry.networks[0]}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from mambaseg.networks import create_network
    from mambaseg.networks.weights import WeightsConfig, load_weights
    from mambaseg.networks.weights.published import PUBLISHED
    from mambaseg.reports.weights import weights_table

    name = arguments.network
    if not name and arguments.source in PUBLISHED.names():
        name = PUBLISHED.get(arguments.source).networks[0]
    if not name:
        raise InputError("mambaseg weights check: say for which network, with --network; see `mambaseg list networks`.")
    network = create_network(name, arguments.in_channels, arguments.num_classes)
    config = WeightsConfig(arguments.source, arguments.sha256, mirror=not arguments.no_mirror, min_fraction=0.0)
    report = load_weights(network, config)
    console = Console(soft_wrap=True)
    console.print(weights_table(name, report))
    enough = report.fraction >= WeightsConfig(arguments.source).min_fraction
    console.print(report.summary())
    console.print("Enough to train from." if enough else "Too little: fit refuses it unless min_fraction is set lower.")
    return 0 if enough else 1
