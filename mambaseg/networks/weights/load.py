"""Loading weights into a network, with an account of every tensor."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mambaseg.errors import InputError
from mambaseg.networks.weights.files import check_sha256, locate, read_tensors, recorded_sha256
from mambaseg.networks.weights.key_map import KeyMap, key_map_of
from mambaseg.networks.weights.match import Match, best_prefix, match
from mambaseg.networks.weights.report import LoadReport
from mambaseg.registry import unknown_name


@dataclass(frozen=True)
class WeightsConfig:
    """Which weights a network starts from.

    Attributes:
        source: A file, or the id of published weights; see ``mambaseg weights``.
        sha256: Checksum that the file must have, in hexadecimal.
        mirror: Whether a classifier's blocks also start the decoder's at the same resolution, as in the released code
            of Swin-UNet, Mamba-UNet and VM-UNet.
        min_fraction: Least share of the values that must be set, of what the file can fill.
        prefix: What to cut off the front of the file's names; found by itself unless several fit.
        entry: The mapping in the file that holds the tensors; found by itself in published files.
    """

    source: str
    sha256: str | None = None
    mirror: bool = True
    min_fraction: float = 0.9
    prefix: str | None = None
    entry: str | None = None

    @classmethod
    def parse(cls, value: Any, owner: str) -> "WeightsConfig":
        """Return what an experiment's ``weights`` means: a path or id, or a mapping with the fields of this class.

        Args:
            value: As written.
            owner: Whose weights they are, for messages.

        Raises:
            InputError: A field is unknown, of the wrong type, or ``source`` is missing.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls(str(value))
        if not isinstance(value, Mapping) or not isinstance(value.get("source"), str):
            raise InputError(f"{owner}: weights is {value!r}; write a path, an id, or a mapping with source.")
        known = {field.name: field.type for field in fields(cls)}
        for name in value:
            if name not in known:
                raise InputError(f"{owner}: weights: " + unknown_name("field", str(name), known))
        config = cls(**value)
        if not isinstance(config.mirror, bool) or not isinstance(config.min_fraction, int | float):
            raise InputError(
                f"{owner}: weights: mirror must be true or false and min_fraction a number, got {value!r}."
            )
        if not 0 <= config.min_fraction <= 1:
            raise InputError(f"{owner}: weights: min_fraction is {config.min_fraction}, expected 0 to 1.")
        if config.sha256 == "":
            raise InputError(f"{owner}: weights: sha256 is empty: give the checksum, or leave the field out.")
        return config


def load_weights(network: nn.Module, config: WeightsConfig) -> LoadReport:
    """Set a network's weights from a file.

    Args:
        network: Any network; what the file does not set stays as it is.
        config: Which file, and how.

    Returns:
        What was loaded and what was not.

    Raises:
        InputError: The file is not there, is refused, has another checksum, or sets too little of what it can fill;
            the network is unchanged then.
    """
    file, entry = locate(config.source)
    recorded = recorded_sha256(file)
    noted = recorded.read_text(encoding="utf-8").strip() if entry and recorded.is_file() else None
    digest = check_sha256(file, config.sha256 or (entry.sha256 if entry else None) or noted)
    tensors = read_tensors(file, config.entry)
    key_map = entry.key_map if entry else key_map_of(tensors)
    found = match_file(network.state_dict(), tensors, key_map, config, file)
    report = found.report(str(file), digest)
    if report.fraction < config.min_fraction:
        raise InputError(
            f"weights {config.source!r} for {type(network).__name__}: set only {report.summary()}. At least "
            f"{config.min_fraction:.0%} are needed: is it a file for this network? If so, set min_fraction lower."
        )
    network.load_state_dict(found.state, strict=False)
    return report


def match_file(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], key_map: KeyMap, config: WeightsConfig, file: Path
) -> Match:
    """Return what of a file goes where in a network's state.

    Raises:
        InputError: Several prefixes fit equally well, and none was chosen.
    """
    prefix = config.prefix
    if prefix is None:
        prefixes = best_prefix(own, tensors, key_map)
        if len(prefixes) > 1:
            raise InputError(
                f"{file}: holds several networks that fit, under {', '.join(map(repr, prefixes))}. "
                "Choose one: weights: {source: ..., prefix: ...}."
            )
        prefix = prefixes[0]
    cut = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    outside = {key: tensor for key, tensor in tensors.items() if not key.startswith(prefix)}
    return match(own, cut, outside, key_map, prefix, config.mirror)
