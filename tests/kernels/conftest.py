"""Fixtures of the kernels' tests."""

import pytest
import torch

from tests.kernels.scan_cases import poison_allocations


@pytest.fixture
def no_tf32():
    """Multiply float32 matrices in float32. No monkeypatch: pytest deletes what ``__getattr__`` gave it."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    yield
    matmul.allow_tf32 = before


@pytest.fixture
def _poisoned(monkeypatch):
    poison_allocations(monkeypatch)
