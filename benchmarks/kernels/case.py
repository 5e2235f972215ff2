"""What is benchmarked: an operator at one size, the implementations compared, and the passes that are timed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from timing import Call, held_mib, relative_rms
from torch import Tensor

Operator = Callable[..., Tensor]
Draw = Callable[[tuple[int, ...], torch.dtype, str], list[Tensor]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 1e-2}
OURS = "ours"


@dataclass(frozen=True)
class Provider:
    """One implementation.

    Attributes:
        operator: Takes the inputs of its case, returns one tensor.
        kernels: Names the set of Triton kernels that it launches, which is compiled once; empty without any.
    """

    operator: Operator
    kernels: str = ""


@dataclass(frozen=True)
class Case:
    """One operator at one size.

    Attributes:
        kernel: Name of the rows.
        shape: The size as rows show it.
        dtype: Name of the activations' type.
        sizes: Arguments of ``draw`` for what is timed.
        small: Arguments of ``draw`` for what is compared with the definition.
        draw: Makes the operator's inputs from sizes, dtype and device.
        providers: By name, the one that others are compared with first; ``OURS`` is the library's.
        reference: The definition, which takes float64.
        passes: What is timed: forward, forward_saving (with what a backward pass needs), backward, training (both).
        compare_determinism: Whether to time training under ``torch.use_deterministic_algorithms`` too.
    """

    kernel: str
    shape: str
    dtype: str
    sizes: tuple[int, ...]
    small: tuple[int, ...]
    draw: Draw
    providers: dict[str, Provider]
    reference: Operator
    passes: tuple[str, ...] = ("forward", "forward_saving", "backward")
    compare_determinism: bool = False

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.passes != ("forward",)

    def inputs(self, device: str) -> list[Tensor]:
        """Return the inputs that are timed, leaves that need gradients where the case trains."""
        return [tensor.requires_grad_(self.trains) for tensor in self.draw(self.sizes, DTYPES[self.dtype], device)]

    def run_everything(self, provider: str, device: str) -> None:
        """Launch every kernel that a provider needs, at both sizes, so that all are compiled."""
        operator = self.providers[provider].operator
        small = [tensor.requires_grad_(self.trains) for tensor in self.draw(self.small, DTYPES[self.dtype], device)]
        for inputs in (small, self.inputs(device)):
            for _, run in runs(operator, inputs, self.passes):
                run()

    def error(self, device: str) -> float:
        """Return the worst relative RMS error of our output and gradients against the definition in float64.

        Raises:
            ArithmeticError: It is beyond the tolerance: nothing is timed on a wrong result.
        """
        inputs = self.draw(self.small, DTYPES[self.dtype], device)
        operator = self.providers[OURS].operator
        grad = torch.randn_like(operator(*inputs)) if self.trains else None
        ours = results(operator, inputs, grad)
        exact = results(self.reference, [tensor.double() for tensor in inputs], grad)
        worst = max((relative_rms(*pair) for pair in zip(ours, exact, strict=True)), key=lambda e: (e != e, e))
        if not worst <= TOLERANCE[self.dtype]:
            raise ArithmeticError(f"relative RMS error {worst:.1e} is above {TOLERANCE[self.dtype]:.0e}")
        return worst


def results(operator: Operator, inputs: list[Tensor], grad: Tensor | None) -> list[Tensor]:
    """Return the output and all gradients; without ``grad``, the output and what the operator makes of its inputs."""
    if grad is None:
        copies = [tensor.clone() for tensor in inputs]
        return [operator(*copies), *copies]
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = operator(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def runs(operator: Operator, inputs: list[Tensor], passes: tuple[str, ...]) -> Iterator[tuple[str, Call]]:
    """Yield the passes by name, each ready to be called again and again."""
    out = operator(*inputs)
    grad = torch.ones_like(out)

    def forward() -> object:
        with torch.no_grad():
            return operator(*inputs)

    calls: dict[str, Call] = {
        "forward": forward,
        "forward_saving": lambda: operator(*inputs),
        "backward": lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True),
        "training": lambda: torch.autograd.grad(operator(*inputs), inputs, grad),
    }
    for name in passes:
        yield name, calls[name]


def held_by(operator: Operator, inputs: list[Tensor], device: str) -> float:
    """Return the MiB that a forward pass keeps for its backward pass."""
    return held_mib(lambda: operator(*inputs), inputs, device)
