"""Any dataset that ``mambaseg prepare`` has written."""

import os
from pathlib import Path
from typing import Any

from mambaseg.datamodules.base import DATAMODULES, SegmentationDataModule
from mambaseg.datamodules.normalise import BY_PUBLISHER
from mambaseg.datamodules.source import CaseSource
from mambaseg.datamodules.splits import Split, load_split, random_split
from mambaseg.datamodules.storage import PreparedDataset

DATA_FOLDER = "data"


@DATAMODULES.register("prepared")
class PreparedDataModule(SegmentationDataModule):
    """A dataset of your own, imported with ``mambaseg prepare folder``.

    Args:
        root: The prepared folder. A path that starts with ``data/`` is looked for under ``MAMBASEG_DATA`` where that
            environment variable is set.
        split: Name of a split that comes with the package, or path of a split file. None: 70 % of the patients train,
            10 % validate and 20 % test, drawn at random from ``split_seed``.
        split_seed: Seed of the random split; apart from ``seed``, so that runs with other seeds share their test set.
        kwargs: See ``SegmentationDataModule``.
    """

    def __init__(self, root: str, split: str | None = None, split_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = resolve_root(root)
        self.split_choice = split
        self.split_seed = split_seed

    def open_source(self) -> CaseSource:
        """Open the prepared folder; see the base class."""
        return PreparedDataset(self.root)

    @property
    def normalisation(self) -> str | None:
        """What importing did to all images; what ACDC's publisher had done, ``clip99`` repeats."""
        if not isinstance(self.source, PreparedDataset):
            return None
        done = {case.normalisation for case in self.source.manifest.cases.values()}
        done = {"clip99" if how == BY_PUBLISHER else how for how in done}
        return done.pop() if len(done) == 1 else None

    def make_split(self, source: CaseSource) -> Split:
        """Load or draw the split; see the base class."""
        if self.split_choice is not None:
            return load_split(self.split_choice)
        groups = {source.group(case_id) for case_id in source.case_ids()}
        without = {source.group(case_id) for case_id in source.case_ids() if not source.has(case_id, "label")}
        shares, name = (0.7, 0.1, 0.2), f"random{self.split_seed}"
        return random_split(groups, shares, self.split_seed, name, source.name, without)


def resolve_root(root: str) -> Path:
    """Return the folder that ``root`` means, with ``MAMBASEG_DATA`` in the place of a leading ``data``."""
    path = Path(root).expanduser()
    home = os.environ.get("MAMBASEG_DATA")
    if home and path.parts[:1] == (DATA_FOLDER,):
        return Path(home, *path.parts[1:])
    return path
