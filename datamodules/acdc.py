"""ACDC: cine cardiac MR of 100 patients, end-diastole and end-systole (https://doi.org/10.1109/TMI.2018.2837502)."""

from typing import Any

from mambaseg.datamodules.base import DATAMODULES
from mambaseg.datamodules.prepared import PreparedDataModule
from mambaseg.datamodules.source import CaseSource
from mambaseg.errors import InputError

CLASS_NAMES = ("background", "RV", "Myo", "LV")


@DATAMODULES.register("acdc")
class ACDCDataModule(PreparedDataModule):
    """ACDC with the split and the labelled patients of the semi-supervised literature.

    Args:
        root: The prepared folder; see ``PreparedDataModule``.
        split: ``acdc_70_10_20`` (semi-supervised papers), ``acdc_wsl_fold1`` to ``acdc_wsl_fold5`` (scribble papers;
            they have no validation patients, so add ``validation_patients``), or the path of a split file.
        labelled_patients: 3, 7 and 14 are the published 5, 10 and 20 %. None: all.
        kwargs: See ``SegmentationDataModule``.
    """

    def __init__(
        self,
        root: str = "data/acdc",
        split: str = "acdc_70_10_20",
        labelled_patients: int | None = 7,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, split, labelled_patients=labelled_patients, **kwargs)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class; known before the data is there, so that a configuration can be checked without it."""
        return CLASS_NAMES

    def open_source(self) -> CaseSource:
        """Open the prepared folder; see the base class."""
        try:
            source = super().open_source()
        except InputError as error:
            raise InputError(f"{error} With make: `make data DATASET=acdc SOURCE=DIR`.") from error
        if source.class_names != CLASS_NAMES:
            raise InputError(
                f"{self.root / 'manifest.json'}: class_names is {source.class_names}, but ACDC has {CLASS_NAMES}. "
                "Prepare it again with `make data DATASET=acdc SOURCE=DIR`, or use PreparedDataModule."
            )
        return source
