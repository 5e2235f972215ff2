"""Checks across scans: patients that are there twice, copied masks, and splits that leak."""

import re
from collections import defaultdict
from collections.abc import Iterator

from mambaseg.datamodules.examination.check import OF_ALL, Finding
from mambaseg.datamodules.examination.survey import Survey, Trace
from mambaseg.datamodules.splits import PARTS, Split

_NUMBER = re.compile(r"0*(\d+)")


@OF_ALL.add(
    "every patient is there once", "Remove one of them, or name them one patient (groups.csv), or choose a --split."
)
def every_patient_is_there_once(survey: Survey) -> Iterator[Finding]:
    """Find one person under two names: by the images, and by the spelling.

    It is a remark where every split keeps the two in one part, since then nothing is trained and scored on one person.
    """
    for (first, second), pairs in _by_patients(survey.twins()).items():
        equal = sum(a.image_digest == b.image_digest for a, b in pairs)
        apart = [split for split in survey.splits if len({*_parts(split, first), *_parts(split, second)}) > 1]
        together = bool(survey.splits) and not apart
        what = (
            _count(equal, "equal image") if equal else f"{_count(len(pairs), 'image')} alike but for noise and contrast"
        )
        where = f"; {_count(len(survey.splits), 'split')} keeping both in one part" if together else ""
        yield Finding((first, second), f"{what} under two patients{where}", grave=not together)
    for names in _spellings(survey).values():
        if len(names) > 1:
            yield Finding(tuple(names), "patients whose names differ in spelling alone")


@OF_ALL.add(
    "masks are drawn for their image", "Look which image these masks belong to; one was copied to another's name."
)
def masks_are_drawn_for_their_image(survey: Survey) -> Iterator[Finding]:
    """Find different images with equal masks."""
    by_digest: dict[str, list[Trace]] = defaultdict(list)
    for trace in survey.traces:
        if trace.label_digest is not None:
            by_digest[trace.label_digest].append(trace)
    for traces in by_digest.values():
        if len({trace.image_digest for trace in traces}) > 1:
            yield Finding(tuple(trace.case_id for trace in traces), "equal masks on different images")


@OF_ALL.add("masks show every class", "Compare --classes with the masks.")
def masks_show_every_class(survey: Survey) -> Iterator[Finding]:
    """Find classes that no mask shows."""
    seen = frozenset().union(*(trace.classes for trace in survey.traces))
    if not seen:
        return
    for value, name in enumerate(survey.class_names):
        if value not in seen:
            yield Finding((), f"no mask shows class {value}, {name}", grave=False)


@OF_ALL.add("splits do not leak", "Keep every patient, and all scans of one person, in one part of the split.")
def splits_do_not_leak(survey: Survey) -> Iterator[Finding]:
    """Find patients, and equal or nearly equal images, in two parts of a split; and patients that a split lacks."""
    present = survey.patients()
    twins = _by_patients(survey.twins())
    for split in survey.splits:
        if split.dataset != survey.name:
            yield Finding((), f"split {split.name} divides {split.dataset}, not {survey.name}")
        patients = list(dict.fromkeys(patient for part in PARTS for patient in split.part(part)))
        for patient in patients:
            parts = _parts(split, patient)
            if len(parts) > 1:
                yield Finding((patient,), f"split {split.name} has it in {' and in '.join(parts)}")
        for first, second in twins:
            parts = sorted({*_parts(split, first), *_parts(split, second)})
            if len(parts) > 1:
                yield Finding((first, second), f"one image in {' and in '.join(parts)} of split {split.name}")
        beside = tuple(sorted(set(present) - set(patients)))
        if beside:
            yield Finding(beside, f"split {split.name} leaves patients out", grave=False)
    named = {patient for split in survey.splits for part in PARTS for patient in split.part(part)}
    absent = tuple(sorted(named - set(present)))
    if absent:
        yield Finding(
            absent, f"{_count(len(absent), 'patient')} of {len(named)} in the splits are not here", grave=False
        )


def _by_patients(twins: list[tuple[Trace, Trace]]) -> dict[tuple[str, str], list[tuple[Trace, Trace]]]:
    found: dict[tuple[str, str], list[tuple[Trace, Trace]]] = defaultdict(list)
    for a, b in twins:
        first, second = sorted((a.group, b.group))
        found[first, second].append((a, b))
    return dict(found)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _parts(split: Split, patient: str) -> list[str]:
    return [part for part in PARTS if patient in split.part(part)]


def _spellings(survey: Survey) -> dict[str, list[str]]:
    """Return patients by their name in small letters, without separators and leading zeros."""
    found: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(survey.patients()):
        plain = _NUMBER.sub(r"\1", re.sub(r"[\W_]+", " ", patient.lower())).replace(" ", "")
        found[plain].append(patient)
    return found
