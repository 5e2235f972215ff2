"""Finding the same patient, or the same image under two names, on both sides of a split."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from mambaseg.datamodules.source import ArrayKind, CaseSource
from mambaseg.datamodules.splits.split import PARTS, Part, Split


class ChecksummedSource(CaseSource, Protocol):
    """A source that knows its arrays' checksums, as ``PreparedDataset`` does."""

    def sha256(self, case_id: str, kind: ArrayKind) -> str:
        """Return the checksum of an array."""
        ...


@dataclass(frozen=True)
class LeakageReport:
    """What was found; empty when the split is clean.

    Attributes:
        shared_patients: Patients in more than one part, with these parts.
        identical_images: Sets of cases of different patients whose images are equal byte for byte.
        crossing_images: Those of them that stand in different parts.
    """

    shared_patients: dict[str, tuple[Part, ...]]
    identical_images: tuple[tuple[str, ...], ...]
    crossing_images: tuple[tuple[str, ...], ...]

    @property
    def leaks(self) -> bool:
        """Something of one part is also in another."""
        return bool(self.shared_patients or self.crossing_images)

    def lines(self) -> list[str]:
        """Return the findings as sentences."""
        found = [f"{patient} is in {' and in '.join(parts)}" for patient, parts in self.shared_patients.items()]
        for cases in self.identical_images:
            where = "in different parts" if cases in self.crossing_images else "outside or within one part"
            found.append(f"{', '.join(cases)} have the same image under different patients, {where}")
        return found


def identical_images(source: ChecksummedSource) -> list[tuple[str, ...]]:
    """Return the sets of cases of different patients whose images are equal byte for byte."""
    by_digest: dict[str, list[str]] = defaultdict(list)
    for case_id in source.case_ids():
        by_digest[source.sha256(case_id, "image")].append(case_id)
    return [tuple(cases) for cases in by_digest.values() if len({source.group(case_id) for case_id in cases}) > 1]


def leakage_report(split: Split, source: ChecksummedSource) -> LeakageReport:
    """Compare a split with the data it divides.

    Args:
        split: The split, however wrong.
        source: The data, with checksums.
    """
    parts: dict[str, list[Part]] = defaultdict(list)
    for part in PARTS:
        for patient in dict.fromkeys(split.part(part)):
            parts[patient].append(part)
    by_digest: dict[str, list[str]] = defaultdict(list)
    for case_id in source.case_ids():
        by_digest[source.sha256(case_id, "image")].append(case_id)
    identical = [tuple(cases) for cases in by_digest.values() if len({source.group(case_id) for case_id in cases}) > 1]
    crossing = [
        cases for cases in identical if len({part for case_id in cases for part in parts[source.group(case_id)]}) > 1
    ]
    shared = {patient: tuple(found) for patient, found in parts.items() if len(found) > 1}
    return LeakageReport(shared, tuple(identical), tuple(crossing))
