"""Measure the training step of an experiment and keep the rows: ``mambaseg bench step`` with a file to append to.

    python benchmarks/step.py semi_acdc_released [--steps 100] [--profile] [--set trainer.precision=32-true ...]

Rows go to benchmarks/results/step.csv. Until 2026-11 its ``peak_gib`` was what the allocator had given out; the memory
of CUDA graphs is not in that, so later rows have ``reserved_gib`` instead, which cannot be compared with it.
"""

import sys
from pathlib import Path

from mambaseg.cli import main

RESULTS = Path(__file__).parent / "results" / "step.csv"

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(["bench", "step", "--config", sys.argv[1], "--csv", str(RESULTS), *sys.argv[2:]]))
