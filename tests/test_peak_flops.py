import pytest
import torch

from mambaseg.peak_flops import PEAKS, arithmetic_of, peak_flops


@pytest.mark.parametrize(
    ("name", "arithmetic", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("Tesla V100-SXM2-32GB", "tf32", 15.7),
    ],
)
def test_known_gpus(name, arithmetic, tera):
    assert peak_flops(name, arithmetic) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    ["NVIDIA RTX A1000", "NVIDIA H800", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU"],
)
def test_others_have_no_peak(name):
    assert peak_flops(name, "bf16") is None


def test_no_bf16_without_the_unit():
    assert peak_flops("Tesla T4", "bf16") is None


def test_every_name_of_the_table_finds_its_own_row():
    for name, (_, _, fp32) in PEAKS.items():
        assert peak_flops(f"NVIDIA {name}", "fp32") == fp32 * 1e12, name


def test_arithmetic_follows_precision_and_what_torch_allows(monkeypatch):
    assert arithmetic_of("bf16-mixed") == "bf16"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert arithmetic_of("32-true") == "fp32"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert arithmetic_of("32-true") == "tf32"
