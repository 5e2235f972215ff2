"""Run the benchmarks that suit this machine: ``make bench``. Results are appended as CSV under benchmarks/."""

import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
ON_GPU = [
    ("step.py", "semi_acdc_released"),
    ("kernels/bench.py",),
    ("networks/bench.py",),
    ("metrics/surface.py",),
]
ON_CPU = [
    ("kernels/bench.py",),
    ("metrics/surface.py",),
]


def main() -> None:
    """Run each benchmark in a process of its own; stop at the first that fails."""
    for script, *arguments in ON_GPU if torch.cuda.is_available() else ON_CPU:
        print(f"== {script} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, str(HERE / script), *arguments, *sys.argv[1:]], check=True)


if __name__ == "__main__":
    main()
