"""What a check is, where checks are filed, and what they say."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from mambaseg.datamodules.examination.scan import Scan
from mambaseg.datamodules.examination.survey import Survey

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """Something that a check found.

    Attributes:
        cases: The cases, or patients, that have it.
        what: What is wrong with them.
        grave: A defect; otherwise a remark, which a person should know but may leave as it is.
    """

    cases: tuple[str, ...]
    what: str
    grave: bool = True


@dataclass(frozen=True)
class Check(Generic[T]):
    """A check of one scan by itself, or of the survey of all.

    Attributes:
        name: What is asserted of sound data.
        fix: What to do about defects.
        look: Yields what is wrong.
    """

    name: str
    fix: str
    look: Callable[[T], Iterator[Finding]]


class Checklist(Generic[T]):
    """Checks in the order in which their functions are defined."""

    def __init__(self) -> None:
        self.checks: list[Check[T]] = []

    def add(
        self, name: str, fix: str
    ) -> Callable[[Callable[[T], Iterator[Finding]]], Callable[[T], Iterator[Finding]]]:
        """Return a decorator that files a function as the check of that name."""

        def file(look: Callable[[T], Iterator[Finding]]) -> Callable[[T], Iterator[Finding]]:
            self.checks.append(Check(name, fix, look))
            return look

        return file


OF_A_SCAN: Checklist[Scan] = Checklist()
OF_ALL: Checklist[Survey] = Checklist()


@dataclass(frozen=True)
class Result:
    """A check's findings; none where the data are sound."""

    name: str
    fix: str
    findings: tuple[Finding, ...]

    @property
    def defects(self) -> tuple[Finding, ...]:
        """The grave findings."""
        return tuple(finding for finding in self.findings if finding.grave)


@dataclass(frozen=True)
class Report:
    """What was examined and found.

    Attributes:
        name: The data set's name.
        where: Its folder, and what that is.
        scans: How many scans were read.
        patients: Of how many patients.
        splits: Names of the splits it was held against.
        results: One of each check, in their order.
    """

    name: str
    where: str
    scans: int
    patients: int
    splits: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def sound(self) -> bool:
        """No check found a defect."""
        return not any(result.defects for result in self.results)
