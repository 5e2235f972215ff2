"""Splits by patient: the published ones as JSON, random ones from a seed, and the checks against leakage."""

from mambaseg.datamodules.splits.leakage import LeakageReport, identical_images, leakage_report
from mambaseg.datamodules.splits.split import (
    PARTS,
    Part,
    Split,
    check_split,
    load_split,
    random_split,
    save_split,
    split_names,
)

__all__ = [
    "PARTS",
    "LeakageReport",
    "Part",
    "Split",
    "check_split",
    "identical_images",
    "leakage_report",
    "load_split",
    "random_split",
    "save_split",
    "split_names",
]
