"""Which tensor of a file goes where in a network, and what happens to the others."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mambaseg.networks.layers.colour_stem import fold_colour
from mambaseg.networks.layers.swin_block import resize_bias_table
from mambaseg.networks.weights.key_map import ENCODER, RECOMPUTED, KeyMap
from mambaseg.networks.weights.report import Fate, LoadReport

PREFIX_DEPTH = 3
"""Most name parts that wrappers put before a network's own names."""


@dataclass
class Match:
    """The tensors of a file by their places in a network's state.

    Attributes:
        own: The network's state.
        key_map: The naming scheme.
        prefix: What was cut off the file's names.
        state: What will be loaded, by the network's names.
        mirrored: Names in ``state`` that were filled from the encoder's tensors.
        reshaped: Names in ``state`` whose tensor was adapted, with how.
        mismatched: Tensors of the file that fit no shape, with both shapes.
        unexpected: Tensors of the file without a place.
    """

    own: Mapping[str, Tensor]
    key_map: KeyMap
    prefix: str
    state: dict[str, Tensor] = field(default_factory=dict)
    mirrored: set[str] = field(default_factory=set)
    reshaped: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    unexpected: dict[str, Tensor] = field(default_factory=dict)

    def place(self, key: str, tensor: Tensor, targets: Iterable[str]) -> None:
        """Note that ``tensor`` of the file goes to ``targets``, as far as its shape fits."""
        for target in targets:
            fitted, how = fit(tensor, self.own[target])
            if fitted is None:
                self.mismatched[target] = f"{tuple(tensor.shape)} in the file, {tuple(self.own[target].shape)} here"
                continue
            self.state[target] = fitted
            if how:
                self.reshaped[target] = how
            if target.startswith("layers_up.") and not key.startswith("layers_up."):
                self.mirrored.add(target)

    def drop_lone_biases(self) -> None:
        """Leave out biases whose weight fits no shape: they belong to another function."""
        for weight in [key for key in self.mismatched if key.endswith(".weight")]:
            bias = f"{weight.removesuffix('weight')}bias"
            if self.state.pop(bias, None) is not None:
                self.mismatched[bias] = "fits, but its weight does not"

    def report(self, source: str, sha256: str) -> LoadReport:
        """Return the account of this match."""
        part = self._part()
        direct = [key for key in self.state if key not in self.mirrored]
        whole = len(part) == len(self.own)
        return LoadReport(
            source=source,
            sha256=sha256,
            key_map=self.key_map.name,
            prefix=self.prefix,
            part="the network" if whole else "the encoder and what mirrors it" if self.mirrored else "the encoder",
            part_values=_values(self.own, part),
            network_values=_values(self.own, self.own),
            loaded=self._fate(direct),
            mirrored=self._fate(self.mirrored),
            reshaped=Fate(self.reshaped, _values(self.own, self.reshaped)),
            mismatched=Fate(self.mismatched, _values(self.own, self.mismatched)),
            missing=self._fate(part - set(self.state)),
            fresh=self._fate(set(self.own) - part),
            unexpected=Fate(dict.fromkeys(self.unexpected, ""), sum(t.numel() for t in self.unexpected.values())),
        )

    def _part(self) -> set[str]:
        """Return the names that such a file can fill: all, or the encoder's and those mirrored from it."""
        encoder = {key for key in self.own if key.startswith(ENCODER)}
        if not encoder or not set(self.state) - self.mirrored <= encoder:
            return set(self.own)
        stages = {key.split(".blocks.")[0] for key in self.mirrored}
        return encoder | {key for key in self.own if key.split(".blocks.")[0] in stages and ".blocks." in key}

    def _fate(self, keys: Iterable[str]) -> Fate:
        ordered = sorted(keys)
        return Fate(dict.fromkeys(ordered, ""), _values(self.own, ordered))


def match(
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    outside: Mapping[str, Tensor],
    key_map: KeyMap,
    prefix: str,
    mirrored: bool,
) -> Match:
    """Match a file's tensors to a network's.

    Args:
        own: The network's state.
        tensors: The file's tensors, names without the prefix.
        outside: Its tensors whose names do not begin with the prefix.
        key_map: The naming scheme.
        prefix: What was cut off.
        mirrored: Whether encoder blocks also start the decoder's; without effect on a file that has decoder blocks.
    """
    has_decoder = any(key.startswith("layers_up.") for key in tensors)
    stages = len({key.split(".")[1] for key in own if key.startswith("layers.")})
    found = Match(own, key_map, prefix, unexpected=dict(outside))
    for key, tensor in tensors.items():
        if key.endswith(RECOMPUTED):
            continue
        targets = key_map.targets(key, own, stages if mirrored and not has_decoder else 0)
        if targets:
            found.place(key, tensor, targets)
        else:
            found.unexpected[key] = tensor
    found.drop_lone_biases()
    return found


def fit(tensor: Tensor, own: Tensor) -> tuple[Tensor | None, str]:
    """Return a file's tensor in the shape of the network's, with how it got it; None where there is no exact way.

    A colour stem is summed over its inputs for a grey image, which is exact; a table of relative positions is
    interpolated to another window.
    """
    if tensor.shape == own.shape:
        return tensor, ""
    if tensor.ndim == own.ndim == 4:
        folded = fold_colour(tensor, own.shape[1])
        return (folded, "colour stem summed over RGB") if folded.shape == own.shape else (None, "")
    sides = [round(t.shape[0] ** 0.5) for t in (tensor, own)]
    is_table = tensor.ndim == own.ndim == 2 and all(
        side % 2 and side**2 == t.shape[0] for side, t in zip(sides, (tensor, own), strict=True)
    )
    if is_table and tensor.shape[1] == own.shape[1]:
        return resize_bias_table(tensor, (sides[1] + 1) // 2), f"positions resized from {sides[0]} to {sides[1]} a side"
    return None, ""


def best_prefix(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], key_map: KeyMap) -> list[str]:
    """Return what to cut off the file's names so that most values find a place; several where they tie."""
    placed: Counter[str] = Counter({"": 0})
    for key, tensor in tensors.items():
        parts = key.split(".")
        for cut in range(min(PREFIX_DEPTH, len(parts) - 1) + 1):
            if key_map.targets(".".join(parts[cut:]), own):
                placed["".join(f"{part}." for part in parts[:cut])] += tensor.numel()
    most = max(placed.values())
    return [prefix for prefix, values in placed.items() if values == most]


def _values(own: Mapping[str, Tensor], keys: Iterable[str]) -> int:
    return sum(own[key].numel() for key in keys)
