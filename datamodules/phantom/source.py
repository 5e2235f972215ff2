"""The phantom as a case source."""

from typing import Any

import numpy as np

from mambaseg.datamodules.phantom.anatomy import draw_anatomy, place_heart
from mambaseg.datamodules.phantom.appearance import render
from mambaseg.datamodules.phantom.scanner import draw_scanner
from mambaseg.datamodules.phantom.strokes import draw_scribbles
from mambaseg.datamodules.source import ArrayKind
from mambaseg.errors import InputError

FIELD_OF_VIEW_MM = 300.0
SCANNERS = 8


class Phantom:
    """Generated cine-cardiac patients with dense masks and scribbles; implements ``CaseSource``.

    Case ``phantom003_frame02`` is patient ``phantom003`` at end-systole. Every array follows from the arguments alone.
    Arrays are made when first asked for and kept in memory.

    Args:
        patients: Number of patients.
        frames: Frames per patient, from end-diastole towards end-systole and back; 2 gives exactly these two.
        depth: Slices per case, from the base to the apex and for some patients beyond.
        size: Side of the square slices in pixels, or their (height, width).
        seed: Another seed is another hospital population.
        scanner_spread: How far the scanners' contrasts lie apart, from 0 (all alike) to 1.
        field_of_view: Share of the scanned width that the slices show, around its middle; 1 shows the whole torso, 0.5
            hardly more than the heart.

    Raises:
        InputError: A count below 1, slices smaller than 16 pixels, a spread outside [0, 1], or a field of view outside
            [0.4, 1].
    """

    name = "phantom"
    class_names = ("background", "RV", "Myo", "LV")

    def __init__(
        self,
        patients: int = 24,
        frames: int = 2,
        depth: int = 8,
        size: int | tuple[int, int] = 64,
        seed: int = 0,
        scanner_spread: float = 1.0,
        field_of_view: float = 1.0,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else (size[0], size[1])
        for field, value, least in (
            ("patients", patients, 1),
            ("frames", frames, 1),
            ("depth", depth, 1),
            ("size", min(self.size), 16),
        ):
            if value < least:
                raise InputError(f"phantom: {field} must be at least {least}, not {value}.")
        if not 0.0 <= scanner_spread <= 1.0:
            raise InputError(f"phantom: scanner_spread must be between 0 and 1, not {scanner_spread}.")
        if not 0.4 <= field_of_view <= 1.0:
            raise InputError(f"phantom: field_of_view must be between 0.4 and 1, not {field_of_view}.")
        self.scanner_spread = scanner_spread
        self.field_of_view = field_of_view
        self.frames = frames
        self.depth = depth
        self.seed = seed
        self._cases = {
            f"phantom{patient + 1:03d}_frame{frame + 1:02d}": (patient, frame)
            for patient in range(patients)
            for frame in range(frames)
        }
        self._arrays: dict[str, dict[ArrayKind, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arrays": {}}

    def __repr__(self) -> str:
        return f"Phantom({len(self._cases)} cases of {self.depth} x {self.size[0]} x {self.size[1]}, seed {self.seed})"

    def case_ids(self) -> list[str]:
        """Return every case id, sorted."""
        return list(self._cases)

    def group(self, case_id: str) -> str:
        """Return the patient of a case."""
        self._locate(case_id)
        return case_id.partition("_")[0]

    def has(self, case_id: str, kind: ArrayKind) -> bool:
        """Say whether the case has an array of that kind: it has all of them."""
        self._locate(case_id)
        return True

    def spacing_mm(self, case_id: str) -> tuple[float, float, float]:
        """Return the voxel size along (z, y, x): slices 8 to 10 mm apart, a field of view of about 300 mm."""
        rng = self._rng(self._locate(case_id)[0], "spacing")
        in_plane = self.field_of_view * FIELD_OF_VIEW_MM / min(self.size) * rng.uniform(0.9, 1.1)
        return float(rng.uniform(8.0, 10.0)), in_plane, in_plane

    def array(self, case_id: str, kind: ArrayKind) -> np.ndarray:
        """Return a read-only array (D, H, W): image float32 in [0, 1], label and scribble uint8."""
        if case_id not in self._arrays:
            self._arrays[case_id] = self._generate(*self._locate(case_id))
        return self._arrays[case_id][kind]

    def _generate(self, patient: int, frame: int) -> dict[ArrayKind, np.ndarray]:
        anatomy = draw_anatomy(self._rng(patient, "anatomy"))
        systole = float(np.sin(np.pi * frame / self.frames)) if self.frames > 1 else 0.0
        heart = place_heart(anatomy, systole, self.depth, self._scanned_size)
        choice = self._rng(patient, "scanner")
        hospital = int(choice.integers(SCANNERS))
        scanner = draw_scanner(self._rng(hospital, "hospital"), self.scanner_spread).for_patient(choice)
        image = render(heart, anatomy, scanner, self._rng(patient, "body"), self._rng(patient, "noise", frame))
        scribble = draw_scribbles(heart, self._rng(patient, "scribble", frame))
        arrays: dict[ArrayKind, np.ndarray] = {"image": image, "label": heart.label, "scribble": scribble}
        return {kind: self._shown(array) for kind, array in arrays.items()}

    @property
    def _scanned_size(self) -> tuple[int, int]:
        """Height and width of the whole torso in pixels."""
        height, width = (round(side / self.field_of_view) for side in self.size)
        return height, width

    def _shown(self, array: np.ndarray) -> np.ndarray:
        """Cut the field of view out of an array (D, H, W), read-only."""
        top, left = ((scanned - shown) // 2 for scanned, shown in zip(self._scanned_size, self.size, strict=True))
        shown = np.ascontiguousarray(array[:, top : top + self.size[0], left : left + self.size[1]])
        shown.setflags(write=False)
        return shown

    def _rng(self, number: int, purpose: str, frame: int = 0) -> np.random.Generator:
        """Return the generator of one purpose: a change to one part of the phantom leaves the others as they are."""
        return np.random.default_rng((self.seed, number, frame, *purpose.encode()))

    def _locate(self, case_id: str) -> tuple[int, int]:
        """Return the patient's and the frame's number."""
        if case_id not in self._cases:
            known = self.case_ids()
            raise InputError(f"the phantom has no case {case_id!r}, only {known[0]} to {known[-1]}.")
        return self._cases[case_id]
