"""Which implementation serves a call, and what a person reads when none can."""

import pytest
import torch

from mambaseg.kernels import backend

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    monkeypatch.delenv("MAMBASEG_SCAN_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def _with_triton(monkeypatch, installed):
    monkeypatch.setattr(backend, "triton_installed", lambda: installed)


def test_device_decides(monkeypatch):
    assert backend.select(CPU) == "cpu"
    _with_triton(monkeypatch, True)
    assert backend.select(CUDA) == "triton"


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("device", [CPU, CUDA])
def test_variable_forces(monkeypatch, name, device):
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", name)
    assert backend.select(device) == name


def test_unknown_value_lists_the_choices(monkeypatch):
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "cuda")
    with pytest.raises(backend.ScanBackendError, match=r"'cuda'.*reference, cpu, triton"):
        backend.select(CPU)


def test_cuda_without_triton_never_falls_back(monkeypatch):
    _with_triton(monkeypatch, False)
    with pytest.raises(backend.ScanBackendError, match="pip install"):
        backend.select(CUDA)


def test_triton_on_cpu_needs_the_interpreter(monkeypatch):
    _with_triton(monkeypatch, True)
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "triton")
    with pytest.raises(backend.ScanBackendError, match="TRITON_INTERPRET=1"):
        backend.select(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.select(CPU) == "triton"
