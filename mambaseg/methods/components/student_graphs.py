"""Students' passes as CUDA graphs: recorded once, then each is one call to the GPU, and students run side by side."""

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mambaseg.methods.components.half_weights import forward_in_half
from mambaseg.networks import SegmentationNetwork

MOST_PASSES = 6
"""Recorded passes of a student: each keeps its activations' memory, so images of many shapes run the plain pass."""
WARM_UP_PASSES = 3
"""Passes before recording: kernels are compiled, libraries choose algorithms and take their workspaces."""


class StudentGraphs:
    """Runs students as recorded CUDA graphs.

    A Mamba network launches a few thousand small kernels a step, which takes the host longer than the GPU. A recorded
    pass costs the host one launch. Results are those of the plain pass: the same kernels on the same numbers; dropout
    draws from the same generator, of which a recorded pass advances the state by as much at every replay.

    Outputs and gradients lie in the graph's memory, and the next replay overwrites them. So a pass belongs to one call
    within a step: a second one on images of the same shape is recorded in memory of its own. Gradients become ``.grad``
    of parameters as they are; they must be used up before the next backward pass, which rules out accumulation over
    batches.

    Args:
        students: The networks by name. Their parameters must stay where they are in memory, as loading a state dict
            and optimizers leave them.
    """

    def __init__(self, students: Mapping[str, SegmentationNetwork]) -> None:
        self.students = dict(students)
        self._passes: dict[tuple[Any, ...], RecordedPass] = {}
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._calls = 0

    def start_step(self) -> None:
        """Begin a training step: its calls may overwrite what those of the last one returned."""
        self._calls = 0

    def __call__(self, image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return every student's ``forward_with_features(image)``, differentiable once.

        Args:
            image: (B, C, *S) on a GPU.
        """
        main = torch.cuda.current_stream(image.device)
        outputs = {}
        for name in self.students:
            recorded = self._recorded(name, image)
            if recorded is None:
                outputs[name] = self.students[name].forward_with_features(image)
                continue
            stream = self._stream(name, image.device)
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                outputs[name] = recorded(image)
        for stream in self._streams.values():
            main.wait_stream(stream)
        self._calls += 1
        return outputs

    def _stream(self, name: str, device: torch.device) -> torch.cuda.Stream:
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[name]

    def _recorded(self, name: str, image: Tensor) -> "RecordedPass | None":
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        # Thawed layers make another pass, which knows their gradients.
        trainable = sum(p.requires_grad for p in self.students[name].parameters()) if torch.is_grad_enabled() else 0
        key = (name, self._calls, image.shape, image.dtype, trainable, autocast)
        if key not in self._passes and sum(name == recorded[0] for recorded in self._passes) < MOST_PASSES:
            network = self.students[name]
            self._passes[key] = RecordedPass(functools.partial(_run, network, autocast), network, image)
        return self._passes.get(key)


class RecordedPass:
    """One pass of a network, forward and, where gradients are on, backward, as CUDA graphs.

    Recording leaves parameters, buffers and random states as they were.

    Args:
        run: The pass: from an image to tensors.
        network: Whose parameters it uses, and whose buffers it may change.
        image: Images of the shape to record for, (B, C, *S).
    """

    def __init__(self, run: Callable[[Tensor], tuple[Tensor, ...]], network: nn.Module, image: Tensor) -> None:
        self.image = image.detach().clone()
        self.parameters = [p for p in network.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
        with _unchanged(network, image.device):
            self._warm_up(run)
        pool = torch.cuda.graph_pool_handle()
        self.forward_graph = torch.cuda.CUDAGraph()
        self.backward_graph = torch.cuda.CUDAGraph()
        # Threads that load data use the GPU's interface while this one records: only this one must keep to the rules.
        record = functools.partial(torch.cuda.graph, pool=pool, capture_error_mode="thread_local")
        with record(self.forward_graph):
            outputs = run(self.image)
        self.grad_outputs = [torch.zeros_like(output) for output in outputs] if self.parameters else []
        self.grads: list[Tensor | None] = []
        if self.parameters:
            with record(self.backward_graph):
                self.grads = list(_gradients(outputs, self.parameters, self.grad_outputs))
        # The recorded backward pass reads activations from the pool, not through these tensors' histories.
        self.outputs = tuple(output.detach() for output in outputs)

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pass's outputs on ``image``, of the recorded shape."""
        return cast(tuple[Tensor, Tensor], _Replay.apply(self, image, *self.parameters))  # type: ignore[no-untyped-call]

    def _warm_up(self, run: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(WARM_UP_PASSES):
                outputs = run(self.image)
                if self.parameters:
                    _gradients(outputs, self.parameters, [torch.zeros_like(output) for output in outputs])
        torch.cuda.synchronize()


class _Replay(torch.autograd.Function):
    """Replays a recorded pass, forward and backward."""

    @staticmethod
    def forward(ctx: Any, recorded: RecordedPass, image: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        ctx.set_materialize_grads(False)
        recorded.image.copy_(image)
        recorded.forward_graph.replay()
        return tuple(output.detach() for output in recorded.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        recorded: RecordedPass = ctx.recorded
        for buffer, grad in zip(recorded.grad_outputs, grads, strict=True):
            buffer.zero_() if grad is None else buffer.copy_(grad)
        recorded.backward_graph.replay()
        return (None, None, *(None if grad is None else grad.detach() for grad in recorded.grads))


def _run(network: SegmentationNetwork, autocast: torch.dtype | None, image: Tensor) -> tuple[Tensor, ...]:
    """Run a network; autocast keeps no casts of weights, which would be those of the step that was recorded."""
    with torch.autocast("cuda", autocast, enabled=autocast is not None, cache_enabled=False):
        if autocast is None:
            return network.forward_with_features(image)
        return forward_in_half(network, image, autocast)


def _gradients(
    outputs: tuple[Tensor, ...], parameters: Sequence[Tensor], grad_outputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    used = [(output, grad) for output, grad in zip(outputs, grad_outputs, strict=True) if output.requires_grad]
    with torch.autocast("cuda", enabled=False):
        return torch.autograd.grad(
            [output for output, _ in used], parameters, [grad for _, grad in used], allow_unused=True
        )


class _unchanged:  # noqa: N801  used like a function
    """Context that leaves a network's buffers and all random states as they were."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self.buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        self.device = device

    def __enter__(self) -> None:
        self.states = (random.getstate(), torch.get_rng_state(), torch.cuda.get_rng_state(self.device))

    def __exit__(self, *_: object) -> None:
        with torch.no_grad():
            for buffer, before in self.buffers:
                buffer.copy_(before)
        random.setstate(self.states[0])
        torch.set_rng_state(self.states[1])
        torch.cuda.set_rng_state(self.states[2], self.device)
