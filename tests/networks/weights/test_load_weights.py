"""Loading from real files: values, shapes, reports, refusals; nothing but tensors is ever unpickled."""

import hashlib
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mambaseg.errors import InputError
from mambaseg.networks import create_network
from mambaseg.networks.weights import PUBLISHED, WeightsConfig, load_weights
from tests.networks.weights.published_files import swin_state, vmamba_state

MAMBA = {"embed_dim": 8, "depths": [2, 2, 2, 2], "d_state": 2}
SWIN = {"embed_dim": 8, "depths": [2, 2, 2, 2], "heads": [1, 2, 2, 4], "window": 3}


@pytest.fixture
def vmamba_file(tmp_path):
    path = tmp_path / "vmamba.pth"
    torch.save({"model": vmamba_state(), "epoch": 292}, path)
    return path


def mamba_unet(in_channels=1, **options):
    torch.manual_seed(1)
    return create_network("mamba_unet", in_channels, 3, **MAMBA | options).eval()


def test_encoder_and_mirrored_decoder_hold_the_files_values(vmamba_file):
    tensors = vmamba_state()
    network, fresh = mamba_unet(weights=str(vmamba_file)), mamba_unet()
    state = network.state_dict()
    key = "blocks.1.self_attention.in_proj.weight"
    assert torch.equal(state[f"layers.2.{key}"], tensors[f"layers.2.{key}"])
    assert torch.equal(state[f"layers_up.1.{key}"], tensors[f"layers.2.{key}"])
    assert torch.equal(state[f"layers_up.3.{key}"], tensors[f"layers.0.{key}"])
    assert torch.equal(state["output.weight"], fresh.state_dict()["output.weight"])
    assert network.weights_report.fraction == 1.0
    plain = mamba_unet(weights={"source": str(vmamba_file), "mirror": False}).state_dict()
    assert torch.equal(plain[f"layers_up.1.{key}"], fresh.state_dict()[f"layers_up.1.{key}"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["mamba_unet", "vm_unet"])
def test_a_grey_stem_is_exactly_the_colour_stem_on_a_repeated_image(vmamba_file, name):
    options = MAMBA | ({"decoder_depths": [2, 2, 2, 1]} if name == "vm_unet" else {})
    options["weights"] = {"source": str(vmamba_file)}
    grey = create_network(name, 1, 3, grey_stem="single", **options).eval()
    colour = create_network(name, 3, 3, **options).eval()
    assert list(grey.weights_report.reshaped.tensors) == ["patch_embed.proj.weight"]
    expected = vmamba_state()["patch_embed.proj.weight"].sum(1, keepdim=True)
    assert torch.equal(grey.patch_embed.proj.weight, expected)
    x = torch.randn(1, 1, 32, 32)
    rest = {k: v for k, v in colour.state_dict().items() if k != "patch_embed.proj.weight"}
    grey.load_state_dict(rest, strict=False)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_convolutional_stem_is_folded_too(tmp_path):
    size = {"embed_dim": 8, "depths": [1, 1]}
    colour = create_network("vmamba_tiny_s1l8", 3, 5, **size).eval()
    save_file(colour.state_dict(), tmp_path / "later.safetensors")
    grey = create_network("vmamba_tiny_s1l8", 1, 5, weights=tmp_path / "later.safetensors", **size).eval()
    x = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), atol=1e-5, rtol=1e-5)


def test_swin_with_another_window_resizes_its_tables(tmp_path):
    torch.save({"model": swin_state(**{k: v for k, v in SWIN.items() if k != "depths"})}, tmp_path / "swin.pth")
    same = create_network("swin_unet", 1, 3, weights=str(tmp_path / "swin.pth"), **SWIN)
    other = create_network("swin_unet", 1, 3, weights=str(tmp_path / "swin.pth"), **SWIN | {"window": 5})
    assert same.weights_report.fraction == other.weights_report.fraction == 1.0
    assert not same.weights_report.reshaped.tensors
    assert all("table" in key and "from 5 to 9" in how for key, how in other.weights_report.reshaped.tensors.items())
    assert len(other.weights_report.reshaped.tensors) == 14


@pytest.mark.parametrize("prefix", ["module.", "vmunet.", "module.vmunet.", "students.a."])
def test_whole_networks_load_under_any_wrapper(tmp_path, prefix):
    options = MAMBA | {"decoder_depths": [2, 2, 2, 1]}
    trained = create_network("vm_unet", 3, 3, **options)
    state = {f"{prefix}{key}": value + 1 for key, value in trained.state_dict().items()}
    torch.save({"state_dict": state | {"other.thing": torch.zeros(3)}}, tmp_path / "best.pth")
    network = create_network("vm_unet", 3, 3, weights=str(tmp_path / "best.pth"), **options)
    report = network.weights_report
    assert (report.part, report.fraction, report.prefix) == ("the network", 1.0, prefix)
    assert not report.mirrored.tensors
    assert list(report.unexpected.tensors) == ["other.thing"]
    assert torch.equal(network.final_conv.bias, trained.final_conv.bias + 1)


def test_two_networks_in_one_file_must_be_told_apart(tmp_path):
    small = {"channels": [4, 4, 4, 4, 4]}
    unet = create_network("unet", 1, 3, **small).state_dict()
    both = {f"students.{name}.{key}": value + number for number, name in enumerate("ab") for key, value in unet.items()}
    torch.save({"state_dict": both}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"several networks that fit, under 'students\.a\.', 'students\.b\.'"):
        create_network("unet", 1, 3, weights=str(tmp_path / "last.ckpt"), **small)
    weights = {"source": str(tmp_path / "last.ckpt"), "prefix": "students.b."}
    network = create_network("unet", 1, 3, weights=weights, **small)
    assert torch.equal(network.decoder.out_conv.bias, unet["decoder.out_conv.bias"] + 1)


def test_too_little_is_refused_and_the_network_left_alone(tmp_path):
    tensors = {key: value for key, value in vmamba_state().items() if not key.startswith("layers.3.blocks.1")}
    torch.save({"model": tensors}, tmp_path / "half.pth")
    network = mamba_unet()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    config = WeightsConfig(str(tmp_path / "half.pth"))
    with pytest.raises(InputError, match=r"set only \d\d\.\d% of the encoder .* 90% are needed.*min_fraction"):
        load_weights(network, config)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    told = load_weights(network, WeightsConfig(config.source, min_fraction=0.5))
    assert 0.5 < told.fraction < 0.9
    assert all(key.startswith("layers.3.blocks.1") for key in told.missing.tensors)


def test_a_file_for_another_network_loads_nothing_and_says_so(vmamba_file):
    with pytest.raises(InputError, match=r"set only 0\.0% of the network"):
        create_network("unet", 1, 3, weights=str(vmamba_file))
    wide = {"embed_dim": 16, "depths": [1, 1], "d_state": 2}
    with pytest.raises(InputError, match=r"[1-9]\d* mismatched"):
        create_network("mamba_unet", 1, 3, weights=str(vmamba_file), **wide)


def test_checksums(vmamba_file, monkeypatch, tmp_path):
    digest = hashlib.sha256(vmamba_file.read_bytes()).hexdigest()
    assert mamba_unet(weights={"source": str(vmamba_file), "sha256": digest.upper()}).weights_report.sha256 == digest
    with pytest.raises(InputError, match=f"sha256 is {digest}, expected {'0' * 64}"):
        mamba_unet(weights={"source": str(vmamba_file), "sha256": "0" * 64})
    monkeypatch.setenv("MAMBASEG_WEIGHTS", str(tmp_path))
    (tmp_path / PUBLISHED.get("swin_tiny").file).write_bytes(vmamba_file.read_bytes())
    with pytest.raises(InputError, match=r"expected 9f71c168.*not loaded"):
        mamba_unet(weights="swin_tiny")
    target = tmp_path / PUBLISHED.get("vmamba_tiny_v0").file
    target.write_bytes(vmamba_file.read_bytes())
    assert mamba_unet(weights="vmamba_tiny_v0").weights_report.fraction == 1.0
    Path(f"{target}.sha256").write_text("1" * 64 + "\n")
    with pytest.raises(InputError, match="expected 1111"):
        mamba_unet(weights="vmamba_tiny_v0")


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/mambaseg-was-here"),))


def test_code_in_a_file_is_refused(tmp_path):
    torch.save({"model": vmamba_state(), "config": Malicious()}, tmp_path / "bad.pth")
    (tmp_path / "worse.pth").write_bytes(pickle.dumps({"model": Malicious()}, protocol=2))
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(InputError, match=f"{name}: was refused, because it holds more than tensors.*GLOBAL"):
            mamba_unet(weights=str(tmp_path / name))
    assert not Path("/tmp/mambaseg-was-here").exists()


def test_the_configuration_objects_of_training_checkpoints_are_passed_over(tmp_path):
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config", "__qualname__": "CfgNode"})
    sys.modules["yacs"], sys.modules["yacs.config"] = types.ModuleType("yacs"), module
    try:
        config = module.CfgNode(MODEL=module.CfgNode(DEPTHS=[2, 2, 9, 2]))
        torch.save({"model": vmamba_state(), "config": config}, tmp_path / "whole.pth")
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]
    assert mamba_unet(weights=str(tmp_path / "whole.pth")).weights_report.fraction == 1.0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("vmamba_tinny_v0", r"no such file.*Did you mean 'vmamba_tiny_v0'"),
        ("vmamba_tiny_v0", "mambaseg weights fetch vmamba_tiny_v0"),
        ({"source": "x", "miror": True}, r"no field 'miror'.*'mirror'"),
        ({"mirror": True}, "a mapping with source"),
        ({"source": "x", "mirror": "no"}, "mirror must be true or false"),
        (3, "weights is 3"),
    ],
)
def test_impossible_weights_are_named(weights, message, monkeypatch, tmp_path):
    monkeypatch.setenv("MAMBASEG_WEIGHTS", str(tmp_path))
    with pytest.raises(InputError, match=message):
        mamba_unet(weights=weights)


def test_damaged_files_are_named(tmp_path, vmamba_file):
    (tmp_path / "cut.pth").write_bytes(vmamba_file.read_bytes()[:5000])
    (tmp_path / "cut.safetensors").write_bytes(b"no")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    for name, words in (("cut.pth", "cut.pth"), ("cut.safetensors", "cannot be read"), ("empty.pth", "no tensors")):
        with pytest.raises(InputError, match=words):
            mamba_unet(weights=str(tmp_path / name))
    with pytest.raises(InputError, match="has no entry 'ema'; it has model, epoch"):
        mamba_unet(weights={"source": str(vmamba_file), "entry": "ema"})


@pytest.mark.parametrize("name", PUBLISHED.names())
def test_every_published_entry_is_complete(name):
    from mambaseg.networks import list_networks

    entry = PUBLISHED.get(name)
    assert entry.licence
    assert entry.url is None or entry.url.startswith("https://")
    assert entry.url or entry.note
    assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32
    assert set(entry.networks) <= set(list_networks())
