"""Train through ``ss2d`` and through its unfused composition: time of forward and backward, and memory held between.

Run on a GPU: ``python benchmarks/kernels/ss2d.py --output benchmarks/kernels/ss2d.csv``. The composition is the
published block's order of operations on our own scan kernel: four copies of the map, projections of every copy, step
sizes for all channels, scan, four results brought back. Outputs and gradients of the two are compared before they are
timed. On a CPU, ``--shapes demo`` compares the torch paths.
"""

import argparse
import csv
import datetime
from collections.abc import Callable
from pathlib import Path

import torch
from selective_scan import DTYPES, measure
from torch import Tensor

from mambaseg.kernels import backend, cross_merge, cross_scan, selective_scan, ss2d
from mambaseg.kernels.ss2d.reference import scan_sequences

COLUMNS = ("provider", "dtype", "shape", "training_ms", "held_mib", "peak_mib", "error", "gpu", "torch", "date")
# (batch, channels, side) of VMamba-T's four stages at 224 x 224
SHAPES = {
    "vmamba": [(24, 192, 56), (24, 384, 28), (24, 768, 14), (24, 1536, 7)],
    "demo": [(2, 32, 12)],
}


def composition(x: Tensor, *parameters: Tensor) -> Tensor:
    """Compute ``ss2d`` from separate operators; arguments and result are its."""
    return cross_merge(scan_sequences(cross_scan(x), *parameters, scan=selective_scan), *x.shape[-2:])


PROVIDERS: dict[str, Callable[..., Tensor]] = {"ss2d": ss2d, "composition": composition}


def draw(batch: int, channels: int, side: int, d_state: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Draw the arguments of ``ss2d``; weights are float32, as parameters are."""
    rank = max(1, channels // 32)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device) * scale

    inputs = [
        normal(batch, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last),
        normal(4, rank + 2 * d_state, channels, scale=channels**-0.5),
        normal(4, channels, rank, scale=rank**-0.5),
        normal(4, channels) - 4,
        torch.arange(1, d_state + 1, device=device, dtype=torch.float32).log().repeat(4 * channels, 1),
        normal(4 * channels),
    ]
    return [tensor.requires_grad_() for tensor in inputs]


def held_mib(call: Callable[[], Tensor], device: str) -> float:
    """Return the memory that a forward pass keeps for its backward pass, beside its result."""
    if device == "cpu":
        return float("nan")
    before = torch.cuda.memory_allocated()
    out = call()
    return (torch.cuda.memory_allocated() - before - out.numel() * out.element_size()) / 2**20


def worst_error(inputs: list[Tensor]) -> float:
    """Return the largest relative RMS difference of outputs and gradients between the two."""
    results = []
    for call in PROVIDERS.values():
        out = call(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    pairs = [(one.detach().double(), other.detach().double()) for one, other in zip(*results, strict=True)]
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", default=["vmamba"], choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--states", nargs="+", type=int, default=[16, 1])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    machine = {
        "gpu": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
    print(f"scan served by {backend.select(torch.device(arguments.device))}")
    for shape in (shape for group in arguments.shapes for shape in SHAPES[group]):
        for dtype, d_state in ((dtype, states) for dtype in arguments.dtypes for states in arguments.states):
            inputs = draw(*shape, d_state, DTYPES[dtype], arguments.device)
            error = worst_error(inputs)
            for provider, call in PROVIDERS.items():
                grad = torch.randn_like(inputs[0])

                def train(
                    call: Callable[..., Tensor] = call, inputs: list[Tensor] = inputs, grad: Tensor = grad
                ) -> object:
                    return torch.autograd.grad(call(*inputs), inputs, grad)

                timing = measure(train, arguments.device, arguments.repeats)
                held = held_mib(lambda call=call, inputs=inputs: call(*inputs), arguments.device)  # type: ignore[misc]
                label = f"({shape[0]}, {shape[1]}, {shape[2]}, {shape[2]}), N={d_state}"
                figures = {"training_ms": timing.p50, "held_mib": held, "peak_mib": timing.peak_mib, "error": error}
                row = {"provider": provider, "dtype": dtype, "shape": label}
                row |= {name: f"{value:.4g}" for name, value in figures.items()} | machine
                print(*row.values(), sep="\t", flush=True)
                append(arguments.output, row)


def append(path: Path | None, row: dict[str, str]) -> None:
    """Append a row to a CSV file, with a header where it is new."""
    if path is None:
        return
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
