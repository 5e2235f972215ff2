"""Weights that others published: source, checksum, licence and key map of each."""

from dataclasses import dataclass

from mambaseg.networks.weights.key_map import SWIN, VMAMBA, KeyMap
from mambaseg.registry import Registry

VMAMBA_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download"
SWIN_RELEASES = "https://github.com/SwinTransformer/storage/releases/download"


@dataclass(frozen=True)
class PublishedWeights:
    """One published file.

    Attributes:
        file: Its name in the folder of weights.
        url: Where it is, or None when it has no address that a program can fetch.
        sha256: Its checksum in hexadecimal, or None when we know of none that can be trusted: then it is downloaded
            only for someone who gives one, or asks for it unverified.
        licence: Under which it was published.
        key_map: How its names become a network's.
        networks: Those that it is meant for.
        note: What else to know.
    """

    file: str
    url: str | None
    sha256: str | None
    licence: str
    key_map: KeyMap
    networks: tuple[str, ...]
    note: str = ""


PUBLISHED: Registry[PublishedWeights] = Registry("published weights")

_SEGMENTERS = ("mamba_unet", "vm_unet", "swin_umamba", "swin_umamba_d")


def _vmamba(name: str, release: str, file: str, network: str, segmenters: tuple[str, ...] = (), note: str = "") -> None:
    url = f"{VMAMBA_RELEASES}/%23{release}/{file}"
    PUBLISHED.register(name)(PublishedWeights(file, url, None, "MIT", VMAMBA, (*segmenters, network), note))


_vmamba(
    "vmamba_tiny_v0",
    "v0cls",
    "vssmtiny_dp01_ckpt_epoch_292.pth",
    "vmamba_tiny",
    _SEGMENTERS,
    "vmamba_tiny_e292.pth of Mamba-UNet and Swin-UMamba; ImageNet 82.2",
)
_vmamba(
    "vmamba_small_v0",
    "v0cls",
    "vssmsmall_dp03_ckpt_epoch_238.pth",
    "vmamba_small",
    _SEGMENTERS,
    "ImageNet 83.5 with its moving average",
)
_vmamba("vmamba_base_v0", "v0cls", "vssmbase_dp06_ckpt_epoch_241.pth", "vmamba_base", note="ImageNet 83.7")
_vmamba("vmamba_tiny_s2l5", "v2cls", "vssm_tiny_0230_ckpt_epoch_262.pth", "vmamba_tiny_s2l5", note="ImageNet 82.5")
_vmamba("vmamba_small_s2l15", "v2cls", "vssm_small_0229_ckpt_epoch_222.pth", "vmamba_small_s2l15", note="ImageNet 83.6")
_vmamba("vmamba_base_s2l15", "v2cls", "vssm_base_0229_ckpt_epoch_237.pth", "vmamba_base_s2l15", note="ImageNet 83.9")
_vmamba("vmamba_tiny_s1l8", "v2cls", "vssm1_tiny_0230s_ckpt_epoch_264.pth", "vmamba_tiny_s1l8", note="ImageNet 82.6")
_vmamba(
    "vmamba_small_s1l20", "v2cls", "vssm1_small_0229s_ckpt_epoch_240.pth", "vmamba_small_s1l20", note="ImageNet 83.3"
)
_vmamba("vmamba_base_s1l20", "v2cls", "vssm1_base_0229s_ckpt_epoch_225.pth", "vmamba_base_s1l20", note="ImageNet 83.8")

PUBLISHED.register("vmamba_small_ema")(
    PublishedWeights(
        "vmamba_small_e238_ema.pth",
        None,
        None,
        "MIT",
        VMAMBA,
        (*_SEGMENTERS, "vmamba_small"),
        "what VM-UNet starts from; see pre_trained_weights/README.md in its repository",
    )
)
PUBLISHED.register("swin_tiny")(
    PublishedWeights(
        "swin_tiny_patch4_window7_224.pth",
        f"{SWIN_RELEASES}/v1.0.0/swin_tiny_patch4_window7_224.pth",
        # Several public projects that fetched this file record this checksum; it was not fetched here.
        "9f71c168d837d1b99dd1dc29e14990a7a9e8bdc5f673d46b04fe36fe15590ad3",
        "MIT",
        SWIN,
        ("swin_unet",),
        "ImageNet 81.2",
    )
)
