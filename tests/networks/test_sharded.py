"""Sharding changes where the weights of a network lie, and nothing else: one sweep over every registered network.

One process is enough to find weights that are read where FSDP2 has not gathered them: they are DTensors there too.
"""

import copy
import inspect

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mambaseg.networks import create_network
from mambaseg.networks.register import NETWORKS
from mambaseg.sharding import SMALLEST_UNIT, _blocks, _own, _smallest_unit, shard
from tests.networks.test_sweep import SMALL, small

pytestmark = pytest.mark.filterwarnings(r"error:FSDP2-wrapped module \(.*\) returned a view tensor")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = tmp_path_factory.mktemp("sharded") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def as_built(name):
    return {}


def the_other_way(name):
    """Every switch that decides which methods and weights a pass takes, turned."""
    defaults = {key: option.default for key, option in inspect.signature(NETWORKS.get(name)).parameters.items()}
    turned = {key: not defaults[key] for key in ("deep_supervision", "checkpointing") if key in defaults}
    return turned | ({"skips": "published"} if "skips" in defaults else {})


def forward(network, x):
    logits = network(x)
    return logits if isinstance(logits, list) else [logits]


def forward_with_features(network, x):
    return list(network.forward_with_features(x))


def passes(network, enter):
    """The outputs and gradients of two training steps: the second one finds what the first one's backward pass left."""
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    seen = {}
    for step in range(2):
        torch.manual_seed(step)  # dropout and stochastic depth
        outputs = enter(network, x)
        sum(output.square().mean() for output in outputs).backward()
        seen |= {f"output {number} of step {step}": output.detach() for number, output in enumerate(outputs)}
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in gradients.items()}
    return seen | whole | dict(network.named_buffers())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("enter", [forward, forward_with_features])
@pytest.mark.parametrize("options", [as_built, the_other_way])
@pytest.mark.parametrize("smallest_unit", [1, SMALLEST_UNIT])
def test_a_sharded_network_computes_and_learns_as_a_whole_one(name, enter, options, smallest_unit, mesh):
    network = small(name, **options(name)).train()
    sharded = copy.deepcopy(network)
    shard(torch.nn.ModuleDict({"student": sharded}), mesh, smallest_unit)
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    assert (sum(isinstance(part, FSDPModule) for part in sharded.modules()) > 1) == (smallest_unit == 1)
    expected, found = passes(network, enter), passes(sharded, enter)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda told, key=key: f"{key}: {told}")


def test_units_are_the_large_blocks_inner_ones_first():
    network = small("swin_umamba")
    blocks = _blocks(network, 300)
    sizes = {block: sum(p.numel() for p in block.parameters()) for block in blocks}
    assert 300 <= min(sizes.values()) < 1000
    inner = [(part, block) for block in blocks for part in block.modules() if part is not block and part in sizes]
    assert inner
    assert all(blocks.index(part) < blocks.index(block) for part, block in inner)
    assert _blocks(network, 10**9) == []


@pytest.mark.parametrize(("width", "units"), [(96, 8), (384, 8)])
def test_a_wide_network_has_no_more_units_than_a_narrow_one(width, units):
    with torch.device("meta"):
        network = create_network("mamba_unet", 1, 4, embed_dim=width)
    assert len(_blocks(network, _smallest_unit(network))) == units


def test_views_among_outputs_become_tensors_of_their_own():
    weight = torch.ones(2, 3, requires_grad=True)
    whole = weight * 2
    outputs = _own([whole, whole.T, whole.detach().T, None])
    assert outputs[0] is whole
    assert [own is not None and own._is_view() for own in outputs] == [False, False, True, False]
    assert torch.equal(outputs[1], whole.T)


def test_a_network_that_is_not_trained_reads_its_weights_anew_in_each_pass(mesh):
    """No backward pass frees them: a teacher would go on with the weights of its first pass."""
    network = small("unet").eval().requires_grad_(False)
    sharded = copy.deepcopy(network)
    shard(torch.nn.ModuleDict({"teacher": sharded}), mesh)
    x = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        torch.testing.assert_close(sharded(x), network(x))
        for own, whole in zip(sharded.parameters(), network.parameters(), strict=True):
            own.to_local().mul_(0.5)
            whole.mul_(0.5)
