"""Every kind of damage to published files is named, with the file."""

import gzip
import shutil
import struct
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from mambaseg.datamodules.importers import find_cases
from mambaseg.datamodules.prepare import prepare
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.errors import InputError
from tests.datamodules.layouts import (
    ACDC,
    AFFINE,
    acdc_request,
    import_acdc,
    make_scans,
    write_challenge,
    write_nifti,
    write_ssl_slices,
    write_wsl_slices,
    write_wsl_volumes,
)


def assert_refused(write, damage, words, tmp_path):
    """Write scans in a layout, damage the first one, and look for words in what importing says."""
    scans = make_scans()
    write(tmp_path / "source", scans)
    damage(tmp_path / "source", scans[0])
    with pytest.raises(InputError) as caught:
        import_acdc(tmp_path / "source", tmp_path / "out")
    for word in words:
        assert word in str(caught.value)


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


def _in_another_file(source, scan):
    with h5py.File(_volume(source).with_name("other.h5"), "w") as file:
        file["image"] = scan.image
    with h5py.File(_volume(source), "a") as file:
        del file["image"]
        file["image"] = h5py.ExternalLink("other.h5", "image")


def _virtual(source, scan):
    with h5py.File(_volume(source), "a") as file:
        del file["image"]
        layout = h5py.VirtualLayout(scan.image.shape, np.float32)
        layout[...] = h5py.VirtualSource("other.h5", "image", scan.image.shape)
        file.create_virtual_dataset("image", layout, fillvalue=0.5)


def _texts(source, scan):
    _edit_h5(_volume(source), label=np.full(scan.label.shape, b"RV"))


def _type_of_its_own(source, scan):
    """What one flipped bit in the header makes of float32: numbers that HDF5 converts without a word."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(123)
    with h5py.File(_volume(source), "a") as file:
        del file["image"]
        h5py.h5d.create(file.id, b"image", kind, h5py.h5s.create_simple(scan.image.shape))
        file["image"][...] = scan.image


def _part_never_written(source, scan):
    with h5py.File(_volume(source), "a") as file:
        del file["label"]
        file.create_dataset("label", scan.label.shape, np.uint8, chunks=(1, 11, 9))[:2] = scan.label[:2]


def _larger_than_any_memory(source, scan):
    with h5py.File(_volume(source), "a") as file:
        del file["image"]
        file.create_dataset("image", (2**14, 2**14, 2**14), np.float64, chunks=(64, 64, 64))


def _beyond_float32(source, scan):
    _edit_h5(_volume(source), image=np.where(scan.image > 0.5, 1e300, scan.image.astype(np.float64)))


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
        (_in_another_file, ["'image' is kept in another file"]),
        (_virtual, ["'image' is kept in another file"]),
        (_texts, ["'label' holds |S2, no numbers"]),
        (_type_of_its_own, ["'image' is no array of usual numbers"]),
        (_part_never_written, ["cannot be read as HDF5", "not allocated"]),
        (_larger_than_any_memory, ["'image' has shape (16384, 16384, 16384)", "more or less than"]),
        (_beyond_float32, ["beyond 1e+30, the first at"]),
        (_slice_named_as_volume, ["'image' has shape (11, 9)", "_slice_K"]),
    ],
)
def test_bad_hdf5_is_named(damage, words, tmp_path):
    assert_refused(write_wsl_volumes, damage, ["1 of 6 cases", "patient001_frame01.h5", *words], tmp_path)


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


def _edit_nifti(path, start, content):
    """Change bytes of the unpacked file, and pack it again with a right checksum."""
    plain = bytearray(gzip.decompress(path.read_bytes()))
    plain[start : start + len(content)] = content
    path.write_bytes(gzip.compress(bytes(plain)))


def _image_flipped_at_the_end(source, scan):
    path = Path(f"{_stem(source)}.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum, which comes behind the last voxel
    path.write_bytes(content)


def _image_and_mask_shorter_in_the_header(source, scan):
    for what in ("", "_gt", "_scribble"):
        _edit_nifti(Path(f"{_stem(source)}{what}.nii.gz"), 46, struct.pack("<h", 3))  # dim[3], of 4 slices


def _no_voxel_size(source, scan):
    _edit_nifti(Path(f"{_stem(source)}.nii.gz"), 84, struct.pack("<f", 0.0))  # pixdim[2]


def _image_of_colours(source, scan):
    colours = np.zeros((9, 11, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, AFFINE), f"{_stem(source)}.nii.gz")


def _info_superscript(source, scan):
    _stem(source).with_name("Info.cfg").write_text("ED: ²\n")


def _info_endless(source, scan):
    _stem(source).with_name("Info.cfg").write_text("ED: 1\nHeight: 1e999\n")


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
        (_image_flipped_at_the_end, ["patient001_frame01.nii.gz cannot be read as NIfTI", "CRC check failed"]),
        (_image_and_mask_shorter_in_the_header, ["holds more bytes than its header says (shape (9, 11, 3)"]),
        (_no_voxel_size, ["'pixdim' is (1.5, 0.0, 8.0), expected positive sizes"]),
        (_image_of_colours, ["expected plain numbers"]),
        (_info_superscript, ["Info.cfg", "'ED' is '²'"]),
        (_info_endless, ["Info.cfg", "'Height' is '1e999'"]),
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
    assert_refused(write_challenge, damage, words, tmp_path)
