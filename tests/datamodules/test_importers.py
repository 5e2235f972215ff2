"""Every published layout becomes the same prepared cases."""

import shutil

import nibabel
import numpy as np
import pytest

from mambaseg.datamodules.catalogue import DATASETS
from mambaseg.datamodules.importers import find_cases
from mambaseg.datamodules.importers.acdc_names import Frame, canonical_frames, known_details
from mambaseg.datamodules.importers.nifti_file import read_nifti
from mambaseg.datamodules.prepare import PrepareRequest, prepare
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.errors import InputError
from tests.datamodules.layouts import (
    ACDC,
    AFFINE,
    LAYOUT_WRITERS,
    SPACING_MM,
    import_acdc,
    make_scans,
    write_challenge,
    write_nifti,
    write_wsl_slices,
    write_wsl_volumes,
)


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


def test_mask_without_a_declared_position_is_taken_to_lie_on_the_image(tmp_path):
    scans = make_scans()
    write_challenge(tmp_path / "source", scans)
    nibabel.save(
        nibabel.Nifti1Image(scans[0].label.transpose(2, 1, 0), None),
        tmp_path / "source" / "training" / "patient001" / "patient001_frame01_gt.nii.gz",
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
    (tmp_path / "groups.csv").write_text("case,group\na,1\na,2\n")
    with pytest.raises(InputError, match="names two groups for a"):
        find_cases(tmp_path, layouts)
    (tmp_path / "groups.csv").write_bytes(b"case,group\n\xff,1\n")
    with pytest.raises(InputError, match="is not a table of text"):
        find_cases(tmp_path, layouts)


@pytest.mark.parametrize(
    ("units", "length"), [(2, 1.0), (0, 1.0), (10, 1.0), (1, 1e3), (3, 1e-3), (19, 1e-3), (4, 1.0), (255, 1.0)]
)
def test_lengths_are_read_in_the_headers_unit_whatever_its_unit_of_time(tmp_path, units, length):
    image = nibabel.Nifti1Image(np.zeros((9, 8, 3), np.int16), AFFINE)
    image.header["xyzt_units"] = units
    nibabel.save(image, tmp_path / "a.nii.gz")
    volume = read_nifti(tmp_path / "a.nii.gz")
    assert volume.spacing_mm == pytest.approx([side * length for side in SPACING_MM])
    assert np.allclose(volume.affine[:3], AFFINE[:3] * length)
    assert volume.affine[3].tolist() == [0, 0, 0, 1]
