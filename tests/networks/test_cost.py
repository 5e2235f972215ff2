"""Costs of published networks, and the table that the command line shows."""

import json
import re

import pytest
from torch import nn

from mambaseg.networks import list_networks
from mambaseg.networks.cost import TABLE, build_on_meta, forward_cost, listed_cost, listed_costs
from mambaseg.networks.register import NETWORKS


@pytest.mark.parametrize(
    ("name", "macs", "scan"),
    [
        ("unet", 2.258, 0),
        ("swin_unet", 6.086, 0),
        ("mamba_unet", 4.447, 2.532),
        ("vm_unet", 4.053, 2.270),
        ("vmamba_tiny_s1l8", 4.876 - 0.063, 0.063),
    ],
)
def test_published_costs(name, macs, scan):
    cost = listed_costs()[name]
    assert (cost.macs / 1e9, cost.scan / 1e9) == pytest.approx((macs, scan), abs=6e-4)


def test_published_totals_of_vmamba():
    totals = {"vmamba_tiny": 5.598, "vmamba_small": 11.182, "vmamba_base": 17.954, "vmamba_tiny_s2l5": 4.825}
    totals |= {"vmamba_small_s2l15": 8.668, "vmamba_base_s2l15": 15.295, "vmamba_tiny_s1l8": 4.876}
    totals |= {"vmamba_small_s1l20": 8.569, "vmamba_base_s1l20": 15.163}
    costs = listed_costs()
    assert {name: round(costs[name].total / 1e9, 3) for name in totals} == totals


@pytest.mark.parametrize("name", list_networks())
def test_the_table_is_up_to_date(name):
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    assert name in rows, "write it again: python -m mambaseg.networks.cost"
    assert listed_cost(name) == listed_costs()[name], "write it again: python -m mambaseg.networks.cost"


def test_another_size_and_the_scan_by_hand():
    network = build_on_meta("mamba_unet", 1, 4)
    cost = forward_cost(network, (256, 256))
    assert (cost.macs / 1e9, cost.scan / 1e9) == pytest.approx((5.808, 3.307), abs=6e-4)
    small = build_on_meta("vmamba_tiny", 1, 2, embed_dim=16, depths=[1], d_state=3)
    pixels, inner = 8 * 6, 32
    layers = 16 * 16 + 16 * 2 * inner + 9 * inner + 4 * inner * (1 + 6) + 4 * inner + inner * 16
    cost = forward_cost(small, (32, 24))
    assert cost.scan == pixels * 4 * inner * (9 * 3 + 1)
    assert cost.macs == pixels * layers + 16 * 2


def test_every_network_names_its_paper():
    for name in list_networks():
        assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{5}", NETWORKS.get(name).__doc__), name


def test_a_linear_layer_counts_its_weights_once():
    network = build_on_meta("vmamba_tiny", 1, 7, embed_dim=16, depths=[1])
    head = next(module for module in network.modules() if isinstance(module, nn.Linear) and module.out_features == 7)
    other = build_on_meta("vmamba_tiny", 1, 8, embed_dim=16, depths=[1])
    assert forward_cost(other, (4, 4)).macs - forward_cost(network, (4, 4)).macs == head.in_features
