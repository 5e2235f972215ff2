"""How the names in a published file become names of a network's own state dict."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

Rules = tuple[tuple[str, str], ...]
"""Regular expressions with their replacements, all applied to a name."""

ENCODER = ("patch_embed.", "layers.", "norm.", "classifier.norm.", "vssm_encoder.")
"""How the names of encoder tensors begin in our networks: what a classifier's file can fill."""

RECOMPUTED = ("relative_position_index", "attn_mask")
"""Buffers in published files that depend on sizes alone, and are made for the size at hand."""


@dataclass(frozen=True)
class KeyMap:
    """The naming schemes of one family of files.

    Attributes:
        name: For messages.
        signature: The end of a name that every file of the family has.
        schemes: Each turns the names of one scheme into those of another; names that fit as they are stay.
    """

    name: str
    signature: str
    schemes: tuple[Rules, ...] = ()

    def candidates(self, key: str) -> Iterator[str]:
        """Yield the names that ``key`` may have in a network, the likeliest first."""
        names = [key, *(rename(key, rules) for rules in self.schemes)]
        yield from names
        yield from (rename(name, SWIN_UMAMBA_PLACES) for name in names)

    def targets(self, key: str, own: Collection[str], mirror_stages: int = 0) -> list[str]:
        """Return the names of ``own`` that ``key`` fills: its own place, and its mirror image in the decoder.

        Args:
            key: A name in the file.
            own: The network's names.
            mirror_stages: Stages of the encoder whose blocks also start the mirrored decoder's; 0 for none.
        """
        names = list(self.candidates(key))
        found = [name for name in names if name in own][:1]
        mirrored = [mirror(name, mirror_stages) for name in names] if mirror_stages else []
        return found + [name for name in mirrored if name in own][:1]


VMAMBA_OLD_TO_NEW: Rules = (
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"^(norm|head)\.", r"classifier.\1."),
)
VMAMBA_NEW_TO_OLD: Rules = (
    (r"(\.blocks\.\d+)\.norm\.", r"\1.ln_1."),
    (r"(\.blocks\.\d+)\.op\.", r"\1.self_attention."),
    (r"^patch_embed\.0\.", "patch_embed.proj."),
    (r"^patch_embed\.2\.", "patch_embed.norm."),
    (r"^classifier\.(norm|head)\.", r"\1."),
)
SWIN_UMAMBA_PLACES: Rules = ((r"^layers\.(\d+)\.downsample\.", r"downsamples.\1."), (r"^", "vssm_encoder."))
"""Where Swin-UMamba keeps the parts of a VMamba encoder."""

VMAMBA = KeyMap("VMamba", ".A_logs", (VMAMBA_NEW_TO_OLD, VMAMBA_OLD_TO_NEW))
SWIN = KeyMap("Swin", ".relative_position_bias_table")
PLAIN = KeyMap("own names", "")


def key_map_of(keys: Collection[str]) -> KeyMap:
    """Return the key map of a file of unknown origin by what its names end in."""
    return next(m for m in (VMAMBA, SWIN, PLAIN) if any(key.endswith(m.signature) for key in keys))


def mirror(key: str, stages: int) -> str:
    """Return the decoder's name for an encoder tensor: stage i of n becomes decoder stage n - 1 - i."""
    return re.sub(r"^layers\.(\d+)\.", lambda match: f"layers_up.{stages - 1 - int(match[1])}.", key)


def rename(key: str, rules: Rules) -> str:
    """Return ``key`` with every rule applied."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key
