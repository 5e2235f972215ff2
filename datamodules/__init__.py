"""Data: import and storage, splits, samplers, augmentation, and one LightningDataModule a file for each dataset."""

import importlib
import pkgutil


def list_datasets() -> list[str]:
    """Return the names of all datasets; a new one is a file in this folder that registers itself."""
    from mambaseg.datamodules.base import DATAMODULES

    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg:
            importlib.import_module(f"{__name__}.{module.name}")
    return DATAMODULES.names()
