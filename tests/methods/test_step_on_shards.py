"""An optimizer of divided parameters does to each process's part what it does to whole ones."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from mambaseg.methods.components.optimizers import JointOptimizer, OptimizerConfig, build_optimizer

SHAPES = {"even": (4, 3), "uneven": (3, 2), "left_over": (1,)}
PROCESSES = 2


@pytest.fixture(params=range(PROCESSES))
def mesh(request, device):
    """Two processes of which this is one; the other is never heard of, and nothing here asks it."""
    distributed.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=PROCESSES)
    yield init_device_mesh(device, (PROCESSES,))
    distributed.destroy_process_group()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def part_of(whole, mesh):
    """This process's rows of a tensor, as FSDP2 divides it."""
    rows = whole.chunk(PROCESSES)
    return rows[mesh.get_local_rank()] if mesh.get_local_rank() < len(rows) else whole[:0]


def divided(whole, mesh):
    own = part_of(whole, mesh).clone()
    return DTensor.from_local(own, mesh, [Shard(0)], run_check=False, shape=whole.shape, stride=whole.stride())


def joint(parameters, name, lr=0.1):
    config = OptimizerConfig(name, lr, weight_decay=0.1, decay_vectors=False)
    return JointOptimizer([build_optimizer(parameters.items(), config, "student")])


def train(parameters, optimizer, steps, spread=lambda grad: grad):
    for step in steps:
        for place, parameter in enumerate(parameters.values()):
            generator = torch.Generator().manual_seed(10 * step + place)
            parameter.grad = spread(torch.randn(parameter.shape, generator=generator).to(parameter.device))
        optimizer.step()


def close(part, whole, mesh):
    """Kernels on CPUs round the last elements of a tensor, which do not fill a register, in another way."""
    assert isinstance(part, DTensor)
    assert part.shape == whole.shape
    torch.testing.assert_close(part.to_local(), part_of(whole, mesh), rtol=1e-6, atol=1e-7)


@pytest.fixture
def both(mesh, device):
    """The same parameters, whole and divided."""
    torch.manual_seed(0)
    whole = {name: nn.Parameter(torch.randn(shape, device=device)) for name, shape in SHAPES.items()}
    return whole, {name: nn.Parameter(divided(value.detach(), mesh)) for name, value in whole.items()}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parts_move_and_remember_as_the_whole_does(name, both, mesh):
    whole, parts = both
    expected, found = joint(whole, name), joint(parts, name)
    train(whole, expected, range(3))
    train(parts, found, range(3), lambda grad: divided(grad, mesh))
    for key, parameter in parts.items():
        close(parameter, whole[key], mesh)
        states = found.state[parameter]
        assert states.keys() == expected.state[whole[key]].keys()
        for kept, value in expected.state[whole[key]].items():
            if value.ndim:
                close(states[kept], value, mesh)
            else:
                assert torch.equal(states[kept], value)
    assert all(isinstance(value, DTensor) for group in found.param_groups for value in group["params"])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_loaded_state_is_gone_on_from(name, both, mesh):
    def spread(grad):
        return divided(grad, mesh)

    parts = both[1]
    optimizer = joint(parts, name)
    train(parts, optimizer, range(2), spread)
    resumed_parts = copy.deepcopy(parts)
    resumed = joint(resumed_parts, name)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(parts, optimizer, range(2, 4), spread)
    train(resumed_parts, resumed, range(2, 4), spread)
    for key, parameter in parts.items():
        assert torch.equal(parameter.to_local(), resumed_parts[key].to_local())


def test_parameters_without_gradients_stay_and_leave_no_state(both):
    parts = both[1]
    before = copy.deepcopy(parts)
    optimizer = joint(parts, "sgd")
    optimizer.step()
    assert all(torch.equal(parts[key].to_local(), before[key].to_local()) for key in parts)
    assert not optimizer.state
