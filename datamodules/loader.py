"""A training loader that a checkpoint can put back in the middle of an epoch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mambaseg.datamodules.batch import Batch
from mambaseg.datamodules.datasets import Sample, collate
from mambaseg.datamodules.sampling import PooledBatchSampler, RankShardSampler
from mambaseg.errors import InputError


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
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=prefetch if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        self._epoch = batch_sampler.epoch
        self._received = batch_sampler.start

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of the sampler's epoch.

        The epoch is read when the first batch is asked for: Lightning makes the iterator before it calls ``set_epoch``.
        """
        self._epoch, self._received = self.batch_sampler.epoch, self.batch_sampler.start
        for batch in super().__iter__():
            self._received += 1
            yield batch

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
