"""A training loader that a checkpoint can put back in the middle of an epoch."""

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from mambaseg.datamodules.batch import Batch
from mambaseg.datamodules.datasets import Sample, collate
from mambaseg.datamodules.packing import PackedBatch, pack, unpack
from mambaseg.datamodules.sampling import PooledBatchSampler, RankShardSampler
from mambaseg.datamodules.slots import BatchSlots, LaidBatch
from mambaseg.errors import InputError
from mambaseg.faults import lost_worker

log = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
PATIENCE_S = 300.0
"""How long a batch may take; a worker that cannot hand one over for want of shared memory is silent, not dead."""
LOOK_S = 5.0
"""How long nothing may arrive before it is asked whether a worker has died."""


class ResumableDataLoader(DataLoader[Sample]):
    """Loads the batches of a ``PooledBatchSampler`` and remembers how many the trainer has received.

    Lightning saves and restores any training loader that has ``state_dict`` and ``load_state_dict``. Batches that
    workers prepared but nobody received do not count, so a restored run goes on with the very next batch, with any
    number of workers.

    Args:
        dataset: Returns a sample for a ``SampleKey``.
        batch_sampler: Chooses the samples.
        workers: Worker processes; 0 loads in the training process.
        prefetch: Batches that each worker prepares ahead.
    """

    batch_sampler: PooledBatchSampler

    def __init__(
        self, dataset: Dataset[Sample], batch_sampler: PooledBatchSampler, workers: int = 0, prefetch: int = 4
    ) -> None:
        self._sender = _Sender()
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=self._sender,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            timeout=PATIENCE_S if workers else 0,
            pin_memory=torch.cuda.is_available(),
        )
        self._epoch = batch_sampler.epoch
        self._received = batch_sampler.start
        self._losses = 0
        self._room = 0

    def _get_iterator(self) -> _BaseDataLoaderIter:
        """Return torch's iterator; one with workers asks after them while it waits."""
        return _AsksAfterWorkers(self) if self.num_workers else super()._get_iterator()

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch.

        The epoch is read when the first batch is asked for: Lightning makes the iterator before it calls ``set_epoch``.
        """
        self._epoch, self._received = self.batch_sampler.epoch, self.batch_sampler.start
        _let_the_loader_find_dead_workers()
        if self.num_workers and not self._room:
            self._room = self._bytes_of_a_batch()
        while True:
            try:
                self._make_room()
                for sent in super().__iter__():
                    batch = unpack(sent.take() if isinstance(sent, LaidBatch) else sent)
                    self._received += 1
                    yield batch
                return
            except (RuntimeError, OSError, EOFError) as error:
                self._replace_workers(error)

    def _replace_workers(self, error: Exception) -> None:
        """Start workers anew where some died; the second time, do without: that needs no shared memory.

        Samples carry their own seeds, so nobody sees a difference.

        Raises:
            Exception: ``error``, where it has another reason.
        """
        reason = lost_worker(error) if self.num_workers else None
        if reason is None:
            raise error
        # New workers have slots of their own, for those of the old that are left may still write.
        self._iterator = self._sender.slots = None
        self._losses += 1
        if self._losses > 1:
            self._do_without_workers()
        self.batch_sampler.seek(self._epoch, self._received)
        self._epoch, self._received = self.batch_sampler.epoch, self.batch_sampler.start
        log.warning(
            "Loading data broke off: %s. Going on with %s.",
            reason,
            f"{self.num_workers} new workers" if self.num_workers else "no workers, which needs the least memory",
        )

    def _bytes_of_a_batch(self) -> int:
        keys = self.batch_sampler.batch(self._epoch, 0)
        return pack(collate([self.dataset[keys[0]]])).flat.nbytes * len(keys)

    def _make_room(self) -> None:
        """Make the shared memory that workers lay batches in; do without workers where it does not fit.

        They would not fail then, but fall silent.
        """
        if not self.num_workers or self._sender.slots is not None:
            return
        size = self.num_workers, self.prefetch_factor or 1, self._room
        free, needed = _free_shared_memory(), BatchSlots.nbytes(*size)
        if free is None or free >= needed:
            self._sender.slots = BatchSlots(*size)
            return
        log.warning(
            "%s has %.0f MiB free, and %d workers need %.0f (docker run --shm-size): loading without workers.",
            SHARED_MEMORY,
            free / 2**20,
            self.num_workers,
            needed / 2**20,
        )
        self._do_without_workers()

    def _do_without_workers(self) -> None:
        self.num_workers, self.timeout = 0, 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the run and what the position depends on."""
        sampler = self.batch_sampler
        batch = self._received if self._epoch == sampler.epoch else sampler.start
        return {"epoch": sampler.epoch, "batch": batch, **self._setup()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch received when ``state`` was taken.

        Raises:
            InputError: The state comes from other data or another seed, whose batches these are not.
        """
        for field, value in self._setup().items():
            if state[field] != value:
                raise InputError(
                    f"the checkpoint's data position was saved with {field}={state[field]!r}, this run has "
                    f"{field}={value!r}: resume with the settings of the first run, or start a new run."
                )
        self.batch_sampler.seek(state["epoch"], state["batch"])
        self._epoch, self._received = self.batch_sampler.epoch, self.batch_sampler.start

    def _setup(self) -> dict[str, Any]:
        sampler = self.batch_sampler
        pools = [[pool.name, len(pool.indices), pool.per_batch] for pool in sampler.pools]
        return {"seed": sampler.seed, "batches_per_epoch": sampler.batches_per_epoch, "pools": pools}


def evaluation_loader(
    dataset: Dataset[Sample], count: int, rank: int = 0, world_size: int = 1, workers: int = 0
) -> DataLoader[Sample]:
    """Return a loader of whole cases, one a batch, each on exactly one rank.

    Args:
        dataset: Returns a whole case for its number.
        count: Number of cases.
        rank: Number of this process.
        world_size: Number of processes.
        workers: Worker processes.
    """
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=RankShardSampler(count, rank, world_size),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


@dataclass
class _Sender:
    """Makes batches of samples; in a worker it leaves them where the training process finds them.

    Attributes:
        slots: Where that is; None sends them as they are.
    """

    slots: BatchSlots | None = None

    def __call__(self, samples: list[Sample]) -> PackedBatch | LaidBatch:
        """Return the batch, or word of it."""
        packed, worker = pack(collate(samples)), get_worker_info()
        return packed if worker is None or self.slots is None else self.slots.lay(packed, worker.id)


class _AsksAfterWorkers(_MultiProcessingDataLoaderIter):
    """Waits for data in pieces: torch asks whether a worker has died whenever a wait is over, and not before.

    With its workers it gives their shared memory back: who trained keeps the loader as long as the trainer.
    """

    def __init__(self, loader: ResumableDataLoader) -> None:
        super().__init__(loader)
        self._sender, self._slots = loader._sender, loader._sender.slots

    def _shutdown_workers(self) -> None:
        super()._shutdown_workers()
        # This may be late, when others have taken over.
        if self._sender.slots is self._slots:
            self._sender.slots = None
        self._slots = None

    def _try_get_data(self, timeout: float = LOOK_S) -> tuple[bool, Any]:
        end = time.monotonic() + timeout
        while True:
            left = end - time.monotonic()
            success, data = super()._try_get_data(max(min(left, LOOK_S), 0.0))  # type: ignore[no-untyped-call]
            if success or left <= LOOK_S:
                return success, data


def _let_the_loader_find_dead_workers() -> None:
    """Keep torch from raising in the middle of whatever the main thread does when a worker dies.

    It installs a handler of SIGCHLD for that, once a process, unless it believes to have done so. Without it the loader
    notices within seconds, when it waits for the next batch, and there the worker can be replaced.
    """
    signal_handling._SIGCHLD_handler_set = True


def _free_shared_memory() -> int | None:
    """Return the bytes that are free; None where the system does not tell."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None
