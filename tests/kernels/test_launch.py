"""Kernels launch, or are compiled together."""

import threading

import pytest
import torch

from mambaseg.kernels import launch as launching
from mambaseg.kernels.launch import compiling_together, launch


class Kernel:
    """Stands for a function under ``triton.jit``: remembers how it was called, and from which thread."""

    def __init__(self):
        self.launches = []
        self.compilations = []

    def __getitem__(self, grid):
        return lambda *arguments, **constants: self.launches.append((grid, arguments, constants))

    def warmup(self, *arguments, grid, **constants):
        self.compilations.append((grid, arguments, constants))


def test_launches_with_grid_arguments_and_constants():
    kernel = Kernel()
    launch(kernel, 3, 2)("x", N=4)
    assert kernel.launches == [((3, 2), ("x",), {"N": 4})]
    assert kernel.compilations == []


def test_within_compiling_together_nothing_runs(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernel = Kernel()
    with compiling_together():
        launch(kernel, 3)("x", N=4)
        # As autograd does: a backward pass is launched from a thread with a context of its own.
        thread = threading.Thread(target=lambda: launch(kernel, 5)("y"))
        thread.start()
        thread.join()
    assert kernel.launches == []
    assert kernel.compilations == [((3,), ("x",), {"N": 4}), ((5,), ("y",), {})]
    launch(kernel, 3)("x")
    assert len(kernel.launches) == 1


def test_an_exception_inside_ends_it(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="out of memory"), compiling_together():
        raise RuntimeError("out of memory")
    kernel = Kernel()
    launch(kernel, 1)()
    assert len(kernel.launches) == 1


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setattr(launching, "interpreting", lambda: True)
    kernel = Kernel()
    with compiling_together():
        launch(kernel, 1)()
    assert len(kernel.launches) == 1


@pytest.mark.gpu
def test_a_pass_after_it_compiles_nothing(monkeypatch, tmp_path):
    triton = pytest.importorskip("triton")
    from mambaseg.kernels.selective_scan import selective_scan

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda *_, fn, **__: compiled.append(fn.name) or False
    )

    def one_pass():
        u, delta = (torch.rand(2, 24, 40, device="cuda", requires_grad=True) for _ in range(2))
        A = -torch.rand(24, 3, device="cuda", requires_grad=True)
        B, C = (torch.rand(2, 3, 40, device="cuda", requires_grad=True) for _ in range(2))
        out = selective_scan(u, delta, A, B, C)
        return torch.autograd.grad(out.sum(), (u, delta, A, B, C))

    with compiling_together():
        one_pass()
    met = len(compiled)
    assert met >= 2
    assert all(gradient.isfinite().all() for gradient in one_pass())
    assert len(compiled) == met
