"""Recorded passes compute what plain passes compute."""

import contextlib
import gc
import re
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mambaseg.methods.components import student_graphs
from mambaseg.methods.components.recorded_passes import Pass
from mambaseg.methods.components.student_graphs import StudentGraphs, can_be_recorded
from mambaseg.networks import SegmentationNetwork, create_network, list_networks
from tests.networks.test_sweep import small

NAMES = ("unet", "mamba_unet", "swin_unet")
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": {"channels": [8, 8, 16, 16, 16]},
    "mamba_unet": {"embed_dim": 32},
    "swin_unet": {"embed_dim": 24},
}
RECORDED: dict[str, dict[str, Any]] = {
    "uvm_net": {"grid": 16},
    "segmamba": {"dims": 2},
    "nnmamba_seg": {"dims": 2},
    "nnmamba_landmark": {"dims": 2},
}
"""Options of networks that are for volumes by default, or have a billion parameters."""
SIZE = 64


def students(*names: str) -> dict[str, SegmentationNetwork]:
    torch.manual_seed(0)
    built = {name: create_network(name, 1, 4, **OPTIONS[name]) for name in names}
    return {name: network.cuda().train() for name, network in built.items()}  # type: ignore[misc]


def images(seed: int, batch: int = 4) -> Tensor:
    return torch.randn(batch, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).cuda()


def plain(networks: dict[str, SegmentationNetwork], image: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: network.forward_with_features(image) for name, network in networks.items()}


Networks = dict[str, SegmentationNetwork]


def train(networks: Networks, graphs: StudentGraphs | None, precision: torch.dtype) -> list[float]:
    """Train four steps on different images and return the losses."""
    optimizer = torch.optim.SGD([p for n in networks.values() for p in n.parameters()], lr=0.05, momentum=0.9)
    losses = []
    for step in range(4):
        torch.manual_seed(100 + step)
        if graphs is not None:
            graphs.start_step()
        image = images(step)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            outputs = plain(networks, image) if graphs is None else graphs(image)
            target = (image[:, 0] > 0).long()
            losses_by_name = [F.cross_entropy(output[0].float(), target) for output in outputs.values()]
            loss = torch.stack(losses_by_name).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("names", [*((name,) for name in NAMES), NAMES])
def test_training_by_graphs_equals_plain_training(
    names: tuple[str, ...], gathered: bool, precision: torch.dtype
) -> None:
    one, other = students(*names), students(*names)
    expected = train(one, None, precision)
    found = train(other, StudentGraphs(other, gathered), precision)
    # Not bit-equal: convolutions add up their gradients in no fixed order.
    assert found == pytest.approx(expected, rel=1e-3 if precision == torch.float32 else 2e-2)
    for name in names:
        for (key, a), b in zip(one[name].state_dict().items(), other[name].state_dict().values(), strict=True):
            if key.endswith("num_batches_tracked"):
                assert a == b  # recording must not count as training
            else:
                error = (a.float() - b.float()).norm() / a.float().norm().clamp(min=0.5)
                assert error < (1e-2 if precision == torch.float32 else 5e-2), f"{name}: {key}"


@pytest.mark.gpu
def test_dropout_draws_what_the_plain_pass_draws() -> None:
    networks = students("unet")
    graphs = StudentGraphs(networks)
    image = images(0)
    with torch.no_grad():
        for seed in (1, 2):
            torch.manual_seed(seed)
            expected = plain(networks, image)["unet"][0].clone()
            torch.manual_seed(seed)
            graphs.start_step()
            found = graphs(image)["unet"][0].clone()
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(found, plain(networks, image)["unet"][0], atol=1e-3)


@pytest.mark.gpu
def test_recording_leaves_random_states_and_buffers_alone() -> None:
    networks = students("unet")
    before = {key: value.clone() for key, value in networks["unet"].named_buffers()}
    torch.manual_seed(7)
    graphs = StudentGraphs(networks)
    graphs._recorded(images(0))
    drawn = torch.rand(3, device="cuda")
    torch.manual_seed(7)
    torch.testing.assert_close(drawn, torch.rand(3, device="cuda"), rtol=0, atol=0)
    for key, value in networks["unet"].named_buffers():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_streams_are_joined_after_an_error_too(pretended_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []

    def stream(*_: object) -> Any:
        made = SimpleNamespace()
        made.wait_stream = lambda other: waits.append((made, other))
        return made

    main = stream()
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: main)
    graphs = StudentGraphs({name: small(name).train() for name in ("unet", "mamba_unet")})
    graphs(torch.randn(1, 1, SIZE, SIZE))
    (recorded,) = graphs._passes.values()
    waits.clear()

    def fail(network: object) -> None:
        raise MemoryError("full")

    with pytest.raises(MemoryError, match="full"):
        recorded._side_by_side(fail)
    forked = graphs._streams["unet"]
    assert waits == [(forked, main), (main, forked)]


@pytest.mark.parametrize("gathered", [False, True])
def test_students_recorded_together_learn_what_they_learn_alone(pretended_gpu: None, gathered: bool) -> None:
    networks = {name: small(name).train() for name in ("unet", "mamba_unet")}
    image = torch.randn(2, 1, SIZE, SIZE)
    graphs = StudentGraphs(networks, gathered)
    runs = {"plain": lambda: plain(networks, image), "recorded": lambda: graphs(image)}
    outputs, grads = {}, {}
    for run, outputs_of in runs.items():
        torch.manual_seed(3)
        outputs[run] = outputs_of()
        torch.stack([logits.square().mean() for logits, _ in outputs[run].values()]).sum().backward()
        grads[run] = [p.grad for network in networks.values() for p in network.parameters()]
        for network in networks.values():
            network.zero_grad()
    # The recorded backward pass was computed with gradients of zero, so only where its results lie can be seen here.
    assert [grad.shape for grad in grads["recorded"]] == [grad.shape for grad in grads["plain"]]
    memory = {grad.untyped_storage().data_ptr() for grad in grads["recorded"]}
    assert (
        memory == {gradients.values.data_ptr() for gradients in graphs.gathered}
        if gathered
        else len(memory) > len(networks)
    )
    for name in networks:
        assert outputs["recorded"][name][0].shape == outputs["plain"][name][0].shape


def test_a_frozen_student_runs_beside_one_that_learns(pretended_gpu: None) -> None:
    networks = {"frozen": small("unet").train().requires_grad_(False), "learning": small("mamba_unet").train()}
    outputs = StudentGraphs(networks)(torch.randn(2, 1, SIZE, SIZE))
    torch.stack([logits.square().mean() for logits, _ in outputs.values()]).sum().backward()
    assert all(parameter.grad is None for parameter in networks["frozen"].parameters())
    assert_learns(networks["learning"])


@pytest.mark.gpu
def test_two_calls_of_a_step_keep_their_outputs_apart() -> None:
    networks = students("unet", "mamba_unet")
    graphs = StudentGraphs(networks)
    first, second = graphs(images(0)), graphs(images(1))
    kept = {name: output[0].detach().clone() for name, output in first.items()}
    sum(output[0].float().square().mean() for output in second.values()).backward()
    for name, output in first.items():
        torch.testing.assert_close(output[0].detach(), kept[name], rtol=0, atol=0)
        assert not torch.allclose(second[name][0], kept[name])


def assert_learns(network: nn.Module) -> None:
    """Every parameter has a gradient but those of auxiliary heads, which students' passes never compute."""
    assert isinstance(network, SegmentationNetwork)
    idle = network.auxiliary_keys if network.deep_supervision else None
    expected = [key for key, _ in network.named_parameters() if idle is None or not re.match(idle, key)]
    assert [key for key, p in network.named_parameters() if p.grad is not None and p.grad.isfinite().all()] == expected


@pytest.mark.gpu
@pytest.mark.parametrize("name", list_networks("segment"))
def test_every_network_can_be_recorded(name: str) -> None:
    network = create_network(name, 1, 3, **RECORDED.get(name, {}))
    assert network.spatial_axes == 2
    networks = {name: network.cuda().train()}
    output, _ = StudentGraphs(networks)(images(0, batch=2))[name]  # type: ignore[arg-type]
    output.float().square().mean().backward()
    assert_learns(network)


def test_the_student_that_takes_longest_goes_first(pretended_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[int, object] = {}

    def stream(device: torch.device, priority: int = 0) -> object:
        made[priority] = SimpleNamespace(wait_stream=lambda _: None, priority=priority)
        return made[priority]

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    graphs = StudentGraphs({name: small(name).train() for name in ("unet", "mamba_unet")})
    graphs(torch.randn(1, 1, SIZE, SIZE))
    assert {name: stream.priority for name, stream in graphs._streams.items()} == {"mamba_unet": -1, "unet": 0}


class PretendedGraph:
    """A CUDA graph that replays nothing: what was recorded was computed, and stays."""

    is_reset = False

    def replay(self) -> None:
        pass

    def reset(self) -> None:
        self.is_reset = True


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record on the CPU; everything but streams and graphs is real."""

    def nothing(*_: object, **__: object) -> Any:
        return contextlib.nullcontext()

    for name in ("graph", "graph_pool_handle", "synchronize", "stream", "set_rng_state"):
        monkeypatch.setattr(torch.cuda, name, nothing)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendedGraph)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: SimpleNamespace(wait_stream=nothing))


@pytest.mark.parametrize("name", list_networks("segment"))
def test_every_network_learns_the_same_by_plain_and_by_recorded_passes(pretended_gpu: None, name: str) -> None:
    """What a GPU would say of the gradients' absence; of work of the host: ``tests/networks/test_recordable.py``."""
    network, image = small(name).train(), torch.randn(2, 1, SIZE, SIZE)
    for run in (StudentGraphs({name: network}), lambda image: plain({name: network}, image)):
        network.zero_grad()
        run(image)[name][0].square().mean().backward()
        assert_learns(network)


def test_released_passes_hold_nothing_though_somebody_holds_them(pretended_gpu: None) -> None:
    network = create_network("unet", 1, 4, **OPTIONS["unet"])
    assert isinstance(network, SegmentationNetwork)
    graphs = StudentGraphs({"unet": network})
    loss = graphs(torch.randn(2, 1, 32, 32))["unet"][0].sum()
    (held,) = graphs._passes.values()
    memory = [weakref.ref(tensor) for tensor in (*held.outputs, *held.grad_outputs, *held.grads) if tensor is not None]
    assert len(memory) > 20
    graphs.release()
    gc.collect()
    assert not [tensor for tensor in memory if tensor() is not None]
    assert held.forward_graph.is_reset
    assert held.backward_graph.is_reset
    assert not graphs._passes
    assert not graphs._streams
    del loss
    graphs(torch.randn(2, 1, 32, 32))
    assert list(graphs._passes.values()) != [held]


@pytest.mark.gpu
def test_released_passes_give_memory_back_though_somebody_holds_them() -> None:
    graphs = StudentGraphs(students("unet"))
    loss = graphs(images(0))["unet"][0].sum()
    held = list(graphs._passes.values())
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    graphs.release()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before
    with pytest.raises(RuntimeError):
        held[0].forward_graph.replay()
    assert loss.isfinite()


@pytest.mark.gpu
def test_students_side_by_side_do_not_write_into_each_other() -> None:
    """Products that are summed in pieces keep the pieces in memory that belongs to the stream of the recording."""
    networks = {
        "first": create_network("swin_unet", 1, 4).cuda().eval(),
        "second": create_network("mamba_unet", 1, 4).cuda().eval(),
    }
    graphs = StudentGraphs(networks)  # type: ignore[arg-type]
    image = torch.randn(8, 1, 224, 224, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        expected = plain(networks, image)  # type: ignore[arg-type]
        for _ in range(50):
            graphs.start_step()
            for name, outputs in graphs(image).items():
                torch.testing.assert_close(outputs[0], expected[name][0], rtol=2e-2, atol=2e-2)
    assert len(graphs._streams) == len(networks)


@pytest.mark.gpu
def test_students_side_by_side_draw_what_they_draw_one_after_the_other() -> None:
    networks = {"unet": create_network("unet", 1, 4).cuda(), "mamba_unet": create_network("mamba_unet", 1, 4).cuda()}
    graphs = StudentGraphs(networks)  # type: ignore[arg-type]
    image = torch.randn(8, 1, 224, 224, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for seed in range(20):
            torch.manual_seed(seed)
            expected = plain(networks, image)["unet"][0].float()  # type: ignore[arg-type]
            after = torch.cuda.get_rng_state()
            torch.manual_seed(seed)
            graphs.start_step()
            found = graphs(image)["unet"][0].float()
            assert (found - expected).norm() < 0.05 * expected.norm()
            assert torch.equal(torch.cuda.get_rng_state(), after)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("name", ["unet", "mamba_unet", "swin_unet", "umamba_bot"])
def test_what_is_recorded_is_the_plain_pass_without_its_parameters(name: str, precision: torch.dtype | None) -> None:
    torch.manual_seed(0)
    network = create_network(name, 1, 4, **OPTIONS.get(name, {}))
    assert isinstance(network, SegmentationNetwork)
    frozen = next(network.parameters()).requires_grad_(False)
    run, image = Pass(network, precision), torch.randn(2, 1, 32, 32)
    trained = run.trained()
    torch.manual_seed(1)
    found = functional_call(run, trained, (image,))
    grads = torch.autograd.grad([output.float().square().mean() for output in found], list(trained.values()))
    assert all(parameter.grad is None for parameter in network.parameters())
    torch.manual_seed(1)
    with torch.autocast("cpu", precision, enabled=precision is not None, cache_enabled=False):
        expected = network.forward_with_features(image)
    torch.autograd.backward([output.float().square().mean() for output in expected])
    assert all(map(torch.equal, found, expected))
    names = [key for key, parameter in run.named_parameters() if parameter is not frozen]
    assert list(trained) == names
    for key, grad in zip(names, grads, strict=True):
        assert torch.equal(grad, run.get_parameter(key).grad), key
        assert trained[key].data_ptr() == run.get_parameter(key).data_ptr()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the students of which passes are recorded; nothing is, so it needs no GPU."""
    made: list[str] = []

    class NoPasses:
        def __init__(self, runs: dict[str, Pass], image: Tensor, streams: object, gathered: bool) -> None:
            made.extend(runs)

    monkeypatch.setattr(student_graphs, "RecordedPasses", NoPasses)
    monkeypatch.setattr(StudentGraphs, "_streams_of", lambda graphs, runs, image: {})
    return made


def test_other_trained_layers_make_another_pass(recorded: list[str]) -> None:
    network = create_network("unet", 1, 4, **OPTIONS["unet"])
    assert isinstance(network, SegmentationNetwork)
    graphs = StudentGraphs({"unet": network})
    first, second, *_ = network.parameters()
    passes = []
    for frozen in (first, second, first):
        network.requires_grad_(True)
        frozen.requires_grad_(False)
        passes.append(graphs._recorded(torch.zeros(2, 1, 32, 32)))
    assert passes[0] is passes[2] is not passes[1]
    assert recorded == ["unet", "unet"]


def test_images_of_many_sizes_run_the_plain_pass(recorded: list[str]) -> None:
    network = create_network("unet", 1, 4, **OPTIONS["unet"])
    assert isinstance(network, SegmentationNetwork)
    graphs = StudentGraphs({"unet": network})
    sizes = range(1, student_graphs.MOST_PASSES + 2)
    *some, last = [graphs._recorded(torch.zeros(size, 1, 32, 32)) for size in sizes]
    assert None not in some
    assert last is None


def test_recomputed_and_synchronised_networks_are_not_recorded(recorded: list[str]) -> None:
    recomputed = create_network("mamba_unet", 1, 4, **OPTIONS["mamba_unet"], checkpointing=True)
    stages = create_network("umamba_bot", 1, 4, checkpointing=True)
    plain_unet = create_network("unet", 1, 4, **OPTIONS["unet"])
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(create_network("unet", 1, 4, **OPTIONS["unet"]))
    assert isinstance(recomputed, SegmentationNetwork)
    assert isinstance(plain_unet, SegmentationNetwork)
    assert can_be_recorded(plain_unet)
    assert not any(can_be_recorded(network) for network in (recomputed, stages, synchronised))
    graphs = StudentGraphs({"recomputed": recomputed, "unet": plain_unet})
    graphs._recorded(torch.zeros(2, 1, 32, 32))
    assert recorded == ["unet"]
    assert StudentGraphs({"recomputed": recomputed})._recorded(torch.zeros(2, 1, 32, 32)) is None
