"""Time the operators around the scan against their plain torch compositions, at the shapes of Mamba-UNet.

Run on a GPU: ``python benchmarks/kernels/blocks.py --output benchmarks/kernels/blocks.csv``; rows are appended. The
provider ``torch`` is the plain composition, ``compiled`` (on request) the same through Inductor. Every shape is checked
against the reference in float64 before it is timed. ``layer_norm`` times torch's LayerNorm alone, beside the bytes it
has to move: it says whether a LayerNorm of our own could pay. On a CPU, ``--shapes demo`` times the torch paths.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from selective_scan import DTYPES, Report, copy_mode, measure
from torch import Tensor
from torch.nn import functional as F

from mambaseg.kernels import backend, causal_conv1d, causal_conv1d_update, merge_norm_gate, selective_state_update
from mambaseg.kernels.causal_conv1d import causal_conv1d_reference, causal_conv1d_update_reference
from mambaseg.kernels.norm_gate import merge_norm_gate_reference
from mambaseg.kernels.selective_state_update import selective_state_update_reference

# batch, steps, channels of one direction
SHAPES = {
    "unet": [(24, 3136, 192), (24, 784, 384), (24, 196, 768), (24, 49, 1536)],
    "train": [(16, 3136, 192), (16, 784, 384), (16, 196, 768), (16, 49, 1536)],
    "long": [(4, 16384, 192), (1, 65536, 384)],
    "demo": [(2, 784, 192), (1, 49, 768)],
}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2}
DIRECTIONS = 4
D_STATE = 16


@dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Attributes:
        kernel: Name of the row.
        ours: The operator, or None for a row of torch alone.
        plain: The plain torch composition.
        reference: The definition.
        inputs: Arguments of all three.
        moved: Elements that a forward pass reads and writes at least once.
        trains: Whether there is a backward pass.
    """

    kernel: str
    ours: Callable[..., Tensor] | None
    plain: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    inputs: list[Tensor]
    moved: int
    trains: bool = True


def plain_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Pad on both sides, convolve each channel, cut, activate: what Mamba does without its kernel."""
    width = weight.shape[-1]
    padded = F.conv1d(x, weight.unsqueeze(1).to(x.dtype), bias.to(x.dtype), padding=width - 1, groups=x.shape[1])
    return F.silu(padded[..., : x.shape[-1]])


def plain_norm_gate(y: Tensor, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Sum, normalise in float32, cast, gate: what SS2D does."""
    normalised = F.layer_norm(y.sum(2).float(), weight.shape, weight, bias)
    return normalised.to(z.dtype) * F.silu(z)


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise in the input's type."""
    return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype))


def cases(batch: int, steps: int, channels: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Yield the operators at one shape; halves of wider tensors are read in place, as behind ``in_proj``."""

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device).to(kind).requires_grad_()

    float32 = torch.float32
    elements = batch * steps * channels
    for layout, x in (
        ("channels last", draw(batch, steps, 2 * channels).detach()[..., :channels].transpose(1, 2)),
        ("time last", draw(batch, channels, steps).detach()),
    ):
        inputs = [x.requires_grad_(), draw(channels, 4, kind=float32), draw(channels, kind=float32)]
        yield Case(
            f"causal_conv1d {layout}",
            lambda *given: causal_conv1d(*given, activation="silu"),
            plain_convolution,
            lambda *given: causal_conv1d_reference(*given, activation="silu"),
            inputs,
            2 * elements,
        )
    scale, shift = draw(channels, kind=float32), draw(channels, kind=float32)
    z = draw(batch, steps, 2 * channels).detach()[..., channels:].requires_grad_()
    for directions in (DIRECTIONS, 1):
        inputs = [draw(batch, steps, directions, channels), z, scale, shift]
        moved = (directions + 2) * elements
        yield Case(
            f"norm_gate {directions}", merge_norm_gate, plain_norm_gate, merge_norm_gate_reference, inputs, moved
        )
    inputs = [draw(batch, steps, channels), scale, shift]
    yield Case("layer_norm", None, plain_layer_norm, plain_layer_norm, inputs, 2 * elements)


def step_cases(batch: int, channels: int, dtype: torch.dtype, device: str) -> Iterator[Case]:
    """Yield the decoding steps at one width."""

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device).to(kind)

    float32 = torch.float32
    weights = [draw(channels, 4, kind=float32), draw(channels, kind=float32)]
    inputs = [draw(batch, channels), draw(batch, channels, 4), *weights]
    yield Case(
        "causal_conv1d_update",
        causal_conv1d_update,
        causal_conv1d_update_reference,
        causal_conv1d_update_reference,
        inputs,
        batch * channels * 10,
        trains=False,
    )
    rates = -torch.rand(channels, D_STATE, device=device)
    inputs = [draw(batch, channels, D_STATE, kind=float32), draw(batch, channels), draw(batch, channels), rates]
    inputs += [draw(batch, D_STATE), draw(batch, D_STATE), draw(channels, kind=float32), draw(batch, channels)]
    yield Case(
        "selective_state_update",
        selective_state_update,
        selective_state_update_reference,
        selective_state_update_reference,
        inputs,
        batch * channels * (2 * D_STATE + 4),
        trains=False,
    )


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Return the RMS of the error over the RMS of what is expected."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def check(case: Case, dtype: str) -> None:
    """Compare outputs and gradients with the reference in float64; a wrong operator ends the benchmark."""
    if case.ours is None:
        return
    results = []
    for operator, kind in ((case.ours, None), (case.reference, torch.float64)):
        inputs = [value.detach().to(kind or value.dtype, copy=True) for value in case.inputs]
        leaves = [value.requires_grad_(case.trains) for value in inputs]
        out = operator(*leaves)
        grads = torch.autograd.grad(out.float().square().sum(), leaves) if case.trains else (leaves[0],)
        results.append([out.detach(), *grads])
    worst = max(relative_rms(*pair) for pair in zip(*results, strict=True))
    if not worst <= TOLERANCE[dtype]:
        raise SystemExit(
            f"{case.kernel} in {dtype}: relative RMS error {worst:.1e}; nothing is timed on a wrong result"
        )


def modes(operator: Callable[..., Tensor], case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield (mode, callable)."""

    def forward() -> Tensor:
        with torch.no_grad():
            return operator(*case.inputs)

    yield "forward", forward
    if case.trains:
        yield "forward_saving", lambda: operator(*case.inputs)
        out = operator(*case.inputs)
        grad = torch.randn_like(out)
        yield "backward", lambda: torch.autograd.grad(out, case.inputs, grad, retain_graph=True)


def time_case(case: Case, dtype: str, shape: str, floor_ms: float, arguments: argparse.Namespace) -> None:
    """Add the rows of one case, each provider's beside the other's."""
    providers = {backend.select(torch.device(arguments.device)): case.ours, "torch": case.plain}
    if arguments.compiled:
        providers["compiled"] = torch.compile(case.plain, dynamic=False)
    for provider, operator in providers.items():
        if operator is None:
            continue
        report = Report(arguments.output, arguments.device, provider)
        for mode, run in modes(operator, case):
            timing = measure(run, arguments.device, arguments.repeats)
            report.add(case.kernel, mode, dtype, shape, timing, f"bytes of a forward pass {floor_ms:.3g} ms")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shapes", nargs="+", default=["unet", "long"], choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=["fp32", "bf16"], choices=list(DTYPES))
    parser.add_argument("--kernels", nargs="+", default=[""], help="beginnings of names; all by default")
    parser.add_argument("--compiled", action="store_true", help="time the torch composition through Inductor too")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=170, help="start no case after this long")
    parser.add_argument("--output", type=Path, help="CSV file to append to")
    arguments = parser.parse_args()
    deadline = time.perf_counter() + arguments.seconds
    device = arguments.device
    torch.manual_seed(0)
    copy, copied = copy_mode(device)
    timing = measure(copy, device, arguments.repeats)
    bandwidth = copied / timing.p50
    report = Report(arguments.output, device, "torch")
    report.add("copy", "forward", "fp32", f"{copied} bytes", timing, f"{bandwidth / 1e9:.2f} TB/s")
    del copy
    shapes = [shape for group in arguments.shapes for shape in SHAPES[group]]
    for dtype, shape in itertools.product(arguments.dtypes, shapes):
        batch, _, channels = shape
        kind = DTYPES[dtype]
        for case in itertools.chain(cases(*shape, kind, device), step_cases(batch, channels, kind, device)):
            if not case.kernel.startswith(tuple(arguments.kernels)):
                continue
            if time.perf_counter() > deadline:
                raise SystemExit(f"stopped after {arguments.seconds:.0f} s, before {case.kernel} {dtype} {shape}")
            check(case, dtype)
            time_case(case, dtype, str(shape), case.moved * case.inputs[0].element_size() / bandwidth, arguments)


if __name__ == "__main__":
    main()
