"""The class of the largest logit, as torch's own choice and as an operator of torch."""

import pytest
import torch

from mambaseg.kernels.largest_class import largest_class
from mambaseg.kernels.largest_class.op import largest_class_forward
from tests.kernels.block_cases import compare_largest_class

SHAPES = [(2, 4, 5, 7), (1, 3, 6), (2, 2, 3, 4, 5), (3, 5), (1, 1, 3, 3), (0, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_torch_s_choice(shape, dtype):
    compare_largest_class(shape, dtype)


def test_any_strides():
    logits = torch.randn(7, 5, 4, 2).permute(3, 2, 1, 0)[:, :, 1:, ::2]
    assert torch.equal(largest_class(logits), logits.argmax(1))


def test_no_gradient_comes_back():
    assert not largest_class(torch.randn(2, 4, 5, requires_grad=True)).requires_grad


def test_opcheck_and_meta():
    torch.library.opcheck(largest_class_forward, (torch.randn(2, 4, 7),))
    assert largest_class(torch.empty(2, 4, 5, 7, device="meta")).shape == (2, 5, 7)


def test_compiles_without_graph_breaks_and_exports():
    logits = torch.randn(2, 4, 5, 7)
    compiled = torch.compile(largest_class, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits), logits.argmax(1))


def test_forced_reference(monkeypatch):
    monkeypatch.setenv("MAMBASEG_SCAN_BACKEND", "reference")
    compare_largest_class((2, 4, 5, 7), torch.float32)
