import pytest
import torch

from mambaseg.kernels.selective_scan.recurrence import FEW_ELEMENTS, recur_


def slow(values, decay, first, reverse):
    out = values.clone()
    order = range(len(values))
    for t in reversed(order) if reverse else order:
        out[t] = values[t] + decay[t] * first
        first = out[t]
    return out


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 15, 16, 17, 31, 64, 100, 255, 256])
@pytest.mark.parametrize("shape", [(2, 3), (FEW_ELEMENTS + 1,)])
def test_every_length_and_direction(length, shape, reverse):
    torch.manual_seed(length)
    values, decay = torch.randn(length, *shape, dtype=torch.float64), torch.rand(length, *shape, dtype=torch.float64)
    first = torch.randn(shape, dtype=torch.float64)
    expected = slow(values, decay, first, reverse)
    recur_(values, decay, first, reverse=reverse)
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
