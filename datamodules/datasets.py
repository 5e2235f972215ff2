"""Samples read from a case source: training slices and whole cases."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mambaseg.datamodules.batch import IGNORE_INDEX, Batch, Supervision
from mambaseg.datamodules.packing import stack
from mambaseg.datamodules.sampling import SampleKey
from mambaseg.datamodules.source import ArrayKind, CaseSource
from mambaseg.datamodules.transforms import SliceTransform, View
from mambaseg.errors import InputError

TRUTH: dict[Supervision, ArrayKind] = {Supervision.SCRIBBLE: "scribble", Supervision.DENSE: "label"}
"""Which array a supervised label map is read from."""


class Sample(NamedTuple):
    """One sample before collation; see ``Batch`` for the meaning of the fields.

    Attributes:
        image: (C, *S) float32.
        label: (*S) uint8.
        supervision: How much of ``label`` is known.
        case_id: Name of the case.
        spacing_mm: One number per spatial axis, NaN where the source gave none.
        image_strong: (C, *S) float32, from two-view transforms.
        audit_label: (*S) uint8, where the dataset keeps the truth aside.
    """

    image: NDArray[np.float32]
    label: NDArray[np.uint8]
    supervision: Supervision
    case_id: str
    spacing_mm: tuple[float, ...]
    image_strong: NDArray[np.float32] | None = None
    audit_label: NDArray[np.uint8] | None = None


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch, in one piece of memory; optional fields appear when the samples have them.

    Label maps stay uint8, an eighth of what losses read: a batch passes two processes and the bus. ``with_wide_labels``
    widens them where they arrive.
    """
    arrays: dict[str, list[NDArray[Any]]] = {
        "image": [sample.image for sample in samples],
        "label": [sample.label for sample in samples],
        "supervision": [np.array(sample.supervision, np.int64) for sample in samples],
        "image_strong": [sample.image_strong for sample in samples if sample.image_strong is not None],
        "audit_label": [sample.audit_label for sample in samples if sample.audit_label is not None],
    }
    tensors = stack({name: alike for name, alike in arrays.items() if alike})
    batch: Batch = {
        "image": tensors["image"],
        "label": tensors["label"],
        "supervision": tensors["supervision"],
        "case_id": [sample.case_id for sample in samples],
        "spacing_mm": [tuple(float(step) for step in sample.spacing_mm) for sample in samples],
        "kinds": [int(sample.supervision) for sample in samples],
    }
    if "image_strong" in tensors:
        batch["image_strong"] = tensors["image_strong"]
    if "audit_label" in tensors:
        batch["audit_label"] = tensors["audit_label"]
    return batch


class SliceDataset(Dataset[Sample]):
    """Single slices of many cases, each with the supervision its case is granted.

    Samples are numbered case by case, slice by slice, in the order of ``supervision``. A slice without supervision has
    ``IGNORE_INDEX`` everywhere; its mask reaches ``audit_label`` at most. ``spacing_mm`` is the in-plane spacing of the
    stored slice, before the transform resamples it.

    Args:
        source: Where the arrays are.
        supervision: How much of each case's truth may be read, by case id.
        transform: Augmentation.
        audit: Add ``audit_label``, the dense truth under the same geometry, for monitoring; all ``IGNORE_INDEX`` for
            cases that have none.

    Raises:
        InputError: A case lacks the array that its supervision needs.
    """

    def __init__(
        self,
        source: CaseSource,
        supervision: Mapping[str, Supervision],
        transform: SliceTransform,
        audit: bool = False,
    ) -> None:
        self.source = source
        self.transform = transform
        self.audit = audit
        self.cases = list(supervision)
        self.supervision = [supervision[case_id] for case_id in self.cases]
        for case_id, granted in supervision.items():
            check_array(source, case_id, "image", "training")
            if granted in TRUTH:
                check_array(source, case_id, TRUTH[granted], f"{granted.name.lower()} supervision")
        # What samples are made of is opened here: damage is found before training, and by this process alone, so that
        # its workers need not examine it again.
        for case_id, granted in supervision.items():
            for kind in self._reads(case_id, granted):
                source.array(case_id, kind)
        depths = [source.array(case_id, "image").shape[0] for case_id in self.cases]
        self.index = [(case, level) for case, depth in enumerate(depths) for level in range(depth)]

    def __len__(self) -> int:
        return len(self.index)

    def _reads(self, case_id: str, granted: Supervision) -> list[ArrayKind]:
        """Return which arrays of a case samples are made of."""
        truth = [TRUTH[granted]] if granted in TRUTH else []
        audited: list[ArrayKind] = ["label"] if self._is_audited(case_id) else []
        return ["image", *truth, *audited]

    def _is_audited(self, case_id: str) -> bool:
        return self.audit and self.source.has(case_id, "label")

    def indices(self, supervision: Supervision) -> list[int]:
        """Return the numbers of all samples with that supervision."""
        return [number for number, (case, _) in enumerate(self.index) if self.supervision[case] is supervision]

    def __getitem__(self, key: SampleKey) -> Sample:
        """Return the augmented slice (1, H, W) that the key names."""
        case, level = self.index[key.index]
        case_id, supervision = self.cases[case], self.supervision[case]
        view, audit_label = self._view(case_id, level, supervision, key.seed)
        return Sample(
            image=view.image[None],
            label=view.label,
            supervision=supervision,
            case_id=case_id,
            spacing_mm=spacing_or_nan(self.source, case_id)[1:],
            image_strong=None if view.image_strong is None else view.image_strong[None],
            audit_label=audit_label,
        )

    def _view(
        self, case_id: str, level: int, supervision: Supervision, seed: int
    ) -> tuple[View, NDArray[np.uint8] | None]:
        """Return the augmented slice and, when auditing, the truth moved in the same way."""
        image = self._slice(case_id, "image", level)
        truth = self._slice(case_id, "label", level) if self._is_audited(case_id) else None
        if supervision is Supervision.NONE:
            unknown = np.full(image.shape, IGNORE_INDEX, np.uint8)
            # Transforms promise an image that does not depend on the label, so one pass moves image and truth together.
            view = self.transform(image, unknown if truth is None else truth, np.random.default_rng(seed))
            return view._replace(label=np.full_like(view.label, IGNORE_INDEX)), view.label if self.audit else None
        view = self.transform(image, self._slice(case_id, TRUTH[supervision], level), np.random.default_rng(seed))
        if not self.audit or supervision is Supervision.DENSE:
            return view, view.label if self.audit else None
        if truth is None:
            return view, np.full_like(view.label, IGNORE_INDEX)
        return view, self.transform(image, truth, np.random.default_rng(seed)).label

    def _slice(self, case_id: str, kind: ArrayKind, level: int) -> np.ndarray:
        return np.asarray(self.source.array(case_id, kind)[level])


class VolumeDataset(Dataset[Sample]):
    """Whole cases at their native size, for validation, test and prediction.

    Args:
        source: Where the arrays are.
        cases: Case ids, in the order of evaluation.
        labels: Read the dense masks; without them every label is ``IGNORE_INDEX``.

    Raises:
        InputError: A case lacks its image or, where labels are wanted, its mask.
    """

    def __init__(self, source: CaseSource, cases: Sequence[str], labels: bool = True) -> None:
        self.source = source
        self.cases = list(cases)
        self.labels = labels
        for case_id in self.cases:
            check_array(source, case_id, "image", "evaluation")
            if labels:
                check_array(source, case_id, "label", "evaluation")

    def __len__(self) -> int:
        return len(self.cases)

    def open(self) -> None:
        """Open every array now, so that a damaged one is found before the first is used."""
        kinds: list[ArrayKind] = ["image", "label"] if self.labels else ["image"]
        for case_id in self.cases:
            for kind in kinds:
                self.source.array(case_id, kind)

    def __getitem__(self, number: int) -> Sample:
        """Return the case of that number: image (1, D, H, W), label (D, H, W)."""
        case_id = self.cases[number]
        image = np.array(self.source.array(case_id, "image"), dtype=np.float32)
        unknown = np.full(image.shape, IGNORE_INDEX, np.uint8)
        return Sample(
            image=image[None],
            label=np.array(self.source.array(case_id, "label")) if self.labels else unknown,
            supervision=Supervision.DENSE if self.labels else Supervision.NONE,
            case_id=case_id,
            spacing_mm=spacing_or_nan(self.source, case_id),
        )


def check_array(source: CaseSource, case_id: str, kind: ArrayKind, purpose: str) -> None:
    """Raise InputError unless the case has that array."""
    if not source.has(case_id, kind):
        raise InputError(
            f"dataset {source.name!r}: case {case_id!r} has no {kind!r} array, which {purpose} needs. "
            f"Prepare the dataset again from files that contain it, or take its patient out of that part of the split; "
            f"of a training patient, data.init_args.known: {{{source.group(case_id)}: none}} makes unlabelled data."
        )


def spacing_or_nan(source: CaseSource, case_id: str) -> tuple[float, float, float]:
    """Return the spacing in mm along (z, y, x), NaN where it is unknown."""
    return source.spacing_mm(case_id) or (float("nan"), float("nan"), float("nan"))
