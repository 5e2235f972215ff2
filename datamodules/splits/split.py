"""Which patients train, validate and test."""

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from mambaseg.datamodules.manifest import Fields, read_json
from mambaseg.datamodules.source import CaseSource
from mambaseg.errors import InputError
from mambaseg.io.atomic import write_text
from mambaseg.registry import unknown_name

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = get_args(Part)

_FOLDER = Path(__file__).parent
_REPAIR = "Correct the file; the JSON files beside mambaseg.datamodules.splits show the form."


@dataclass(frozen=True)
class Split:
    """A division of a data set's patients.

    Attributes:
        name: Recorded with every result.
        dataset: Name of the data set it divides.
        train: Patients in an order that matters: the first n are the labelled ones.
        val: Patients for choosing models; may be empty.
        test: Patients for the final score.
        note: Where the split comes from.
    """

    name: str
    dataset: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    note: str = ""

    def part(self, part: Part) -> tuple[str, ...]:
        """Return the patients of one part."""
        return {"train": self.train, "val": self.val, "test": self.test}[part]

    def labelled(self, n: int) -> tuple[str, ...]:
        """Return the first ``n`` training patients.

        Raises:
            InputError: There are not so many, or ``n`` is below 1.
        """
        if not 1 <= n <= len(self.train):
            raise InputError(
                f"Split {self.name!r}: {n} labelled patients asked for, expected 1 to {len(self.train)}, "
                "the number of its training patients."
            )
        return self.train[:n]

    def with_validation(self, n: int) -> "Split":
        """Return a split whose ``n`` validation patients are taken out of ``train``, at even distances.

        Published orders often sort patients by diagnosis (ACDC's numbers do), so even distances keep all diagnoses in
        both parts.

        Raises:
            InputError: The split has validation patients already, or too few training patients.
        """
        if self.val:
            raise InputError(
                f"Split {self.name!r} already has {len(self.val)} validation patients. Leave out the number to carve."
            )
        if not 1 <= n < len(self.train):
            raise InputError(
                f"Split {self.name!r}: {n} validation patients asked for, expected 1 to {len(self.train) - 1}."
            )
        val = tuple(self.train[(2 * i + 1) * len(self.train) // (2 * n)] for i in range(n))
        train = tuple(patient for patient in self.train if patient not in val)
        return replace(self, name=f"{self.name}_val{n}", train=train, val=val)


def split_names() -> list[str]:
    """Return the names of the splits that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_split(name_or_path: str | Path) -> Split:
    """Load a split of the package by name, or any split file by path.

    Args:
        name_or_path: For example ``acdc_70_10_20``, or a path that ends in ``.json``.

    Raises:
        InputError: There is no such split, or a field of the file is missing or wrong.
    """
    path = Path(name_or_path)
    if path.suffix != ".json":
        if str(name_or_path) not in split_names():
            message = unknown_name("split", str(name_or_path), split_names())
            raise InputError(f"{message} A file of your own is given by its path, ending in .json.")
        path = _FOLDER / f"{name_or_path}.json"
    if not path.is_file():
        raise InputError(
            f"Split file {path} does not exist. Known names, given without .json: {', '.join(split_names())}."
        )
    fields = read_json(path, _REPAIR)
    _check_keys(fields)
    return Split(
        name=fields.text("name"),
        dataset=fields.text("dataset"),
        train=fields.texts("train"),
        val=fields.texts("val"),
        test=fields.texts("test"),
        note=fields.text("note") if "note" in fields.value else "",
    )


def save_split(split: Split, path: Path) -> None:
    """Write a split as JSON; ``load_split`` reads it back."""
    write_text(path, json.dumps(asdict(split), indent=1) + "\n")


def random_split(
    groups: Iterable[str],
    fractions: Sequence[float],
    seed: int,
    name: str,
    dataset: str,
    without_mask: Collection[str] = (),
) -> Split:
    """Divide patients at random.

    Patients are ordered by a hash of seed and name, so the result depends on no library's generator, and a patient
    added later changes no other's place in the order.

    Args:
        groups: The patients; repetitions count once.
        fractions: Shares of train, val and test, which sum to 1.
        seed: Another seed gives another order.
        name: Name of the split.
        dataset: Name of the data set.
        without_mask: Patients who can be neither scored nor learned from by masks: they train, behind all others.

    Raises:
        InputError: The fractions are not three shares of 1, a part with a share would get no patient, or too few have
            masks.
    """
    if len(fractions) != len(PARTS) or min(fractions) < 0 or not math.isclose(sum(fractions), 1.0, abs_tol=1e-6):
        raise InputError(f"fractions are {tuple(fractions)}, expected three shares (train, val, test) that sum to 1.")
    ordered = sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    counts = _largest_remainder(fractions, len(ordered))
    for part, share, count in zip(PARTS, fractions, counts, strict=True):
        if share > 0 and count == 0:
            raise InputError(f"{len(ordered)} patients are too few for a {part} share of {share:g}: it would be empty.")
    scored = [group for group in ordered if group not in without_mask]
    if len(scored) < counts[1] + counts[2] + (counts[0] > 0):
        raise InputError(
            f"{len(scored)} patients have masks, too few for shares {tuple(fractions)} of {len(ordered)}: {counts[1]} "
            f"would validate and {counts[2]} test, and none would be left to learn from. Give a split file."
        )
    val_start = len(scored) - counts[1] - counts[2]
    val, test = scored[val_start : val_start + counts[1]], scored[val_start + counts[1] :]
    train = scored[:val_start] + [group for group in ordered if group in without_mask]
    note = f"random by patient, seed {seed}, shares {'/'.join(f'{share:g}' for share in fractions)}"
    return Split(name, dataset, tuple(train), tuple(val), tuple(test), note)


def check_split(split: Split, source: CaseSource, parts: Sequence[Part] = PARTS) -> None:
    """Refuse a split that leaks or does not fit the data.

    Args:
        split: The split; leakage and repetitions are looked for in all of it.
        source: The data.
        parts: Whose patients must exist in the data: a test set may be absent while nothing asks for it.

    Raises:
        InputError: A patient is named twice or in two parts, the split is for another data set, or a patient of
            ``parts`` has no case.
    """
    if split.dataset != source.name:
        raise InputError(
            f"Split {split.name!r} divides data set {split.dataset!r}, but the data is {source.name!r}. "
            "Choose a split of this data set, or make one with random_split."
        )
    _check_distinct(split)
    known = {source.group(case_id) for case_id in source.case_ids()}
    for part in parts:
        missing = [patient for patient in split.part(part) if patient not in known]
        if missing:
            close = difflib.get_close_matches(missing[0], sorted(known), n=3)
            hint = f" Close to {missing[0]!r}: {', '.join(close)}." if close else ""
            raise InputError(
                f"Split {split.name!r}, field {part!r}: {len(missing)} of {len(split.part(part))} patients are not in "
                f"the data ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}).{hint} "
                "Prepare a source that holds them, or choose another split."
            )


def _check_distinct(split: Split) -> None:
    places: dict[str, Part] = {}
    for part in PARTS:
        repeated = [patient for patient, count in Counter(split.part(part)).items() if count > 1]
        if repeated:
            raise InputError(
                f"Split {split.name!r}, field {part!r} names {repeated[0]} more than once. Remove the repetition."
            )
        for patient in split.part(part):
            if patient in places:
                raise InputError(
                    f"Split {split.name!r}: {patient} is in {places[patient]!r} and in {part!r}, so scores would be "
                    "measured on training data. Keep it in one part."
                )
            places[patient] = part


def _check_keys(fields: Fields) -> None:
    allowed = ["name", "dataset", "train", "val", "test", "note"]
    for key in fields.value:
        if key not in allowed:
            raise InputError(f"{fields.path}: {unknown_name('field', key, allowed)}")


def _largest_remainder(fractions: Sequence[float], total: int) -> list[int]:
    exact = [share * total for share in fractions]
    # The small addition keeps 0.7 * 10 = 6.999... from losing a whole patient to rounding.
    counts = [math.floor(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts
