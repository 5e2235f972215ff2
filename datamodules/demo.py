"""The generated phantom as a dataset: everything can be tried without data, on a laptop."""

from typing import Any

from mambaseg.datamodules.base import DATAMODULES, SegmentationDataModule
from mambaseg.datamodules.phantom import Phantom
from mambaseg.datamodules.source import CaseSource
from mambaseg.datamodules.splits import Split
from mambaseg.errors import InputError


@DATAMODULES.register("demo")
class DemoDataModule(SegmentationDataModule):
    """Generated cine-cardiac patients; nothing is read from disk.

    Args:
        patients: Training patients.
        held_out: Validation patients, and as many test patients.
        frames: Frames per patient, the first at end-diastole.
        depth: Slices per case.
        labelled_patients: How many training patients are labelled. None: all.
        batch_labelled: Labelled slices in a batch.
        batch_unlabelled: Unlabelled slices in a batch.
        size: Height and width of the phantom's and of the training slices in pixels.
        workers: Loader processes; the phantom lives in memory, where 0 is fastest.
        phantom_seed: Seed of the patients; ``seed`` decides order and augmentation only.
        scanner_spread: How far the scanners' contrasts lie apart, from 0 to 1.
        field_of_view: Share of the scanned width that the slices show, around its middle.
        kwargs: See ``SegmentationDataModule``.
    """

    def __init__(
        self,
        patients: int = 16,
        held_out: int = 4,
        frames: int = 2,
        depth: int = 6,
        labelled_patients: int | None = 3,
        batch_labelled: int = 4,
        batch_unlabelled: int = 4,
        size: tuple[int, int] = (64, 64),
        workers: int | None = 0,
        phantom_seed: int = 0,
        scanner_spread: float = 1.0,
        field_of_view: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            labelled_patients=labelled_patients,
            batch_labelled=batch_labelled,
            batch_unlabelled=batch_unlabelled,
            size=size,
            workers=workers,
            **kwargs,
        )
        if held_out < 1:
            raise InputError(f"held_out is {held_out}, but validation needs at least 1 patient.")
        self.patients = patients
        self.phantom = Phantom(
            patients + 2 * held_out, frames, depth, self.size, phantom_seed, scanner_spread, field_of_view
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class, background first."""
        return self.phantom.class_names

    def open_source(self) -> CaseSource:
        """Return the phantom; see the base class."""
        return self.phantom

    def make_split(self, source: CaseSource) -> Split:
        """Take the patients in order; see the base class."""
        groups = tuple(dict.fromkeys(source.group(case_id) for case_id in source.case_ids()))
        train, held_out = groups[: self.patients], groups[self.patients :]
        middle = len(held_out) // 2
        return Split("demo", source.name, train, held_out[:middle], held_out[middle:], "generated patients in order")
