"""How much of each published file reaches each network, against the numbers of the published loaders."""

from pathlib import Path

import pytest

from mambaseg.networks.cost import build_on_meta
from mambaseg.networks.weights import WeightsConfig
from mambaseg.networks.weights.key_map import PLAIN, SWIN, VMAMBA, key_map_of
from mambaseg.networks.weights.load import match_file
from tests.networks.weights.published_files import swin_state, vmamba_state

FULL = {"embed_dim": 96, "d_state": 16, "classes": 1000, "device": "meta"}
TINY_FILE = {"depths": (2, 2, 9, 2)} | FULL
SMALL_FILE = {"depths": (2, 2, 27, 2)} | FULL


def report(network, tensors, **options):
    config = WeightsConfig("file", **options)
    found = match_file(network.state_dict(), tensors, key_map_of(tensors), config, Path("file"))
    return found.report("file", "")


@pytest.mark.parametrize("names", ["old", "new"])
def test_vmamba_tiny_into_mamba_unet(names):
    tensors = vmamba_state(names=names, **TINY_FILE)
    assert len(tensors) == 212
    got = report(build_on_meta("mamba_unet", 1, 4), tensors)
    assert got.loaded_values == 17_036_064
    assert got.network_values == 19_121_664
    assert got.fraction == 1.0
    assert not got.missing.tensors
    assert not got.mismatched.tensors
    decoder = {key.split(".blocks.")[0] for key in got.mirrored.tensors}
    assert decoder == {"layers_up.1", "layers_up.2", "layers_up.3"}
    unused = {key.split(".")[3] for key in got.unexpected.tensors if "blocks" in key}
    assert unused == {str(block) for block in range(2, 9)}  # depth 9 cut to 2: said, not silent
    assert sum("head" in key for key in got.unexpected.tensors) == 2
    assert "norm.weight" in got.loaded.tensors


@pytest.mark.parametrize("names", ["old", "new"])
def test_vmamba_small_into_vm_unet(names):
    tensors = vmamba_state(names=names, **SMALL_FILE)
    assert len(tensors) == 446
    got = report(build_on_meta("vm_unet", 3, 1), tensors)
    assert (len(got.loaded.tensors), len(got.mirrored.tensors)) == (117, 91)
    assert (got.loaded_values, got.network_values) == (25_840_992, 27_427_561)
    fresh = {key.split(".")[2] if key.startswith("layers_up") else key.split(".")[0] for key in got.fresh.tensors}
    assert fresh == {"upsample", "final_up", "final_conv"}


def test_swin_tiny_into_swin_unet():
    tensors = swin_state((2, 2, 6, 2), 1000, "meta")
    learnable = sum(t.numel() for key, t in tensors.items() if not key.endswith(("attn_mask", "_index")))
    assert learnable == 28_288_354
    got = report(build_on_meta("swin_unet", 3, 4), tensors)
    attention_masks = 2 * 49 * 49 * (64 + 16 + 4)  # buffers that the published loader counts, and that we do not keep
    assert got.loaded_values == 25_486_188 - attention_masks
    assert got.fraction == 1.0
    assert not any("attn_mask" in key or "index" in key for key in got.unexpected.tensors)


def test_vmamba_tiny_into_swin_umamba():
    tensors = vmamba_state(**TINY_FILE)
    got = report(build_on_meta("swin_umamba", 1, 4), tensors)
    stem_norm = 2 * 96
    # The published loader sets the stem's bias without its weight; here both are set.
    assert got.loaded_values == 22_118_112 - 96 + stem_norm
    assert got.fraction > 0.99
    stem = "vssm_encoder.patch_embed.proj"
    assert list(got.mismatched.tensors) == [f"{stem}.weight", f"{stem}.bias"]
    colour = report(build_on_meta("swin_umamba_d", 3, 4), tensors)
    assert colour.loaded_values == 22_122_912
    grey = report(build_on_meta("swin_umamba_d", 1, 4), tensors)
    assert grey.loaded_values == 22_122_912 - 2 * 16 * 96
    assert list(grey.reshaped.tensors) == ["vssm_encoder.patch_embed.proj.weight"]


def test_the_switch_for_mirroring():
    tensors = vmamba_state(**TINY_FILE)
    got = report(build_on_meta("mamba_unet", 1, 4), tensors, mirror=False)
    assert not got.mirrored.tensors
    assert got.loaded_values == 4_896 + 285_312 + 976_128 + 3_574_272 + 8_911_872 + 1_536
    assert got.part == "the encoder"
    assert got.fraction == 1.0


@pytest.mark.parametrize("names", ["old", "new"])
def test_a_classifier_loads_either_naming(names):
    got = report(build_on_meta("vmamba_tiny", 3, 1000), vmamba_state(names=names, **TINY_FILE))
    assert got.loaded_values == got.network_values == 22_893_448
    assert not got.unexpected.tensors


def test_another_release_does_not_fit():
    with_mlp = build_on_meta("vmamba_tiny_s2l5", 3, 1000).state_dict()
    assert report(build_on_meta("mamba_unet", 1, 4), with_mlp).fraction < 0.9


def test_files_are_told_apart_by_their_names():
    assert key_map_of(vmamba_state()) is VMAMBA
    assert key_map_of(swin_state()) is SWIN
    assert key_map_of(["conv.weight"]) is PLAIN
