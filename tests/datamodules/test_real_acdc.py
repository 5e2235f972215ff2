"""The importer on real patients, 090 with its frames 04 and 11 among them."""

import h5py
import numpy as np
import pytest

from mambaseg.datamodules.importers import find_cases
from mambaseg.datamodules.prepare import prepare
from mambaseg.datamodules.splits import check_split, leakage_report, load_split
from mambaseg.datamodules.storage import PreparedDataset
from tests.datamodules.layouts import ACDC, acdc_request

pytestmark = pytest.mark.real_data

CHOSEN = ("patient090", "patient099")


@pytest.fixture
def two_patients(acdc_h5, tmp_path):
    """Links to the two patients' files alone, however many are unpacked."""
    for path in acdc_h5.glob("*/*.h5"):
        if path.name.startswith(CHOSEN):
            link = tmp_path / "source" / path.parent.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    return tmp_path / "source"


def test_real_volumes_are_stored_unchanged(two_patients, tmp_path):
    prepare(acdc_request(two_patients, tmp_path / "out"))
    dataset = PreparedDataset(tmp_path / "out")
    assert dataset.case_ids() == [f"{patient}_frame0{i}" for patient in CHOSEN for i in (1, 2)]
    assert dataset.details("patient090_frame01") == {"frame": 4, "phase": "ED", "pathology": "RV"}
    for case_id in dataset.case_ids():
        file = two_patients / dataset.record(case_id).source_files[0].file
        with h5py.File(file) as source:
            np.testing.assert_array_equal(dataset.array(case_id, "image"), source["image"])
            np.testing.assert_array_equal(dataset.array(case_id, "label"), source["label"])
            scribble = source["scribble"][...]
        np.testing.assert_array_equal(dataset.array(case_id, "scribble"), np.where(scribble == 4, 255, scribble))
        assert dataset.record(case_id).normalisation == "publisher"


def test_real_slices_stack_to_the_volumes(two_patients, tmp_path):
    prepare(acdc_request(two_patients, tmp_path / "volumes"))
    prepare(acdc_request(two_patients, tmp_path / "slices", layouts=ACDC.layouts_for("hdf5-slices")))
    volumes, slices = PreparedDataset(tmp_path / "volumes"), PreparedDataset(tmp_path / "slices")
    for case_id in volumes.case_ids():
        for kind in ("image", "label", "scribble"):
            assert volumes.sha256(case_id, kind) == slices.sha256(case_id, kind)


def test_real_scribbles_agree_with_the_masks(two_patients, tmp_path):
    prepare(acdc_request(two_patients, tmp_path / "out"))
    dataset = PreparedDataset(tmp_path / "out")
    for case_id in dataset.case_ids():
        scribble, label = dataset.array(case_id, "scribble"), dataset.array(case_id, "label")
        known = scribble != 255
        assert 0.002 < known.mean() < 0.03
        assert (scribble[known] == label[known]).mean() > 0.99


def test_the_heart_is_larger_in_diastole(two_patients, tmp_path):
    prepare(acdc_request(two_patients, tmp_path / "out"))
    dataset = PreparedDataset(tmp_path / "out")
    for patient in CHOSEN:
        cases = [case_id for case_id in dataset.case_ids() if dataset.group(case_id) == patient]
        cavity = {dataset.details(c)["phase"]: (dataset.array(c, "label") == 3).sum() for c in cases}
        assert cavity["ED"] > cavity["ES"]


def test_published_split_fits_all_that_is_unpacked(acdc_h5):
    _, found = find_cases(acdc_h5, ACDC.layouts_for("auto"))
    split = load_split("acdc_70_10_20")
    assert {case.group for case in found.cases} <= {*split.train, *split.val}


def test_real_patients_do_not_leak(two_patients, tmp_path):
    prepare(acdc_request(two_patients, tmp_path / "out"))
    dataset = PreparedDataset(tmp_path / "out")
    split = load_split("acdc_wsl_fold5")
    check_split(split, dataset, parts=())
    assert not leakage_report(split, dataset).leaks
