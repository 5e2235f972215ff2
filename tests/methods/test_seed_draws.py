"""A step's seed is torch's."""

import pytest
import torch

from mambaseg.methods.components.seed_draws import seed_draws


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_draws_are_those_after_torch_manual_seed(name: str) -> None:
    device = torch.device(name)
    drawn = []
    for seed in (torch.manual_seed, lambda number: seed_draws(number, device)):
        torch.rand(3, device=device)
        seed(2**63 - 1)
        drawn.append([torch.rand(5, device=device), torch.rand(5, device=device), torch.randperm(9)])
    assert all(map(torch.equal, *drawn))


def test_other_devices_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    seed_draws(7, torch.device("meta"))
    assert seeds == [7]
