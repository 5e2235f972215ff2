"""The data sets that ``mambaseg prepare`` knows: their classes, layouts, licence and where to ask for them."""

from dataclasses import dataclass

from mambaseg.datamodules.importers import FOLDER, HDF5, HDF5_SLICES, NIFTI, Layout
from mambaseg.registry import Registry


@dataclass(frozen=True)
class DatasetEntry:
    """A data set as ``prepare`` sees it.

    Attributes:
        name: As the command takes it.
        title: One line about it.
        class_names: Name of every label value, background first; empty where the user must say.
        layouts: The published layouts, looked for in this order.
        licence: Under which terms the data is given, shown before a download.
        citation: The paper to cite.
        home: Page where the data is asked for.
        archive_url: A known address of an archive, None where there is none that anyone may fetch.
        archive_sha256: Its checksum.
        next_command: What to run once it is prepared; empty where an experiment has to be written first.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    layouts: tuple[Layout, ...]
    licence: str = "not known: ask whoever gave you the data"
    citation: str = ""
    home: str = ""
    archive_url: str | None = None
    archive_sha256: str | None = None
    next_command: str = ""

    def layouts_for(self, choice: str) -> tuple[Layout, ...]:
        """Return the layouts to look for: all but the special cases for ``auto``, else the one of that name.

        Raises:
            InputError: The data set has no layout of that name.
        """
        if choice == "auto":
            return tuple(layout for layout in self.layouts if layout is not HDF5_SLICES)
        named: Registry[Layout] = Registry(f"layout of {self.name}")
        for layout in self.layouts:
            named.register(layout.name)(layout)
        return (named.get(choice),)


DATASETS: Registry[DatasetEntry] = Registry("data set")
DATASETS.register("acdc")(
    DatasetEntry(
        name="acdc",
        title="ACDC: cine cardiac MR, end-diastole and end-systole",
        class_names=("background", "RV", "Myo", "LV"),
        layouts=(NIFTI, HDF5, HDF5_SLICES),
        licence="CC BY-NC-SA 4.0, for research",
        citation="Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018",
        home="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
        next_command="make train EXP=semi_acdc",
    )
)
DATASETS.register("folder")(
    DatasetEntry(
        name="folder",
        title="your own: images/, labels/ and scribbles/ with NIfTI files of equal names",
        class_names=(),
        layouts=(FOLDER,),
    )
)
