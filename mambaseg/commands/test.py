"""``mambaseg test``: all metrics of a checkpoint on the test patients, the only command that reads them."""

import argparse

from mambaseg.evaluation import add_evaluation_arguments, evaluate

PASSES_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_evaluation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Score."""
    return evaluate(arguments, "test")
