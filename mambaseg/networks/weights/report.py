"""What became of the tensors of a file, and of those of the network that it was loaded into."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fate:
    """Tensors that met the same end.

    Attributes:
        tensors: Names with a remark each, empty where there is none.
        values: How many numbers they hold.
    """

    tensors: dict[str, str]
    values: int


@dataclass(frozen=True)
class LoadReport:
    """A loading of weights.

    Attributes:
        source: The file.
        sha256: Its checksum.
        key_map: The naming scheme it was read with.
        prefix: What was cut off the front of its names.
        part: What the file can fill, in words: the whole network, or its encoder.
        part_values: Values of that part.
        network_values: Values of the network's whole state.
        loaded: The network's tensors that were set at their own place.
        mirrored: Decoder tensors that were set from the encoder's.
        reshaped: Those of the two above whose shape was adapted, with how.
        mismatched: The file's tensors that fit no shape, left out, with both shapes.
        missing: The part's tensors that the file did not set.
        fresh: The network's tensors outside the part.
        unexpected: The file's tensors that the network has no place for.
    """

    source: str
    sha256: str
    key_map: str
    prefix: str
    part: str
    part_values: int
    network_values: int
    loaded: Fate
    mirrored: Fate
    reshaped: Fate
    mismatched: Fate
    missing: Fate
    fresh: Fate
    unexpected: Fate

    @property
    def loaded_values(self) -> int:
        """Values of the network that were set."""
        return self.loaded.values + self.mirrored.values

    @property
    def fraction(self) -> float:
        """Share of the part's values that were set."""
        return self.loaded_values / self.part_values if self.part_values else 0.0

    @property
    def fraction_of_network(self) -> float:
        """Share of the whole network's values that were set."""
        return self.loaded_values / self.network_values

    def fates(self) -> Iterable[tuple[str, Fate]]:
        """Yield what may have happened, in words, with the tensors it happened to."""
        yield "loaded", self.loaded
        yield "mirrored into the decoder", self.mirrored
        yield "reshaped (of these)", self.reshaped
        yield "missing in the file", self.missing
        yield "not covered, stay fresh", self.fresh
        yield "unexpected, left out", self.unexpected
        yield "mismatched, left out", self.mismatched

    def summary(self) -> str:
        """Return the report in one line."""
        return (
            f"{self.fraction:.1%} of {self.part} ({self.loaded_values:,} of {self.part_values:,} values; "
            f"{self.fraction_of_network:.1%} of the network): {len(self.loaded.tensors)} tensors loaded, "
            f"{len(self.mirrored.tensors)} mirrored, {len(self.reshaped.tensors)} of these reshaped, "
            f"{len(self.missing.tensors)} missing, {len(self.unexpected.tensors)} unexpected, "
            f"{len(self.mismatched.tensors)} mismatched"
        )
