"""Which samples make up which batch, as a pure function of seed, epoch and batch number.

Nothing here keeps a random state: batch k of epoch e is computed from the numbers alone. So a run resumes in the middle
of an epoch without replaying anything, every rank knows its share without talking to the others, and a sample's
augmentation depends neither on the worker that makes it nor on what that worker did before.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from mambaseg.errors import InputError

MINIMUM_BATCHES = 200
"""Shortest default epoch: the trainer's work between epochs costs as much as several small batches."""


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What a training dataset is asked for.

    Attributes:
        index: Number of the sample in the dataset.
        seed: Seeds this sample's augmentation; never the same for two draws of a run.
    """

    index: int
    seed: int


@dataclass(frozen=True)
class Pool:
    """A stream of samples that contributes a fixed number to every batch.

    Each pass over the pool is a fresh permutation. Passes follow one another across epochs, so that even a short epoch
    leaves no sample unseen for long.

    Attributes:
        name: For messages: ``"labelled"``.
        indices: Dataset indices of the samples.
        per_batch: Samples in a global batch, over all ranks together.
        drop_remainder: End a pass where fewer than ``per_batch`` samples are left, as the published sampler does for
            labelled samples, so that no batch holds one sample twice.
    """

    name: str
    indices: Sequence[int]
    per_batch: int
    drop_remainder: bool = False

    @property
    def pass_length(self) -> int:
        """Samples drawn from one permutation."""
        count = len(self.indices)
        return count - count % self.per_batch if self.drop_remainder and count >= self.per_batch else count


class PooledBatchSampler(Sampler[list[SampleKey]]):
    """Batches drawn from several pools, divided over ranks.

    Labelled and unlabelled samples in fixed numbers are the two streams of Semi-Mamba-UNet
    (https://arxiv.org/abs/2402.07245). A pool's passes carry on across epochs, where the published sampler starts the
    unlabelled stream afresh and so shows only a random part of the unlabelled slices per epoch.

    A batch lists the pools in the order given (labelled samples first). Over all ranks, the batches of one step hold
    exactly the samples, with exactly the seeds, of the batch that a single process would draw.

    Args:
        pools: At least one; pools with ``per_batch`` 0 are left out.
        seed: Seed of the run.
        batches_per_epoch: Length of an epoch. None: one pass over the pool with the longest pass, at least
            ``MINIMUM_BATCHES``.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        InputError: An empty pool, a count that the ranks cannot share evenly, or no pool at all.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        seed: int,
        batches_per_epoch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.pools = [pool for pool in pools if pool.per_batch]
        _check(self.pools, batches_per_epoch, rank, world_size)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.batches_per_epoch = batches_per_epoch or max(
            MINIMUM_BATCHES, *(pool.pass_length // pool.per_batch for pool in self.pools)
        )
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> "PooledBatchSampler":
        """The object whose ``set_epoch`` Lightning calls: it looks at ``batch_sampler.sampler`` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration draws; a new one starts at its first batch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.start = 0

    def seek(self, epoch: int, batch: int) -> None:
        """Let the next iteration start at that batch; the end of an epoch is the beginning of the next."""
        finished = batch >= self.batches_per_epoch
        self.epoch, self.start = (epoch + 1, 0) if finished else (epoch, batch)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, start, self.start = self.epoch, self.start, 0
        for number in range(start, self.batches_per_epoch):
            yield self.batch(epoch, number)

    def batch(self, epoch: int, number: int) -> list[SampleKey]:
        """Return this rank's share of a batch.

        Args:
            epoch: Number of the epoch.
            number: Number of the batch within the epoch.
        """
        keys = self.global_batch(epoch, number)
        share: list[SampleKey] = []
        for pool in self.pools:
            own = pool.per_batch // self.world_size
            share += keys[self.rank * own : (self.rank + 1) * own]
            keys = keys[pool.per_batch :]
        return share

    def global_batch(self, epoch: int, number: int) -> list[SampleKey]:
        """Return the batch of all ranks together."""
        step = epoch * self.batches_per_epoch + number
        indices = [index for stream, pool in enumerate(self.pools) for index in self._draw(stream, pool, step)]
        seeds = np.random.SeedSequence((self.seed, step)).generate_state(len(indices), np.uint64)
        return [SampleKey(index, int(seed)) for index, seed in zip(indices, seeds, strict=True)]

    def _draw(self, stream: int, pool: Pool, step: int) -> list[int]:
        """Return the dataset indices that a pool contributes to a step counted from the start of the run."""
        drawn = []
        for position in range(step * pool.per_batch, (step + 1) * pool.per_batch):
            passes, place = divmod(position, pool.pass_length)
            drawn.append(pool.indices[_permutation(self.seed, stream, passes, len(pool.indices))[place]])
        return drawn


class RankShardSampler(Sampler[int]):
    """Every case on exactly one rank, without the duplicates that pad torch's DistributedSampler.

    Args:
        count: Number of cases.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        InputError: Fewer cases than ranks: an idle rank would leave the others waiting in their first collective call.
    """

    def __init__(self, count: int, rank: int = 0, world_size: int = 1) -> None:
        if count < world_size:
            raise InputError(
                f"{count} case(s) to evaluate cannot be shared by {world_size} processes: "
                f"run this stage with --trainer.devices={max(count, 1)} or fewer."
            )
        self.indices = range(rank, count, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


@functools.lru_cache(maxsize=32)
def _permutation(seed: int, stream: int, passes: int, count: int) -> NDArray[np.int64]:
    """Return the order of one pass; the cache holds the passes under way."""
    return np.random.default_rng((seed, stream, passes)).permutation(count)


def _check(pools: Sequence[Pool], batches_per_epoch: int | None, rank: int, world_size: int) -> None:
    """Raise InputError for a sampler that could not draw its batches."""
    if not pools:
        raise InputError("batch: every per-batch count is 0; ask for at least one sample of some kind per batch.")
    if batches_per_epoch is not None and batches_per_epoch < 1:
        raise InputError(f"batches_per_epoch must be at least 1, or null for the default; it is {batches_per_epoch}.")
    if not 0 <= rank < world_size:
        raise InputError(f"rank {rank} does not exist among {world_size} processes.")
    for pool in pools:
        if pool.per_batch < 0:
            raise InputError(f"batch_{pool.name} is {pool.per_batch}; it must be 0 or more.")
        if not len(pool.indices):
            raise InputError(
                f"batch_{pool.name} is {pool.per_batch}, but there are no {pool.name} samples: "
                f"set batch_{pool.name}=0 or change how many patients are labelled."
            )
        if pool.per_batch % world_size:
            raise InputError(
                f"batch_{pool.name}={pool.per_batch} counts samples over all processes and cannot be shared evenly by "
                f"{world_size}: use a multiple of {world_size}."
            )
