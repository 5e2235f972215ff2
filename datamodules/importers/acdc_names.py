"""ACDC's names: patients, frames and the two numbering schemes that its re-publications use.

The challenge and WSL4MIS name a file by its true frame number (``patient001_frame01``, ``patient001_frame12``) and
count slices from 0; SSL4MIS writes ``frame01`` and ``frame02`` and counts from 1. Here the lower frame is always
``frame01`` and the higher ``frame02``.
"""

from collections.abc import Collection
from dataclasses import dataclass

from mambaseg.datamodules.manifest import Detail
from mambaseg.errors import InputError

TRAINING_PATIENTS = 100
_PATHOLOGIES = ("DCM", "HCM", "MINF", "NOR", "RV")
_LATE_START = "patient090"
_LATE_START_LOWER_FRAME = 4


@dataclass(frozen=True)
class Frame:
    """A frame under its canonical name.

    Attributes:
        index: 1 for the lower, 2 for the higher frame of the patient.
        true_number: Its number in the cine series, None where the names do not tell.
    """

    index: int
    true_number: int | None


def canonical_frames(patient: str, numbers: Collection[int], where: str) -> dict[int, Frame]:
    """Map the frame numbers in a patient's file names to canonical frames.

    A single frame of a patient is the lower one if its number is 1, the lower frame of all patients but 090, whose
    frames are 4 and 11.

    Args:
        patient: For example ``patient090``.
        numbers: The different frame numbers in the file names.
        where: The folder, for messages.

    Raises:
        InputError: There are more than two, so both schemes are mixed or the folder holds other frames.
    """
    ordered = sorted(numbers)
    if len(ordered) > 2:
        raise InputError(
            f"{where}: {patient} has files of {len(ordered)} frames ({', '.join(f'{n:02d}' for n in ordered)}), "
            "expected two. Keep one naming scheme: true frame numbers, or frame01 and frame02."
        )
    if len(ordered) == 2:
        first, second = ordered
        return {
            first: Frame(1, None if _is_renamed(patient, first) else first),
            second: Frame(2, None if _is_renamed(patient, second) else second),
        }
    number = ordered[0]
    is_lower = number == 1 or (patient == _LATE_START and number == _LATE_START_LOWER_FRAME)
    return {number: Frame(1 if is_lower else 2, None if _is_renamed(patient, number) else number)}


def _is_renamed(patient: str, number: int) -> bool:
    return number == 2 or (patient == _LATE_START and number == 1)


def known_details(patient: str, frame: Frame) -> dict[str, Detail]:
    """Return what ACDC's numbering tells: the frame, its cardiac phase and the patient's diagnosis.

    The training patients 1 to 100 are sorted by diagnosis, twenty each. Their lower frame is end-diastole: in the
    published masks it has the larger left ventricle, patient 090 included.
    """
    details: dict[str, Detail] = {} if frame.true_number is None else {"frame": frame.true_number}
    number = int(patient.removeprefix("patient"))
    if 1 <= number <= TRAINING_PATIENTS:
        details["phase"] = "ED" if frame.index == 1 else "ES"
        details["pathology"] = _PATHOLOGIES[(number - 1) // 20]
    return details
