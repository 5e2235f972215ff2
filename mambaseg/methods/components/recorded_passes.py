"""Passes of several networks as two CUDA graphs, forward and backward, in which the networks run side by side."""

import contextlib
import functools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from mambaseg.kernels.launch import compiling_together
from mambaseg.methods.components.gradient_average import GatheredGradients, gather_gradients
from mambaseg.methods.components.half_weights import forward_in_half
from mambaseg.networks import SegmentationNetwork

WARM_UP_PASSES = 3
"""Passes before recording: libraries choose algorithms and take their workspaces."""

Output = tuple[Tensor, Tensor]


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

    def forward(self, image: Tensor) -> Output:
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


def longest_first(runs: Mapping[str, Pass], image: Tensor) -> list[str]:
    """Return the names of passes, the one that takes the longest alone first.

    Args:
        runs: The passes by name; they are left as they were.
        image: Images to run them on, (B, C, *S).
    """
    stream = torch.cuda.Stream(image.device)  # type: ignore[no-untyped-call]
    networks = {name: _Network(run, stream, image) for name, run in runs.items()}
    with _unchanged(runs.values(), image.device):
        # Only once what the passes change has been copied.
        stream.wait_stream(torch.cuda.current_stream(image.device))
        with torch.cuda.stream(stream):
            seconds = _seconds_alone(networks)
    # What is recorded next could not take the memory of this stream's passes.
    torch.cuda.empty_cache()
    return sorted(seconds, key=lambda name: -seconds[name])


def _seconds_alone(networks: "Mapping[str, _Network]") -> dict[str, float]:
    with compiling_together():
        for network in networks.values():
            network.run_once()
    seconds = {}
    for name, network in networks.items():
        torch.cuda.synchronize()
        begin = time.perf_counter()
        network.run_once()
        torch.cuda.synchronize()
        seconds[name] = time.perf_counter() - begin
    return seconds


class RecordedPasses:
    """One pass of each network, forward and, where gradients are on, backward, as CUDA graphs.

    Each network is recorded on a stream of its own, so that its kernels wait for nobody else's. Random numbers are
    those of passes in turn: each network's come after those of the one before. Recording leaves parameters, buffers
    and random states as they were.

    Args:
        runs: The passes by name. Their parameters are read, their buffers may change.
        image: Images of the shape to record for, (B, C, *S).
        streams: A stream for each.
        gathered: Leave the gradients one after the other in memory, to be averaged over processes in one piece.
    """

    def __init__(
        self, runs: Mapping[str, Pass], image: Tensor, streams: Mapping[str, torch.cuda.Stream], gathered: bool
    ) -> None:
        self.image = image.detach().clone()
        self.networks = {name: _Network(run, streams[name], self.image) for name, run in runs.items()}
        with _unchanged(runs.values(), image.device):
            self._warm_up()
        # Threads that load data use the GPU's interface while this one records: only this one must keep to the rules.
        pool = torch.cuda.graph_pool_handle()
        record = functools.partial(torch.cuda.graph, pool=pool, capture_error_mode="thread_local")
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.gathered: list[GatheredGradients] = []
        with record(self.forward_graph):
            self._side_by_side(_Network.forward)
        if self.parameters:
            with record(self.backward_graph):
                self._side_by_side(_Network.backward)
                if gathered:
                    self._gather()
        for network in self.networks.values():
            network.forget_history()

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters of all networks."""
        return [parameter for network in self.networks.values() for parameter in network.parameters]

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Where a replay leaves the networks' outputs, two of each."""
        return tuple(output for network in self.networks.values() for output in network.outputs)

    @property
    def grad_outputs(self) -> list[Tensor]:
        """Where a backward replay reads the outputs' gradients."""
        return [grad for network in self.networks.values() for grad in network.grad_outputs]

    @property
    def grads(self) -> list[Tensor | None]:
        """Where it leaves those of ``parameters``; None for what no output depends on."""
        return [grad for network in self.networks.values() for grad in network.grads]

    def __call__(self, image: Tensor) -> dict[str, Output]:
        """Return each network's outputs on ``image``, of the recorded shape."""
        outputs: tuple[Tensor, ...] = _Replay.apply(self, image, *self.parameters)  # type: ignore[no-untyped-call]
        return dict(zip(self.networks, zip(outputs[::2], outputs[1::2], strict=True), strict=True))

    def release(self) -> None:
        """Give the memory back, after which the passes cannot be replayed.

        Waiting until nobody holds it would not do: after an exception the frames of its traceback do, and so does
        whatever loss they hold.
        """
        self.forward_graph.reset()
        self.backward_graph.reset()
        self.gathered = []
        for network in self.networks.values():
            network.release()

    def _warm_up(self) -> None:
        torch.cuda.synchronize()
        for _ in range(WARM_UP_PASSES):
            self._side_by_side(_Network.run_once)
        torch.cuda.synchronize()

    def _side_by_side(self, work: "Callable[[_Network], None]") -> None:
        """Do something with each network on its stream, after what the current stream has to do and before its next."""
        main = torch.cuda.current_stream(self.image.device)
        forked: list[torch.cuda.Stream] = []
        try:
            for network in self.networks.values():
                network.stream.wait_stream(main)
                forked.append(network.stream)
                with torch.cuda.stream(network.stream):
                    work(network)
        finally:
            # Also after an error: a recording cannot be ended while a stream of it is apart.
            for stream in forked:
                main.wait_stream(stream)

    def _gather(self) -> None:
        made = [(grad, p) for grad, p in zip(self.grads, self.parameters, strict=True) if grad is not None]
        self.gathered, views = gather_gradients([grad for grad, _ in made], [parameter for _, parameter in made])
        moved = iter(views)
        for network in self.networks.values():
            network.grads = [None if grad is None else next(moved) for grad in network.grads]


class _Network:
    """What is kept of one network's pass.

    Args:
        run: The pass.
        stream: Where it is recorded. What cuBLAS works in belongs to the stream of a recording: of two passes that are
            recorded on one stream and run side by side, each would write into the other's sums.
        image: Where it reads the images.
    """

    def __init__(self, run: Pass, stream: torch.cuda.Stream, image: Tensor) -> None:
        self.run = run
        self.stream = stream
        self.image = image
        self.trained = run.trained()
        by_name = dict(run.named_parameters())
        self.parameters = [by_name[name] for name in self.trained]
        self.outputs: tuple[Tensor, ...] = ()
        self.grad_outputs: list[Tensor] = []
        self.grads: list[Tensor | None] = []

    def forward(self) -> None:
        self.outputs = functional_call(self.run, self.trained, (self.image,))
        self.grad_outputs = [torch.zeros_like(output) for output in self.outputs] if torch.is_grad_enabled() else []

    def backward(self) -> None:
        if self.trained:
            self.grads = list(_gradients(self.outputs, list(self.trained.values()), self.grad_outputs))

    def run_once(self) -> None:
        self.forward()
        self.backward()
        self.release()

    def forget_history(self) -> None:
        """Keep the outputs alone: the recorded backward pass reads activations from the graphs' memory."""
        self.outputs = tuple(output.detach() for output in self.outputs)

    def release(self) -> None:
        self.outputs, self.grad_outputs, self.grads = (), [], []


class _Replay(torch.autograd.Function):
    """Replays recorded passes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, recorded: RecordedPasses, image: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.recorded = recorded
        ctx.set_materialize_grads(False)
        recorded.image.copy_(image)
        recorded.forward_graph.replay()
        return tuple(output.detach() for output in recorded.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        recorded: RecordedPasses = ctx.recorded
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
def _unchanged(networks: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Leave networks' buffers and all random states as they were."""
    buffers = [(buffer, buffer.clone()) for network in networks for buffer in network.buffers()]
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
