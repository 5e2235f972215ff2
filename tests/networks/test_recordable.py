"""What CUDA graphs ask of a network, found out without a GPU: its passes leave nothing to the host.

A recorded pass repeats what the GPU did. A number that the host drew, or read from the GPU to decide by, stays what it
was while recording, and copies between the two end the recording. On the meta device, which has shapes alone, whatever
needs a value fails by itself; everything else that involves the host is refused here. The Triton kernels do not run.
"""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.networks.test_sweep import SMALL, outputs, small, with_option


class HostWorkError(Exception):
    """A pass involves the host."""


class NoTensorsOnTheHost(TorchDispatchMode):
    """Refuses every operator, of forward and backward passes, that reads or makes a tensor of the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(isinstance(value, Tensor) and value.is_cpu for value in tree_leaves((args, kwargs, made))):
            raise HostWorkError(f"{func} has a tensor of the CPU")
        return made


class NoCopiesFromTheHost(TorchFunctionMode):
    """Refuses to make tensors of Python's numbers: on a GPU that is a copy, on the meta device it is none."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        index = args[1] if name in {"__getitem__", "__setitem__"} else ()
        lists = [part for part in (index if isinstance(index, tuple) else (index,)) if isinstance(part, list)]
        if name in {"tensor", "as_tensor", "asarray", "from_numpy", "new_tensor"} or lists:
            raise HostWorkError(f"{name} copies Python's numbers to the device")
        return func(*args, **(kwargs or {}))


def random_states():
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def refuse_host_work(run):
    """Run what may be recorded, after a pass that is not: graphs are recorded after some, which may fill caches."""
    run()
    before = random_states()
    with NoTensorsOnTheHost(), NoCopiesFromTheHost():
        run()
    if random_states() != before:
        raise HostWorkError("numbers were drawn on the host")


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in SMALL]
    + [(name, {"deep_supervision": deep}) for name in with_option("deep_supervision") for deep in (False, True)],
)
def test_no_pass_involves_the_host(name, options):
    network = small(name, **options).to("meta").train()
    image = torch.empty(2, 1, 33, 47, device="meta")

    def train():
        made = [*network.forward_with_features(image), *outputs(network, image)]
        torch.autograd.backward([output.square().mean() for output in made])

    refuse_host_work(train)


@pytest.mark.parametrize(
    "offence",
    [
        lambda x: x * random.random(),
        lambda x: x if random.random() < 0.5 else -x,
        lambda x: x * float(np.random.rand()),  # noqa: NPY002
        lambda x: x * torch.rand(()),
        lambda x: x * torch.rand(3).to(x.device),
        lambda x: x * torch.empty(3).uniform_(0.7, 1.3).to(x.device),
        lambda x: x * F.dropout(torch.ones(3)).to(x.device),
        lambda x: x * torch.tensor(2.0, device=x.device),
        lambda x: x * x.new_tensor([1.0, 2.0, 3.0]),
        lambda x: x[[2, 0, 1]],
        lambda x: x / x.amax().item(),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0],
        lambda x: x.cpu().square(),
    ],
)
def test_work_of_the_host_is_found(offence):
    assert offence(torch.ones(3)).shape == (3,)
    refused = (HostWorkError, RuntimeError, NotImplementedError)
    with pytest.raises(refused, match=r"tensor of the CPU|Python's numbers|drawn on the host|meta"):
        refuse_host_work(lambda: offence(torch.empty(3, device="meta")))


def test_drawing_on_the_device_is_none():
    layers = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.5), nn.AlphaDropout(0.5))
    x = torch.empty(2, 3, 4, 4, device="meta")
    refuse_host_work(lambda: layers(x) * torch.empty_like(x).uniform_() + torch.rand_like(x))
