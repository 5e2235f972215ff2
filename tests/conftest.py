"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Test processes fill the cores already: a second thread of each waits for a core while the first one spins, which
    # slowed a training that a test starts from 0.4 to 7 seconds a step.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def acdc_archive() -> Path:
    """The folder with the packed real ACDC patients; tests that need it skip, and say so, where it is absent."""
    folder = Path(os.environ.get("MAMBASEG_ACDC_ARCHIVE", REPOSITORY.parent / "shared" / "data" / "acdc"))
    if not (folder / "acdc_trainval.zip").is_file():
        pytest.skip(f"real ACDC data not found at {folder} (set MAMBASEG_ACDC_ARCHIVE)")
    return folder
