"""The command line: finds a command by name, imports it and nothing else, and turns bad input into one clear line."""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from mambaseg.errors import InputError
from mambaseg.version import __version__

COMMANDS = {
    "fit": "train an experiment",
    "validate": "score a run's checkpoint on the validation patients",
    "test": "score a run's checkpoint on the test patients, once, at the end",
    "predict": "segment NIfTI files with a run's checkpoint",
    "prepare": "import a dataset into memory-mapped arrays with a manifest",
    "weights": "list, fetch and check published weights for the networks",
    "report": "make a self-contained HTML report of one or more runs",
    "dashboard": "watch runs while they train, in the terminal or as a W&B workspace",
    "bench": "measure an experiment's training step: speed, memory, MFU, and what loading data costs",
    "list": "show the networks, methods, datasets, transforms, splits and experiments that exist",
    "doctor": "check this machine and the scan kernels on it, or with --data a data set for defects",
}

READ_CLASSES = {"fit", "validate", "test", "predict", "bench"}
"""Commands whose configuration names classes."""
FORBIDDEN = (errno.EACCES, errno.EROFS)
ALLOW_CODE_HELP = "let the configuration name classes of this package too; by default mambaseg, lightning, torch.optim"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; those of the process when absent.

    Returns:
        The exit status: 0 for success, 2 for bad input or a scan backend that cannot run here, 1 for a training that a
        fault ended, 128 + the signal for one that was asked to stop.
    """
    parser = argparse.ArgumentParser(
        prog="mambaseg",
        description="Medical image segmentation with few labels.",
        epilog="Start with: mambaseg fit --config demo",
    )
    parser.add_argument("--version", action="version", version=f"mambaseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f"mambaseg.commands.{name}")
            module.add_arguments(command)
            if name in READ_CLASSES:
                command.add_argument("--allow-code", action="append", metavar="PREFIX", help=ALLOW_CODE_HELP)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a plus-minus sign must not end a training
    arguments, rest = parser.parse_known_args(words)
    if rest and not getattr(module, "PASSES_ON", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    if getattr(arguments, "allow_code", None):
        os.environ["MAMBASEG_ALLOW_CODE"] = ",".join(arguments.allow_code)
    try:
        return int(module.run(arguments))
    except refusals() as error:
        print(f"mambaseg {arguments.command}: error: {error}", file=sys.stderr)
        return getattr(error, "status", 2)
    except OSError as error:
        if error.errno not in FORBIDDEN or error.filename is None:
            raise
        advice = "Look at its permissions, or choose another place."
        print(f"mambaseg {arguments.command}: error: {error.filename}: {error.strerror}. {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nmambaseg {arguments.command}: interrupted; nothing half-written is left.", file=sys.stderr)
        return 130


def refusals() -> tuple[type[Exception], ...]:
    """Return the errors whose message is all that a user needs.

    The kernels know nothing of mambaseg, so their error is a class of its own. It can only have been raised where its
    module was imported, and importing it here would load torch to report a misspelt name.
    """
    backend = sys.modules.get("mambaseg.kernels.backend")
    return (InputError,) if backend is None else (InputError, backend.ScanBackendError)
