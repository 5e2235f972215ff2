"""Reading NIfTI files as (z, y, x) arrays whose masks lie on the image's grid."""

import gzip
import math
import zlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from mambaseg.datamodules.importers.base import RawArrays
from mambaseg.datamodules.source import ArrayKind
from mambaseg.errors import InputError

if TYPE_CHECKING:
    import nibabel
    from nibabel.arrayproxy import ArrayProxy

_DAMAGED = (OSError, EOFError, zlib.error, ValueError, TypeError, OverflowError, MemoryError, KeyError)
"""What nibabel and gzip raise for one or the other damage."""
_PIECE = 2**20
_UNITS_OF_TIME = 8
"""What lies below in the header's field is the unit of length, whatever stands for that of time."""
_MILLIMETRES = {1: 1e3, 3: 1e-3}
"""The header's codes of metre and micrometre; anything else is taken for the millimetre."""
_CORNER_TOLERANCE_VOXELS = 0.1


@dataclass(frozen=True)
class NiftiVolume:
    """A NIfTI file's content.

    Attributes:
        array: (D, H, W), the file's (x, y, z) reversed.
        spacing_mm: Voxel size along (z, y, x).
        affine: (4, 4) float64, from (x, y, z) voxel indices to millimetres in RAS+ space.
        placed: The header says where the volume lies; if not, ``affine`` is only the voxel size.
        header: The file's own, whose lengths may be in other units.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    placed: bool
    header: "nibabel.Nifti1Header"


def read_nifti(path: Path) -> NiftiVolume:
    """Read a three-dimensional NIfTI file (a fourth axis of length 1 is dropped).

    Raises:
        InputError: The file is damaged, is no NIfTI, or has other dimensions or no valid voxel size.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise InputError(f"{path} is {type(image).__name__}, not NIfTI. Convert it to .nii.gz.")
        _check_file(path, image)
        array = np.asanyarray(image.dataobj)
    except (ImageFileError, HeaderDataError, *_DAMAGED) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as NIfTI: {error}. Download or copy it again.") from error
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise InputError(f"{path} has shape {array.shape}, expected three axes (x, y, z). Give one volume a file.")
    to_mm = _MILLIMETRES.get(int(image.header["xyzt_units"]) % _UNITS_OF_TIME, 1.0)
    x, y, z = (float(size) * to_mm for size in image.header["pixdim"][1:4])
    placed = bool(image.header["qform_code"] > 0) or bool(image.header["sform_code"] > 0)
    affine = np.asarray(image.affine, np.float64) * np.array([[to_mm], [to_mm], [to_mm], [1.0]])
    return NiftiVolume(array.transpose(2, 1, 0), (z, y, x), affine, placed, image.header)


def _check_file(path: Path, image: "nibabel.Nifti1Pair") -> None:
    """Refuse what nibabel passes over: a voxel size of 0, and a file shorter or longer than its header says.

    nibabel makes the size 1 mm, and stops reading where the voxels should end: so before gzip's checksum, which is
    compared here on the way, and before what a wrong shape leaves out.
    """
    stored = cast("ArrayProxy", image.dataobj)
    shape, kind = stored.shape, stored.dtype
    if kind.kind not in "iuf":
        raise InputError(f"{path}: voxels are {kind}, expected plain numbers. Export a scalar image.")
    wanted = int(stored.offset) + math.prod(int(side) for side in shape) * kind.itemsize
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = image.header_class.from_fileobj(file, check=False)  # type: ignore[no-untyped-call]
        sizes = header["pixdim"][1:4]
        if not all(np.isfinite(size) and size != 0 for size in sizes):
            given = tuple(float(size) for size in sizes)
            raise InputError(f"{path}: header field 'pixdim' is {given}, expected positive sizes. Correct the header.")
        found = file.tell()
        while found <= wanted and (piece := file.read(_PIECE)):
            found += len(piece)
    if found != wanted:
        more = "more" if found > wanted else "fewer"
        raise InputError(
            f"{path} holds {more} bytes than its header says (shape {shape} of {kind}). Download or copy it again."
        )


def read_aligned(by_kind: dict[ArrayKind, Path]) -> RawArrays:
    """Read an image and its masks.

    Raises:
        InputError: A file is damaged, or a mask's shape or affine is not the image's.
    """
    image = read_nifti(by_kind["image"])
    arrays: dict[ArrayKind, np.ndarray] = {"image": image.array}
    for kind, path in by_kind.items():
        if kind != "image":
            mask = read_nifti(path)
            _check_grid(mask, path, image, by_kind["image"])
            arrays[kind] = mask.array
    return RawArrays(arrays, by_kind, image.spacing_mm, image.affine if image.placed else None)


def _check_grid(mask: NiftiVolume, mask_path: Path, image: NiftiVolume, image_path: Path) -> None:
    if mask.array.shape != image.array.shape:
        raise InputError(
            f"{mask_path} has shape {mask.array.shape} (z, y, x), but {image_path.name} has {image.array.shape}. "
            "A mask must be drawn on its image's grid; export it again."
        )
    if not (mask.placed and image.placed):
        return
    offset_mm = _corner_distance_mm(mask.affine, image.affine, image.array.shape)
    if offset_mm > _CORNER_TOLERANCE_VOXELS * min(image.spacing_mm):
        raise InputError(
            f"{mask_path}: its affine places the volume up to {offset_mm:.2f} mm away from {image_path.name}. "
            "Resample the mask to the image, or copy the image's header if it was drawn on the same grid."
        )


def _corner_distance_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    depth, height, width = shape
    corners = np.array(list(product((0, width - 1), (0, height - 1), (0, depth - 1), (1,))), dtype=np.float64)
    return float(np.linalg.norm(corners @ (first - second).T, axis=1).max())
