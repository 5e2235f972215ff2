"""Every planted defect is found, by the check that is there for it and in the case that has it; sound data pass."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from mambaseg.datamodules.examination import examine, find_collection
from mambaseg.datamodules.splits import Split
from mambaseg.errors import InputError
from tests.datamodules.examination.planted import SPACING_MM, halves, hearts, only, write
from tests.datamodules.layouts import make_scans, write_challenge, write_nifti, write_wsl_volumes

SECOND = "phantom003_frame01"


def defects(report):
    return {result.name: result.defects for result in report.results if result.defects}


def examined(cases, root, splits=None):
    return examine(find_collection(write(cases, root)), [halves(cases)] if splits is None else splits)


def test_sound_data_pass_without_a_remark(tmp_path):
    report = examined(hearts(24), tmp_path)
    assert report.sound
    assert (report.scans, report.patients) == (24, 24)
    assert [result.findings for result in report.results] == [()] * len(report.results)
    assert len(report.results) >= 15


def _nan(case):
    case.arrays["image"][1, 2, 3] = np.nan


def _infinite(case):
    case.arrays["image"][0, 0, 0] = np.inf


def _constant(case):
    case.arrays["image"][:] = 0.5


def _blank_slice_with_a_mask(case):
    case.arrays["image"][1] = 0.0
    case.arrays["label"][1, 30:40, 30:40] = 3


def _not_scaled(case):
    case.arrays["image"] *= 400.0


def _unknown_class(case):
    case.arrays["label"][0, :2] = 7


def _unknown_mark(case):
    case.arrays["scribble"][0, :2] = 4


def _nothing_known(case):
    case.arrays["label"][:] = 255


def _saved_as_0_and_255(case):
    case.arrays["label"] = np.where(case.arrays["label"] == 0, 0, 255).astype(np.uint8)


def _empty_scribble(case):
    case.arrays["scribble"][:] = 255


def _scribble_of_another(case):
    case.arrays["scribble"] = np.where(case.arrays["scribble"] == 255, 255, (case.arrays["scribble"] + 1) % 4)


def _swapped_mask(case):
    case.arrays["label"] = case.arrays["label"].transpose(0, 2, 1)


def _other_shape(case):
    case.arrays["scribble"] = case.arrays["scribble"][:, :-1]


def _slices_last(case):
    case.arrays = {kind: array.transpose(1, 2, 0) for kind, array in case.arrays.items()}
    case.spacing_mm, case.affine = None, None


def _slices_last_but_not_in_the_spacing(case):
    case.arrays = {kind: array.transpose(1, 2, 0) for kind, array in case.arrays.items()}


def _spacing_last(case):
    case.spacing_mm, case.affine = (4.0, 4.0, 9.0), None


def _block(case, height):
    """An organ with a plain outline, off the middle: what a turned mask misses."""
    label = np.zeros((4, height, 64), np.uint8)
    label[:, 8:24, 30:60] = 1
    noise = np.random.default_rng(0).normal(0.3, 0.03, label.shape)
    case.arrays = {"image": (noise + 0.4 * label).clip(0, 1).astype(np.float32), "label": label}


def _mirrored_mask(case):
    _block(case, 72)
    case.arrays["label"] = case.arrays["label"][:, ::-1]


def _swapped_mask_on_a_square(case):
    _block(case, 64)
    case.arrays["label"] = case.arrays["label"].transpose(0, 2, 1)


def _zero_spacing(case):
    case.spacing_mm, case.affine = (9.0, 0.0, 4.0), None


def _metres(case):
    case.spacing_mm, case.affine = tuple(side / 1000 for side in SPACING_MM), None


def _whole_house(case):
    case.spacing_mm, case.affine = (19.9, 19.9, 19.9), None


def _other_affine(case):
    case.affine = np.diag([4.0, 5.0, 9.0, 1.0])


def _no_spacing(case):
    case.spacing_mm, case.affine = None, None


def _ten_times(case):
    case.spacing_mm, case.affine = (9.0, 0.4, 0.4), None


DEFECTS = [
    (_nan, "images are numbers", "1 voxels are NaN"),
    (_infinite, "images are numbers", "NaN or infinite"),
    (_constant, "images show something", "every voxel is 0.5"),
    (_blank_slice_with_a_mask, "images show something", "slices 1 are constant, but the mask"),
    (_not_scaled, "images are scaled", "outside [0, 1]"),
    (_unknown_class, "masks hold known classes", "label has 7 in 128 voxels"),
    (_unknown_mark, "masks hold known classes", "scribble has 4 in 128 voxels"),
    (_saved_as_0_and_255, "masks hold known classes", "255 means unknown: write a class as 1"),
    (_nothing_known, "masks hold known classes", "no voxel of the mask is known"),
    (_empty_scribble, "scribbles mark something", "marks no voxel"),
    (_scribble_of_another, "scribbles agree with masks", "have another class"),
    (_swapped_mask, "masks have the image's shape", "label has swapped axes: (4, 64, 72), the image is (4, 72, 64)"),
    (_other_shape, "masks have the image's shape", "scribble does not fit"),
    (_slices_last, "slices are stacked along z", "shape (72, 64, 4) (z, y, x) is shortest along x"),
    (_slices_last_but_not_in_the_spacing, "slices are stacked along z", "shortest along x"),
    (_spacing_last, "slices are stacked along z", "longest along x"),
    (_mirrored_mask, "masks lie on what they outline", "turned upside down"),
    (_swapped_mask_on_a_square, "masks lie on what they outline", "with y and x swapped"),
    (_zero_spacing, "voxel sizes are plausible", "9 × 0 × 4 mm"),
    (_metres, "voxel sizes are plausible", "0.009 × 0.004 × 0.004 mm"),
    (_whole_house, "voxel sizes are plausible", "a slice measures 1433 × 1274 mm"),
    (_other_affine, "voxel sizes are plausible", "the affine says 9 × 5 × 4"),
    (_no_spacing, "voxel sizes go together", "which 5 other scans have"),
    (_ten_times, "voxel sizes go together", "0.4 mm along y, the data set's median is 4 mm"),
]


@pytest.mark.parametrize(("plant", "check", "words"), DEFECTS, ids=[plant.__name__ for plant, *_ in DEFECTS])
def test_a_defect_of_a_scan_is_found(tmp_path, plant, check, words):
    cases = hearts()
    plant(only(cases))
    found = defects(examined(cases, tmp_path))
    assert check in found, found
    assert [finding.cases for finding in found[check]] == [(SECOND,)]
    assert words in found[check][0].what


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damaged_files_are_found(tmp_path, damage):
    root = write(hearts(), tmp_path)
    path = root / "cases" / SECOND / "label.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-9])
    found = defects(examine(find_collection(root), []))
    assert set(found) == {"files are whole"}
    (finding,) = found["files are whole"]
    assert finding.cases == (SECOND,)
    assert str(path) in finding.what


def noisier(image):
    return np.clip(0.9 * image + 0.05 + np.random.default_rng(1).normal(0, 0.02, image.shape), 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("copy", "words"), [(np.copy, "1 equal image under"), (noisier, "1 image alike but for noise and contrast")]
)
def test_one_person_under_two_names(tmp_path, copy, words):
    cases = hearts()
    cases["phantom006_frame01"].arrays["image"] = copy(cases["phantom001_frame01"].arrays["image"])
    del cases["phantom006_frame01"].arrays["label"], cases["phantom006_frame01"].arrays["scribble"]
    both = ("phantom001", "phantom006")
    apart, together = halves(cases), Split("together", "phantom", both, (), ("phantom002",))

    found = defects(examined(cases, tmp_path, [apart, together]))
    assert set(found) == {"every patient is there once", "splits do not leak"}
    assert found["every patient is there once"][0].cases == both
    assert words in found["every patient is there once"][0].what
    assert found["splits do not leak"][0].cases == both
    assert found["splits do not leak"][0].what == "one image in test and in train of split halves"

    # Without a split, one made at random would part them; a split that keeps them together leaves a remark.
    assert set(defects(examined(cases, tmp_path, []))) == {"every patient is there once"}
    report = examined(cases, tmp_path, [together])
    assert report.sound
    remarks = {result.name: result.findings for result in report.results if result.findings}
    assert "1 split keeping both in one part" in remarks["every patient is there once"][0].what


def test_a_patient_in_two_spellings(tmp_path):
    cases = hearts()
    only(cases).group = "Phantom_1"
    found = defects(examined(cases, tmp_path, []))
    assert set(found) == {"every patient is there once"}
    assert found["every patient is there once"][0].cases == ("Phantom_1", "phantom001")


def test_a_patient_in_two_parts(tmp_path):
    cases = hearts()
    split = halves(cases)
    leaking = replace(split, val=split.train[:1])
    found = defects(examined(cases, tmp_path, [leaking]))
    assert set(found) == {"splits do not leak"}
    assert found["splits do not leak"][0].cases == ("phantom001",)
    assert found["splits do not leak"][0].what == "split halves has it in train and in val"


def test_a_split_of_other_data(tmp_path):
    cases = hearts()
    report = examined(cases, tmp_path, [replace(halves(cases), dataset="acdc")])
    assert "divides acdc, not phantom" in defects(report)["splits do not leak"][0].what


def test_a_mask_copied_to_another_scan(tmp_path):
    cases = hearts()
    cases["phantom002_frame01"].arrays["label"] = only(cases).arrays["label"].copy()
    del cases["phantom002_frame01"].arrays["scribble"]
    found = defects(examined(cases, tmp_path))
    assert found["masks are drawn for their image"][0].cases == ("phantom002_frame01", SECOND)


def test_a_class_that_no_mask_shows_is_a_remark(tmp_path):
    cases = hearts()
    for case in cases.values():
        case.arrays["label"][case.arrays["label"] == 1] = 0
        del case.arrays["scribble"]
    report = examined(cases, tmp_path)
    found = {result.name: result.findings for result in report.results if result.findings}
    assert report.sound
    assert found["masks show every class"][0].what == "no mask shows class 1, RV"


def test_published_files_are_examined_before_they_are_prepared(tmp_path):
    scans = make_scans()
    write_wsl_volumes(tmp_path, scans)
    report = examine(find_collection(tmp_path))
    assert (report.name, report.scans, report.sound) == ("acdc", 6, True)
    with h5py.File(tmp_path / "ACDC_training_volumes" / "patient001_frame12.h5", "r+") as file:
        file["image"][0, 0, 0] = np.nan
        file["label"][0, 0, 0] = 9
        file["scribble"][...] = 4
    (tmp_path / "ACDC_training_volumes" / "patient002_frame01.h5").write_bytes(b"torn")
    found = defects(examine(find_collection(tmp_path)))
    named = {name: {finding.cases for finding in findings} for name, findings in found.items()}
    torn, damaged = ("patient002_frame01",), ("patient001_frame02",)
    assert named == {
        "files are whole": {torn},
        "images are numbers": {damaged},
        "masks hold known classes": {damaged},
        "scribbles mark something": {damaged},
    }


def test_nifti_files_and_folders_of_ones_own(tmp_path):
    write_challenge(tmp_path / "acdc", make_scans())
    assert examine(find_collection(tmp_path / "acdc")).sound
    for number in range(3):
        image = np.random.default_rng(number).random((5, 40, 36), dtype=np.float32)
        write_nifti(tmp_path / "own" / "images" / f"p{number}.nii.gz", image)
    write_nifti(tmp_path / "own" / "labels" / "p1.nii.gz", np.ones((5, 36, 40), np.uint8))
    found = defects(examine(find_collection(tmp_path / "own")))
    assert set(found) == {"files are whole"}
    assert "has shape (5, 36, 40)" in found["files are whole"][0].what


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no layout that is known here"):
        find_collection(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        find_collection(tmp_path / "absent")


@pytest.mark.real_data
def test_real_patients_are_sound_but_for_the_published_twins(acdc_h5):
    report = examine(find_collection(acdc_h5))
    assert report.sound
    remarks = {result.name: result.findings for result in report.results if result.findings}
    twins = [f.cases for f in remarks.get("every patient is there once", ())]
    all_unpacked = report.patients == 80
    assert twins == ([("patient074", "patient076")] if all_unpacked else [])
