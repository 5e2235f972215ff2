"""Students' passes as CUDA graphs: recorded once, then each is one call to the GPU, and students run side by side."""

import contextlib
import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from mambaseg.kernels.launch import compiling_together
from mambaseg.methods.components.half_weights import forward_in_half
from mambaseg.networks import SegmentationNetwork

MOST_PASSES = 6
"""Recorded passes of a student: each keeps its activations' memory, so images of many shapes run the plain pass."""
WARM_UP_PASSES = 3
"""Passes before recording: kernels are compiled, libraries choose algorithms and take their workspaces."""
DRAWS_IN_TURN = torch.__version__ < "2.13"
"""Whether all graphs read seed and offset of random numbers in one place, which the next replay overwrites."""


class StudentGraphs:
    """Runs students as recorded CUDA graphs.

    A Mamba network launches a few thousand small kernels a step, which takes the host longer than the GPU. A recorded
    pass costs the host one launch. Results are those of the plain pass: the same kernels on the same numbers; dropout
    draws from the same generator, of which a recorded pass advances the state by as much at every replay.

    Outputs and gradients lie in the graph's memory, and the next replay overwrites them. So a pass belongs to one call
    within a step: a second one on images of the same shape is recorded in memory of its own. Gradients become ``.grad``
    of parameters as they are; they must be used up before the next step's forward pass, which rules out accumulation
    over batches. Students for which ``can_be_recorded`` is false run the plain pass.

    Args:
        students: The networks by name. Their parameters must stay where they are in memory, as loading a state dict
            and optimizers leave them.
    """

    def __init__(self, students: Mapping[str, SegmentationNetwork]) -> None:
        self.students = dict(students)
        self._recordable = {name for name, network in self.students.items() if can_be_recorded(network)}
        self._passes: dict[tuple[Any, ...], RecordedPass] = {}
        self._streams: dict[str, torch.cuda.Stream] = {}
        self._calls = 0

    def start_step(self) -> None:
        """Begin a training step: its calls may overwrite what those of the last one returned."""
        self._calls = 0

    def release(self) -> None:
        """Give the graphs' memory back now, whoever still holds them; the next call records anew."""
        for recorded in self._passes.values():
            recorded.release()
        self._passes.clear()
        self._streams.clear()

    def __call__(self, image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return every student's ``forward_with_features(image)``, differentiable once.

        Args:
            image: (B, C, *S) on a GPU.
        """
        main = torch.cuda.current_stream(image.device)
        before = main
        outputs = {}
        for name in self.students:
            recorded = self._recorded(name, image)
            if recorded is None:
                outputs[name] = self.students[name].forward_with_features(image)
                continue
            recorded.stream.wait_stream(before)
            with torch.cuda.stream(recorded.stream):
                outputs[name] = recorded(image)
            if DRAWS_IN_TURN:
                before = recorded.stream
        for stream in self._streams.values():
            main.wait_stream(stream)
        self._calls += 1
        return outputs

    def _stream(self, name: str, device: torch.device) -> torch.cuda.Stream:
        if name not in self._streams:
            self._streams[name] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return self._streams[name]

    def _recorded(self, name: str, image: Tensor) -> "RecordedPass | None":
        if name not in self._recordable:
            return None
        network = self.students[name]
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        # Frozen or thawed layers make another pass, which knows whose gradients it has.
        trainable = tuple(p.requires_grad for p in network.parameters()) if torch.is_grad_enabled() else ()
        key = (name, self._calls, image.shape, image.dtype, trainable, autocast)
        if key not in self._passes and sum(name == recorded[0] for recorded in self._passes) < MOST_PASSES:
            self._passes[key] = RecordedPass(Pass(network, autocast), image, self._stream(name, image.device))
        return self._passes.get(key)


def can_be_recorded(network: nn.Module) -> bool:
    """Tell whether graphs of a network's passes compute what the passes do.

    A recomputed block would draw other dropout in the backward graph than it did in the forward graph, where torch
    allows the recording at all. Batch norm over processes is a collective: processes that replay several students side
    by side would meet in it in different orders.
    """
    return not any(
        getattr(part, "checkpointing", False) or isinstance(part, nn.SyncBatchNorm) for part in network.modules()
    )


class Pass(nn.Module):
    """What is recorded of a network.

    Args:
        network: The network.
        autocast: The type that autocast computes in; None where it is off.
    """

    def __init__(self, network: SegmentationNetwork, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.network = network
        self.autocast = autocast

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``forward_with_features(image)``; autocast keeps no casts of weights, which would be of one step."""
        if self.autocast is None:
            with torch.autocast(image.device.type, enabled=False):
                return self.network.forward_with_features(image)
        with torch.autocast(image.device.type, self.autocast, cache_enabled=False):
            return forward_in_half(self.network, image, self.autocast)

    def trained(self) -> dict[str, Tensor]:
        """Return stand-ins for the trained parameters, in the same memory; none where gradients are off.

        What differentiates the parameters themselves remembers a stream, which DDP chose and keeps: to record there is
        not allowed.
        """
        if not torch.is_grad_enabled():
            return {}
        return {name: p.detach().requires_grad_() for name, p in self.named_parameters() if p.requires_grad}


class RecordedPass:
    """One pass of a network, forward and, where gradients are on, backward, as CUDA graphs.

    Recording leaves parameters, buffers and random states as they were.

    Args:
        run: The pass. Its parameters are read, its buffers may change.
        image: Images of the shape to record for, (B, C, *S).
        stream: Where it is recorded and must be replayed. What cuBLAS works in belongs to the stream of a recording: of
            two passes recorded on one stream and replayed on two, each would write into the other's sums.
    """

    def __init__(self, run: Pass, image: Tensor, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self.image = image.detach().clone()
        trained = run.trained()
        by_name = dict(run.named_parameters())
        self.parameters = [by_name[name] for name in trained]
        with _unchanged(run, image.device):
            self._warm_up(run, trained)
        pool = torch.cuda.graph_pool_handle()
        self.forward_graph = torch.cuda.CUDAGraph()
        self.backward_graph = torch.cuda.CUDAGraph()
        # Threads that load data use the GPU's interface while this one records: only this one must keep to the rules.
        record = functools.partial(torch.cuda.graph, pool=pool, stream=stream, capture_error_mode="thread_local")
        with record(self.forward_graph):
            outputs = functional_call(run, trained, (self.image,))
        self.grad_outputs = [torch.zeros_like(output) for output in outputs] if trained else []
        self.grads: list[Tensor | None] = []
        if trained:
            with record(self.backward_graph):
                self.grads = list(_gradients(outputs, list(trained.values()), self.grad_outputs))
        # The recorded backward pass reads activations from the pool, not through these tensors' histories.
        self.outputs: tuple[Tensor, ...] = tuple(output.detach() for output in outputs)

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pass's outputs on ``image``, of the recorded shape; to be called on its stream."""
        return cast(tuple[Tensor, Tensor], _Replay.apply(self, image, *self.parameters))  # type: ignore[no-untyped-call]

    def release(self) -> None:
        """Give the memory back, after which the pass cannot be replayed.

        Waiting until nobody holds it would not do: after an exception the frames of its traceback do, and so does
        whatever loss they hold.
        """
        self.forward_graph.reset()
        self.backward_graph.reset()
        self.outputs, self.grad_outputs, self.grads = (), [], []

    def _warm_up(self, run: Pass, trained: dict[str, Tensor]) -> None:
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            with compiling_together():
                self._run_once(run, trained)
            for _ in range(WARM_UP_PASSES):
                self._run_once(run, trained)
        torch.cuda.synchronize()

    def _run_once(self, run: Pass, trained: dict[str, Tensor]) -> None:
        outputs = functional_call(run, trained, (self.image,))
        if trained:
            _gradients(outputs, list(trained.values()), [torch.zeros_like(output) for output in outputs])


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


def _gradients(
    outputs: tuple[Tensor, ...], parameters: Sequence[Tensor], grad_outputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    used = [(output, grad) for output, grad in zip(outputs, grad_outputs, strict=True) if output.requires_grad]
    with torch.autocast("cuda", enabled=False):
        return torch.autograd.grad(
            [output for output, _ in used], parameters, [grad for _, grad in used], allow_unused=True
        )


@contextlib.contextmanager
def _unchanged(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Leave a network's buffers and all random states as they were."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    states = random.getstate(), torch.get_rng_state(), torch.cuda.get_rng_state(device)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        random.setstate(states[0])
        torch.set_rng_state(states[1])
        torch.cuda.set_rng_state(states[2], device)
