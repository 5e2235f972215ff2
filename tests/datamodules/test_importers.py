"""Every published layout becomes the same prepared cases; every kind of bad file is named."""

import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from mambaseg.datamodules.catalogue import DATASETS
from mambaseg.datamodules.importers import find_cases
from mambaseg.datamodules.importers.acdc_names import Frame, canonical_frames, known_details
from mambaseg.datamodules.prepare import PrepareRequest, prepare
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.errors import InputError
from tests.datamodules.layouts import (
    ACDC,
    AFFINE,
    LAYOUT_WRITERS,
    SPACING_MM,
    acdc_request,
    make_scans,
    write_challenge,
    write_nifti,
    write_ssl_slices,
    write_wsl_slices,
    write_wsl_volumes,
)


def import_acdc(source: Path, out: Path, **changes) -> PreparedDataset:
    prepare(acdc_request(source, out, **changes))
    return PreparedDataset(out)


@pytest.mark.parametrize("layout", LAYOUT_WRITERS)
def test_layout_gives_the_source_arrays(layout, tmp_path):
    scans = make_scans()
    LAYOUT_WRITERS[layout](tmp_path / "source", scans)
    dataset = import_acdc(tmp_path / "source", tmp_path / "out", normalise="none")

    assert dataset.case_ids() == sorted(scan.case_id for scan in scans)
    for scan in scans:
        image, label = dataset.array(scan.case_id, "image"), dataset.array(scan.case_id, "label")
        assert (image.dtype, label.dtype) == (np.float32, np.uint8)
        np.testing.assert_array_equal(image, scan.image)
        np.testing.assert_array_equal(label, scan.label)
        assert dataset.group(scan.case_id) == scan.patient
        assert dataset.has(scan.case_id, "scribble") == (not layout.startswith("ssl"))
        if dataset.has(scan.case_id, "scribble"):
            scribble = dataset.array(scan.case_id, "scribble")
            assert scribble.dtype == np.uint8
            np.testing.assert_array_equal(scribble, scan.known_scribble)


@pytest.mark.parametrize("layout", ["wsl volumes", "wsl slices", "challenge"])
def test_true_frame_and_phase_are_kept(layout, tmp_path):
    LAYOUT_WRITERS[layout](tmp_path / "source", make_scans())
    dataset = import_acdc(tmp_path / "source", tmp_path / "out")
    assert [dataset.details(f"patient090_frame0{i}")["frame"] for i in (1, 2)] == [4, 11]
    assert [dataset.details(f"patient001_frame0{i}")["phase"] for i in (1, 2)] == ["ED", "ES"]


def test_phase_is_what_info_cfg_says_and_else_the_lower_frame_is_diastole(tmp_path):
    write_challenge(tmp_path / "challenge", make_scans())
    write_wsl_volumes(tmp_path / "wsl", make_scans())
    challenge = import_acdc(tmp_path / "challenge", tmp_path / "a")
    wsl = import_acdc(tmp_path / "wsl", tmp_path / "b")
    assert [challenge.details(f"patient090_frame0{i}")["phase"] for i in (1, 2)] == ["ES", "ED"]
    assert [wsl.details(f"patient090_frame0{i}")["phase"] for i in (1, 2)] == ["ED", "ES"]


def test_challenge_keeps_geometry_and_info(tmp_path):
    write_challenge(tmp_path / "source", make_scans())
    dataset = import_acdc(tmp_path / "source", tmp_path / "out")
    assert dataset.spacing_mm("patient001_frame01") == pytest.approx(SPACING_MM, abs=1e-6)
    np.testing.assert_allclose(dataset.affine("patient001_frame01"), AFFINE)
    details = dataset.details("patient001_frame02")
    assert details["pathology"] == "DCM"
    assert details["height_cm"] == 184.0
    assert details["subset"] == "training"
    assert dataset.details("patient002_frame01")["subset"] == "testing"


def test_hdf5_has_no_geometry_and_is_marked_as_normalised_by_its_publisher(tmp_path):
    scans = make_scans()
    write_wsl_volumes(tmp_path / "source", scans)
    dataset = import_acdc(tmp_path / "source", tmp_path / "out")
    assert dataset.spacing_mm("patient001_frame01") is None
    assert dataset.affine("patient001_frame01") is None
    assert dataset.record("patient001_frame01").normalisation == "publisher"
    np.testing.assert_array_equal(dataset.array("patient001_frame01", "image"), scans[0].image)


def test_hdf5_outside_the_unit_range_is_normalised(tmp_path):
    scans = make_scans()
    scans[0].image *= 300
    write_wsl_volumes(tmp_path / "source", scans)
    dataset = import_acdc(tmp_path / "source", tmp_path / "out")
    assert dataset.record("patient001_frame01").normalisation == "clip99"
    assert dataset.array("patient001_frame01", "image").max() == 1.0


def test_slices_fill_in_for_missing_volumes(tmp_path):
    scans = make_scans()
    write_wsl_volumes(tmp_path, scans[:2])
    write_wsl_slices(tmp_path, scans)
    _, found = find_cases(tmp_path, ACDC.layouts_for("auto"))
    assert [len(case.files) for case in found.cases] == [1, 1, *(len(scan.image) for scan in scans[2:])]


def test_the_folder_with_most_files_wins_and_the_rest_is_reported(tmp_path):
    scans = make_scans()
    write_wsl_volumes(tmp_path, scans)
    (tmp_path / "imgs").mkdir()
    shutil.copy(tmp_path / "ACDC_training_volumes" / "patient001_frame01.h5", tmp_path / "imgs")
    _, found = find_cases(tmp_path, ACDC.layouts_for("auto"))
    assert len(found.cases) == len(scans)
    assert "ignored 1 files" in found.notes[0]
    assert "imgs" in found.notes[0]


def test_scribbles_may_lie_in_a_folder_of_their_own(tmp_path):
    scans = make_scans()
    write_challenge(tmp_path / "source", scans, scribbles=False)
    for scan in scans:
        write_nifti(
            tmp_path / "source" / "scribbles" / f"{scan.patient}_frame{scan.frame:02d}_scribble.nii.gz", scan.scribble
        )
    dataset = import_acdc(tmp_path / "source", tmp_path / "out")
    np.testing.assert_array_equal(dataset.array("patient090_frame01", "scribble"), scans[4].known_scribble)


@pytest.mark.parametrize(
    ("patient", "numbers", "expected"),
    [
        ("patient001", {1, 12}, {1: Frame(1, 1), 12: Frame(2, 12)}),
        ("patient001", {1, 2}, {1: Frame(1, 1), 2: Frame(2, None)}),
        ("patient001", {12}, {12: Frame(2, 12)}),
        ("patient001", {2}, {2: Frame(2, None)}),
        ("patient090", {4, 11}, {4: Frame(1, 4), 11: Frame(2, 11)}),
        ("patient090", {1, 2}, {1: Frame(1, None), 2: Frame(2, None)}),
        ("patient090", {4}, {4: Frame(1, 4)}),
        ("patient090", {11}, {11: Frame(2, 11)}),
        ("patient090", {1}, {1: Frame(1, None)}),
    ],
)
def test_canonical_frames(patient, numbers, expected):
    assert canonical_frames(patient, numbers, "folder") == expected


def test_diagnosis_follows_the_patient_number():
    numbers = {1: "DCM", 20: "DCM", 21: "HCM", 41: "MINF", 80: "NOR", 81: "RV", 100: "RV"}
    for number, pathology in numbers.items():
        assert known_details(f"patient{number:03d}", Frame(1, 1))["pathology"] == pathology
    assert "pathology" not in known_details("patient101", Frame(1, 1))


def test_folder_layout(tmp_path):
    scans = make_scans()[:3]
    for scan in scans:
        write_nifti(tmp_path / "images" / f"{scan.case_id}.nii.gz", scan.image * 500)
    write_nifti(tmp_path / "labels" / f"{scans[0].case_id}.nii.gz", scans[0].label)
    write_nifti(tmp_path / "scribbles" / f"{scans[1].case_id}.nii.gz", scans[1].scribble)
    rows = [f"{scan.case_id},{scan.patient}" for scan in scans]
    (tmp_path / "groups.csv").write_text("\n".join(["case,group", *rows]))

    layouts = DATASETS.get("folder").layouts
    prepare(PrepareRequest("mine", ACDC.class_names, layouts, tmp_path, tmp_path / "out"))
    dataset = PreparedDataset(tmp_path / "out")

    assert dataset.groups() == ["patient001", "patient002"]
    assert [dataset.has(scan.case_id, "label") for scan in scans] == [True, False, False]
    np.testing.assert_array_equal(dataset.array(scans[0].case_id, "label"), scans[0].label)
    np.testing.assert_array_equal(dataset.array(scans[1].case_id, "scribble"), scans[1].known_scribble)
    assert dataset.spacing_mm(scans[2].case_id) == pytest.approx(SPACING_MM, abs=1e-6)
    assert dataset.record(scans[0].case_id).normalisation == "clip99"


def _edit_h5(path: Path, **arrays: np.ndarray | None) -> None:
    with h5py.File(path, "a") as file:
        for key, array in arrays.items():
            del file[key]
            if array is not None:
                file[key] = array


def _volume(source: Path) -> Path:
    return source / "ACDC_training_volumes" / "patient001_frame01.h5"


def _bad_value(source, scan):
    label = scan.label.copy()
    label[1, 2, 3] = 7
    _edit_h5(_volume(source), label=label)


def _bad_scribble(source, scan):
    _edit_h5(_volume(source), scribble=np.full_like(scan.scribble, 5))


def _other_shape(source, scan):
    _edit_h5(_volume(source), label=scan.label[:, :-1])


def _nan(source, scan):
    image = scan.image.copy()
    image[1, 2, 3] = np.nan
    _edit_h5(_volume(source), image=image)


def _constant(source, scan):
    _edit_h5(_volume(source), image=np.full_like(scan.image, 0.5))


def _missing_key(source, scan):
    _edit_h5(_volume(source), label=None)


def _corrupt(source, scan):
    _volume(source).write_bytes(b"<html>not found</html>")


def _truncated(source, scan):
    _volume(source).write_bytes(_volume(source).read_bytes()[:2000])


def _slice_named_as_volume(source, scan):
    _edit_h5(_volume(source), image=scan.image[0], label=scan.label[0], scribble=scan.scribble[0])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_bad_value, ["label has the value 7 in 1 voxels", "1 RV"]),
        (_bad_scribble, ["scribble has the value 5", "no class"]),
        (_other_shape, ["label has shape (4, 10, 9)", "image has (4, 11, 9)"]),
        (_nan, ["1 voxels", "NaN", "(1, 2, 3)"]),
        (_constant, ["every voxel of the image is 0.5"]),
        (_missing_key, ["no key 'label'", "only image, scribble"]),
        (_corrupt, ["cannot be read as HDF5", "again"]),
        (_truncated, ["cannot be read as HDF5"]),
        (_slice_named_as_volume, ["'image' has shape (11, 9)", "_slice_K"]),
    ],
)
def test_bad_hdf5_is_named(damage, words, tmp_path):
    scans = make_scans()
    write_wsl_volumes(tmp_path / "source", scans)
    damage(tmp_path / "source", scans[0])
    with pytest.raises(InputError) as caught:
        import_acdc(tmp_path / "source", tmp_path / "out")
    for word in ["1 of 6 cases", "patient001_frame01.h5", *words]:
        assert word in str(caught.value)


def test_all_bad_files_are_named_at_once_and_the_good_ones_kept(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    scans = make_scans()
    write_wsl_volumes(source, scans)
    whole = _volume(source).read_bytes()
    _corrupt(source, scans[0])
    _edit_h5(source / "ACDC_training_volumes" / "patient002_frame09.h5", label=None)
    with pytest.raises(InputError, match=r"(?s)2 of 6 cases.*patient001_frame01.*patient002_frame09"):
        import_acdc(source, out)
    with pytest.raises(InputError, match=r"4 finished cases but no manifest\.json"):
        PreparedDataset(out)

    _volume(source).write_bytes(whole)
    shutil.copy(_volume(source), source / "ACDC_training_volumes" / "patient002_frame09.h5")
    report = prepare(acdc_request(source, out))
    assert (len(report.imported), len(report.kept)) == (2, 4)


@pytest.mark.parametrize("write", [write_wsl_slices, write_ssl_slices])
def test_missing_slice_is_named(write, tmp_path):
    write(tmp_path, make_scans())
    first = 0 if write is write_wsl_slices else 1
    lost = sorted(tmp_path.rglob(f"patient001_frame01_slice_{first}.h5"))[0]
    lost.unlink()
    with pytest.raises(InputError, match=f"patient001_frame01 lacks slice {first}"):
        find_cases(tmp_path, ACDC.layouts_for("auto"))


def test_slices_of_two_sizes_are_named(tmp_path):
    scans = make_scans()
    write_wsl_slices(tmp_path / "source", scans)
    odd = tmp_path / "source" / "ACDC_training_slices" / "patient001_frame01_slice_2.h5"
    _edit_h5(odd, image=scans[0].image[2, :-1])
    with pytest.raises(InputError, match=r"slice_2\.h5: 'image' has shape \(10, 9\)"):
        import_acdc(tmp_path / "source", tmp_path / "out")


def test_mixed_naming_schemes_are_refused(tmp_path):
    scans = make_scans({"patient001": (1, 12)})
    write_wsl_volumes(tmp_path, scans)
    shutil.copy(_volume(tmp_path), _volume(tmp_path).with_name("patient001_frame02.h5"))
    with pytest.raises(InputError, match=r"patient001 has files of 3 frames \(01, 02, 12\)"):
        find_cases(tmp_path, ACDC.layouts_for("auto"))


def _stem(source: Path) -> Path:
    return source / "training" / "patient001" / "patient001_frame01"


def _gt_shape(source, scan):
    write_nifti(Path(f"{_stem(source)}_gt.nii.gz"), scan.label[:-1])


def _gt_affine(source, scan):
    moved = AFFINE.copy()
    moved[0, 3] += 3.0
    write_nifti(Path(f"{_stem(source)}_gt.nii.gz"), scan.label, moved)


def _gt_truncated(source, scan):
    path = Path(f"{_stem(source)}_gt.nii.gz")
    path.write_bytes(path.read_bytes()[:200])


def _image_is_text(source, scan):
    Path(f"{_stem(source)}.nii.gz").write_bytes(b"<html>not found</html>")


def _image_four_dimensional(source, scan):
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 11, 4, 2), np.float32), AFFINE), f"{_stem(source)}.nii.gz")


def _image_infinite(source, scan):
    image = scan.image.copy()
    image[0, 0, 0] = np.inf
    write_nifti(Path(f"{_stem(source)}.nii.gz"), image)


def _image_gone(source, scan):
    Path(f"{_stem(source)}.nii.gz").unlink()


def _info_names_other_frame(source, scan):
    _stem(source).with_name("Info.cfg").write_text("ED: 1\nES: 13\n")


def _info_no_number(source, scan):
    _stem(source).with_name("Info.cfg").write_text("ED: one\n")


def _info_no_colon(source, scan):
    _stem(source).with_name("Info.cfg").write_text("ED: 1\nES 12\n")


def _patient_twice(source, scan):
    shutil.copytree(source / "training" / "patient001", source / "testing" / "patient001")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_gt_shape, ["_gt.nii.gz has shape (3, 11, 9)", "patient001_frame01.nii.gz has (4, 11, 9)"]),
        (_gt_affine, ["_gt.nii.gz", "3.00 mm away"]),
        (_gt_truncated, ["_gt.nii.gz", "cannot be read as NIfTI"]),
        (_image_is_text, ["patient001_frame01.nii.gz", "cannot be read as NIfTI"]),
        (_image_four_dimensional, ["(9, 11, 4, 2)", "three axes"]),
        (_image_infinite, ["patient001_frame01.nii.gz", "infinite", "(0, 0, 0)"]),
        (_image_gone, ["has no image", "patient001_frame01.nii.gz is missing"]),
        (_info_names_other_frame, ["Info.cfg", "'ES' names frame 13", "found: 01, 12"]),
        (_info_no_number, ["Info.cfg", "'ED' is 'one'"]),
        (_info_no_colon, ["Info.cfg, line 2", "'ES 12'"]),
        (_patient_twice, ["testing", "training", "same name"]),
    ],
)
def test_bad_challenge_files_are_named(damage, words, tmp_path):
    scans = make_scans()
    write_challenge(tmp_path / "source", scans)
    damage(tmp_path / "source", scans[0])
    with pytest.raises(InputError) as caught:
        import_acdc(tmp_path / "source", tmp_path / "out")
    for word in words:
        assert word in str(caught.value)


def test_mask_without_a_declared_position_is_taken_to_lie_on_the_image(tmp_path):
    scans = make_scans()
    write_challenge(tmp_path / "source", scans)
    nibabel.save(
        nibabel.Nifti1Image(scans[0].label.transpose(2, 1, 0), None), f"{_stem(tmp_path / 'source')}_gt.nii.gz"
    )
    dataset = import_acdc(tmp_path / "source", tmp_path / "out")
    np.testing.assert_array_equal(dataset.array("patient001_frame01", "label"), scans[0].label)


def test_wrong_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path, ACDC.layouts_for("auto"))
    for word in [str(tmp_path), "hdf5: patient001_frame01.h5", "nifti: patient001/", "1 files .jpg"]:
        assert word in str(caught.value)


def test_absent_folder_and_file_instead_of_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        find_cases(tmp_path / "absent", ACDC.layouts)
    (tmp_path / "acdc.zip").write_bytes(b"")
    with pytest.raises(InputError, match="is a file; unpack it first"):
        find_cases(tmp_path / "acdc.zip", ACDC.layouts)


def test_unknown_layout_gives_close_matches():
    with pytest.raises(InputError, match="Did you mean 'hdf5-slices'"):
        ACDC.layouts_for("hdf5-slice")


def test_stray_mask_and_incomplete_groups_of_a_folder(tmp_path):
    layouts = DATASETS.get("folder").layouts
    scan = make_scans()[0]
    write_nifti(tmp_path / "images" / "a.nii.gz", scan.image)
    write_nifti(tmp_path / "labels" / "b.nii.gz", scan.label)
    with pytest.raises(InputError, match=r"labels/b\.nii\.gz is a label without an image"):
        find_cases(tmp_path, layouts)
    (tmp_path / "labels" / "b.nii.gz").unlink()
    (tmp_path / "groups.csv").write_text("case,group\nz,1\n")
    with pytest.raises(InputError, match="names no group for a"):
        find_cases(tmp_path, layouts)
    (tmp_path / "groups.csv").write_text("name\na\n")
    with pytest.raises(InputError, match="expected 'case' and 'group'"):
        find_cases(tmp_path, layouts)
