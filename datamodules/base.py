"""The LightningDataModule that all datasets share: pools of supervision, loaders, ranks."""

import functools
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, cast

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import suggested_max_num_workers
from torch import distributed
from torch.utils.data import DataLoader

from mambaseg.datamodules.batch import HOST_FIELDS, Batch, Supervision, with_wide_labels
from mambaseg.datamodules.datasets import Sample, SliceDataset, VolumeDataset
from mambaseg.datamodules.loader import ResumableDataLoader, evaluation_loader
from mambaseg.datamodules.packing import move
from mambaseg.datamodules.sampling import Pool, PooledBatchSampler
from mambaseg.datamodules.source import CaseSource
from mambaseg.datamodules.splits import Part, Split, check_split, leakage_report
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.datamodules.transforms import create_transform
from mambaseg.errors import InputError
from mambaseg.registry import Registry, unknown_name

DEFAULT_SEED = 1337
MOST_WORKERS = 8
"""Loader processes of a training process at most: a GPU's share of a host, and more than a fast step asks for."""

DATAMODULES: Registry[type["SegmentationDataModule"]] = Registry("dataset")


class SegmentationDataModule(L.LightningDataModule, ABC):
    """Training slices and whole evaluation cases of one dataset, with as much supervision as a run may use.

    The split's training patients are cut into up to three pools: the first ``labelled_patients`` with the truth that
    ``supervision`` names, the next ``scribble_patients`` with scribbles, the others without any; ``known`` states it
    patient by patient, or case by case, instead. A batch takes a fixed number from each pool, counted over all
    processes together.

    ``fit`` opens training and validation patients only; test patients are opened by ``test`` and, without their masks,
    by ``predict``. Distributed runs need ``Trainer(use_distributed_sampler=False)``: the samplers here know the ranks.

    Args:
        labelled_patients: How many training patients are labelled, in the split's order. None: all. 0 leaves it to
            ``known``.
        supervision: What the labelled patients' truth is: ``dense`` masks or ``scribble``.
        scribble_patients: How many further patients have scribbles, beside densely labelled ones.
        known: What is known of single training patients or cases, by name; wins over the counts, and a case over its
            patient.
        batch_labelled: Labelled slices in a batch.
        batch_scribble: Slices of the scribble patients in a batch.
        batch_unlabelled: Unlabelled slices in a batch; 0 trains on labelled slices only.
        size: Height and width of training slices in pixels.
        transform: Name of the augmentation, see ``transforms.TRANSFORMS``.
        transform_options: Its keyword arguments.
        batches_per_epoch: Length of an epoch. None: one pass over the largest pool, at least 200 batches.
        validation_patients: Carve this many validation patients out of the training ones, for splits that have none.
        workers: Loader processes for training. None: what the free cores of each process allow, at most 8.
        seed: Decides order and augmentation of all samples. None: the run's ``seed_everything``.
        audit: Add ``audit_label``, the dense truth of unlabelled and scribbled slices, for monitoring pseudo-labels.
    """

    def __init__(
        self,
        labelled_patients: int | None = None,
        supervision: Literal["dense", "scribble"] = "dense",
        scribble_patients: int = 0,
        known: dict[str, Literal["dense", "scribble", "none"]] | None = None,
        batch_labelled: int = 8,
        batch_scribble: int = 0,
        batch_unlabelled: int = 8,
        size: tuple[int, int] = (224, 224),
        transform: str = "published",
        transform_options: dict[str, Any] | None = None,
        batches_per_epoch: int | None = None,
        validation_patients: int = 0,
        workers: int | None = None,
        seed: int | None = None,
        audit: bool = True,
    ) -> None:
        super().__init__()
        self.labelled_patients = labelled_patients
        self.supervision = _supervision(supervision, scribble_patients)
        self.scribble_patients = scribble_patients
        self.known = _known(known or {}, self.supervision)
        self.batch_sizes = {"labelled": batch_labelled, "scribble": batch_scribble, "unlabelled": batch_unlabelled}
        self.size = (size[0], size[1])
        self.transform = create_transform(transform, self.size, **(transform_options or {}))
        self.batches_per_epoch = batches_per_epoch
        self.validation_patients = validation_patients
        self.workers = workers
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", DEFAULT_SEED)) if seed is None else seed
        self.audit = audit
        self._train: SliceDataset | None = None
        # Whole cases come from memory maps in about a millisecond; Lightning's advice to add workers does not apply.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")

    @abstractmethod
    def open_source(self) -> CaseSource:
        """Open the data.

        Raises:
            InputError: It is missing; the message names the command that prepares it.
        """

    @abstractmethod
    def make_split(self, source: CaseSource) -> Split:
        """Return which patients train, validate and test."""

    @functools.cached_property
    def source(self) -> CaseSource:
        """The data, opened at first use."""
        return self.open_source()

    @functools.cached_property
    def split(self) -> Split:
        """The split in use, with validation patients carved out where asked for."""
        split = self.make_split(self.source)
        return split.with_validation(self.validation_patients) if self.validation_patients else split

    def keep_split(self, split: Split) -> None:
        """Use a split as it is, in place of what the settings say: that of a run that goes on, or is scored."""
        self.split = split

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of every class, background first."""
        return self.source.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return 1

    @property
    def normalisation(self) -> str | None:
        """How the intensities of all images were scaled, so that a new scan can be; None where that is not known."""
        return None

    def setup(self, stage: str) -> None:
        """Check the split against the data and, to train, open the training patients.

        Raises:
            InputError: Missing or damaged data, a leaking split, impossible pools, or a trainer that would replace the
                samplers.
        """
        self._check_trainer()
        parts: dict[str, list[Part]] = {"fit": ["train", "val"], "validate": ["val"]}
        check_split(self.split, self.source, parts.get(stage, ["test"]))
        self._check_leakage()
        if stage == "fit":
            self._train = self._training_slices()

    def train_dataloader(self) -> ResumableDataLoader:
        """Return the training batches of this process."""
        if self._train is None:
            raise RuntimeError('call setup("fit") before train_dataloader()')
        rank, world_size = self._rank_and_world_size()
        of_pool = {"labelled": self.supervision, "scribble": Supervision.SCRIBBLE, "unlabelled": Supervision.NONE}
        pools = [
            Pool(name, self._train.indices(of_pool[name]), count, drop_remainder=name != "unlabelled")
            for name, count in self.batch_sizes.items()
            if count
        ]
        sampler = PooledBatchSampler(pools, self.seed, self.batches_per_epoch, rank, world_size)
        return ResumableDataLoader(self._train, sampler, self._worker_count(world_size))

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Return the validation cases of this process; no loader where the split has no validation patients.

        Lightning asks for it before training begins, and that is when a damaged case is found.
        """
        if not self.split.val:
            return []
        cases = self._evaluation_cases("val")
        cases.open()
        return self._evaluation_loader(cases)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Return the test cases of this process."""
        return self._evaluation_loader(self._evaluation_cases("test"))

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Return the test cases of this process without their masks."""
        return self._evaluation_loader(self._evaluation_cases("test", labels=False))

    def _training_slices(self) -> SliceDataset:
        """Grant each training patient its supervision."""
        patients = self.split.train
        labelled = patients
        if self.labelled_patients is not None:
            labelled = () if self.known and not self.labelled_patients else self.split.labelled(self.labelled_patients)
        scribbled = patients[len(labelled) : len(labelled) + self.scribble_patients]
        granted = dict.fromkeys(labelled, self.supervision) | dict.fromkeys(scribbled, Supervision.SCRIBBLE)
        supervision = {
            case_id: granted.get(patient, Supervision.NONE)
            for patient in patients
            for case_id in self._cases_by_patient[patient]
        }
        supervision |= self._stated(supervision)
        if not self.batch_sizes["unlabelled"]:
            supervision = {case: grant for case, grant in supervision.items() if grant is not Supervision.NONE}
        audit = self.audit and set(supervision.values()) != {Supervision.DENSE}
        return SliceDataset(self.source, supervision, self.transform, audit)

    def _stated(self, cases: Collection[str]) -> dict[str, Supervision]:
        """Return what ``known`` says of the training cases.

        Raises:
            InputError: It names something that is no training patient or case.
        """
        names = {*self.split.train, *cases}
        for name in self.known:
            if name not in names:
                raise InputError(unknown_name("training patient or case", name, names) + " (data field 'known')")
        of_patient = {
            case_id: kind for name, kind in self.known.items() for case_id in self._cases_by_patient.get(name, ())
        }
        return of_patient | {name: kind for name, kind in self.known.items() if name in cases}

    def _evaluation_cases(self, part: Part, labels: bool = True) -> VolumeDataset:
        return VolumeDataset(self.source, self._cases(self.split.part(part)), labels)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch, and widen its labels there."""
        moved = move(batch, device)
        # Lightning would walk through every name and number as well, which takes it longer than all the rest.
        tensors = {name: value for name, value in moved.items() if name not in HOST_FIELDS}
        tensors = super().transfer_batch_to_device(tensors, device, dataloader_idx)
        wide = with_wide_labels(cast(Batch, moved | tensors))
        # Only tensors of one type share memory now; torch saves and compiles none that share it as several types.
        return wide | {"supervision": wide["supervision"].clone()}

    def _evaluation_loader(self, dataset: VolumeDataset) -> DataLoader[Sample]:
        return evaluation_loader(dataset, len(dataset), *self._rank_and_world_size())

    def _cases(self, patients: Sequence[str]) -> list[str]:
        """Return all cases of the patients, in their order."""
        return [case_id for patient in patients for case_id in self._cases_by_patient[patient]]

    @functools.cached_property
    def _cases_by_patient(self) -> dict[str, list[str]]:
        cases: dict[str, list[str]] = {}
        for case_id in self.source.case_ids():
            cases.setdefault(self.source.group(case_id), []).append(case_id)
        return cases

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Return this process's number and how many there are."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1

    def _worker_count(self, world_size: int) -> int:
        if self.workers is not None:
            return self.workers
        local = self.trainer.num_devices if self.trainer is not None else world_size
        return min(MOST_WORKERS, suggested_max_num_workers(local))

    def _check_leakage(self) -> None:
        """Refuse a split that has one image in two of its parts; only prepared data knows its images' checksums."""
        if not isinstance(self.source, PreparedDataset):
            return
        report = leakage_report(self.split, self.source)
        if report.leaks:
            raise InputError("The split leaks between its parts. " + " ".join(report.lines()))

    def _check_trainer(self) -> None:
        """Refuse a trainer that would wrap our samplers and so deal every batch out a second time."""
        if self.trainer is None or self.trainer.world_size == 1:
            return
        if self.trainer._accelerator_connector.use_distributed_sampler:
            raise InputError(
                f"trainer.use_distributed_sampler is true with {self.trainer.world_size} processes, but mambaseg's "
                "samplers already divide each batch: set trainer.use_distributed_sampler: false."
            )


def _known(stated: Mapping[str, str], labelled: Supervision) -> dict[str, Supervision]:
    """Return what is known of patients or cases, checked."""
    choices = {kind.name.lower(): kind for kind in Supervision}
    for name, kind in stated.items():
        if kind not in choices:
            raise InputError(f"known: {name} is {kind!r}; it must be one of {', '.join(choices)}.")
        if choices[kind] is Supervision.DENSE and labelled is not Supervision.DENSE:
            raise InputError(f"known: {name} is dense, which needs supervision='dense', not 'scribble'.")
    return {name: choices[kind] for name, kind in stated.items()}


def _supervision(name: str, scribble_patients: int) -> Supervision:
    """Return the supervision of the labelled pool."""
    choices = {"dense": Supervision.DENSE, "scribble": Supervision.SCRIBBLE}
    if name not in choices:
        raise InputError(f"supervision must be 'dense' or 'scribble', not {name!r}.")
    if name == "scribble" and scribble_patients:
        raise InputError(
            f"scribble_patients={scribble_patients} needs supervision='dense'; "
            "with supervision='scribble' the labelled patients have scribbles already: raise labelled_patients instead."
        )
    return choices[name]
