"""Students' passes as CUDA graphs: recorded once, then all of them are one call to the GPU, and run side by side."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mambaseg.kernels.accumulation import autocast_dtype
from mambaseg.methods.components.gradient_average import GatheredGradients
from mambaseg.methods.components.recorded_passes import Output, Pass, RecordedPasses, longest_first
from mambaseg.networks import SegmentationNetwork

MOST_PASSES = 6
"""Recorded passes: each keeps its activations' memory, so images of many shapes run the plain pass."""


class StudentGraphs:
    """Runs students as recorded CUDA graphs.

    A Mamba network launches a few thousand small kernels a step, which takes the host longer than the GPU. Recorded
    passes cost the host one launch. Results are those of plain passes: the same kernels on the same numbers; dropout
    draws from the same generator, of which a recorded pass advances the state by as much at every replay.

    Outputs and gradients lie in the graphs' memory, and the next replay overwrites them. So passes belong to one call
    within a step: a second one on images of the same shape is recorded in memory of its own. Gradients become ``.grad``
    of parameters as they are; they must be used up before the next step's forward pass, which rules out accumulation
    over batches. Students for which ``can_be_recorded`` is false run the plain pass.

    Args:
        students: The networks by name. Their parameters must stay where they are in memory, as loading a state dict
            and optimizers leave them.
        gathered: Leave the gradients of each recorded pass one after the other in memory, see ``average_gradients``.
    """

    def __init__(self, students: Mapping[str, SegmentationNetwork], gathered: bool = False) -> None:
        self.students = dict(students)
        self._recordable = {name: network for name, network in self.students.items() if can_be_recorded(network)}
        # Once: to walk through modules takes the host longer than all else that a step asks of them.
        self._parameters = [p for network in self._recordable.values() for p in network.parameters()]
        self._gathered = gathered
        self._passes: dict[tuple[Any, ...], RecordedPasses] = {}
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._calls = 0

    @property
    def gathered(self) -> list[GatheredGradients]:
        """Where recorded passes leave their gathered gradients."""
        return [gradients for recorded in self._passes.values() for gradients in recorded.gathered]

    def start_step(self) -> None:
        """Begin a training step: its calls may overwrite what those of the last one returned."""
        self._calls = 0

    def release(self) -> None:
        """Give the graphs' memory back now, whoever still holds them; the next call records anew."""
        for recorded in self._passes.values():
            recorded.release()
        self._passes.clear()
        self._streams.clear()

    def __call__(self, image: Tensor) -> dict[str, Output]:
        """Return every student's ``forward_with_features(image)``, differentiable once.

        Args:
            image: (B, C, *S) on a GPU.
        """
        recorded = self._recorded(image)
        made = {} if recorded is None else recorded(image)
        self._calls += 1
        return {
            name: made[name] if name in made else network.forward_with_features(image)
            for name, network in self.students.items()
        }

    def _streams_of(self, runs: Mapping[str, Pass], image: Tensor) -> dict[str, torch.cuda.Stream]:
        """Return a stream for each student; where they compete for the GPU, the one that takes the longest goes first.

        The shorter ones then fill what it leaves idle, and all end sooner than with equal rights.
        """
        if not self._streams:
            for priority, name in enumerate(reversed(longest_first(runs, image))):
                self._streams[name] = torch.cuda.Stream(image.device, -priority)  # type: ignore[no-untyped-call]
        return self._streams

    def _recorded(self, image: Tensor) -> RecordedPasses | None:
        if not self._recordable:
            return None
        autocast = autocast_dtype("cuda")
        # Frozen or thawed layers make other passes, which know whose gradients they have.
        trainable = tuple(p.requires_grad for p in self._parameters) if torch.is_grad_enabled() else ()
        key = (self._calls, image.shape, image.dtype, trainable, autocast)
        if key not in self._passes and len(self._passes) < MOST_PASSES:
            runs = {name: Pass(network, autocast) for name, network in self._recordable.items()}
            self._passes[key] = RecordedPasses(runs, image, self._streams_of(runs, image), self._gathered)
        return self._passes.get(key)


def can_be_recorded(network: nn.Module) -> bool:
    """Tell whether graphs of a network's passes compute what the passes do.

    A recomputed block would draw other dropout in the backward graph than it did in the forward graph, where torch
    allows the recording at all. Batch norm over processes is a collective: processes that run several students side
    by side would meet in it in different orders.
    """
    return not any(
        getattr(part, "checkpointing", False) or isinstance(part, nn.SyncBatchNorm) for part in network.modules()
    )
