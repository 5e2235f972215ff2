"""Gradients and buffers are the same in every process afterwards: means, and those of the first."""

from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from mambaseg.methods.components.gradient_average import average_gradients, gather_gradients
from mambaseg.methods.components.replicas import Replicas
from mambaseg.methods.components.student_graphs import StudentGraphs
from mambaseg.one_message import ALIGNMENT, gather


def test_gathered_tensors_keep_values_and_take_the_strides_asked_for() -> None:
    weight = torch.randn(6, 3, 3, 3)
    tensors = [weight.contiguous(memory_format=torch.channels_last), torch.randn(5), torch.arange(3), torch.tensor(2.0)]
    flats, views = gather(tensors, [weight, *tensors[1:]])
    assert [flat.dtype for flat in flats] == [torch.float32, torch.int64]
    for tensor, view in zip(tensors, views, strict=True):
        torch.testing.assert_close(view, tensor, rtol=0, atol=0)
        assert view.storage_offset() % ALIGNMENT == 0
    assert views[0].stride() == weight.stride()
    assert gather([]) == ([], [])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))


def loss_of(module: nn.Module, rank: int, step: int) -> Tensor:
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank))
    out: Tensor = module(image)
    return out.square().mean()


def _process(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        # In functions of their own: a DDP wrapper that outlives its group of processes may hang as it ends.
        _compare_with_ddp(rank)
        _compare_gathered(rank)
    finally:
        distributed.destroy_process_group()


def _compare_with_ddp(rank: int) -> None:
    as_ddp, own = network(), network()
    reference, wrapped = DistributedDataParallel(as_ddp), DistributedDataParallel(own)
    replicas = Replicas(wrapped, own, StudentGraphs({}))
    for step, takes_over in enumerate((True, True, False, True)):
        for module in (as_ddp, own):
            module.zero_grad()
        loss_of(reference, rank, step).backward()
        replicas.start_step(takes_over)
        loss_of(wrapped, rank, step).backward()
        replicas.average()
        for (name, expected), found in zip(as_ddp.named_parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, msg=lambda m, n=name, s=step: f"{s} {n}: {m}")
    replicas.share_buffers()
    everybody = [torch.empty_like(own[1].running_mean) for _ in range(2)]
    distributed.all_gather(everybody, own[1].running_mean)
    assert torch.equal(*everybody)
    if rank == 0:
        torch.testing.assert_close(own[1].running_mean, as_ddp[1].running_mean)


def _compare_gathered(rank: int) -> None:
    """One flat tensor that is all gradients, one of which half is, and an absent gradient."""
    parameters = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(2))]
    values = [torch.full_like(p, float(rank + 1)) for p in parameters[:2]]
    for whole in (True, False):
        gathered, views = gather_gradients(values, parameters[:2])
        parameters[0].grad = views[0]
        parameters[1].grad = views[1] if whole else values[1].clone()
        parameters[2].grad = None
        average_gradients(parameters, gathered)
        for parameter, mean in zip(parameters, (1.5, 1.5, 0.0), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, torch.full_like(parameter, mean))
        assert parameters[0].grad is views[0]


def test_two_processes_average_as_ddp_does(tmp_path: Path) -> None:
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
