"""Which samples make a batch: counts, passes, ranks, epochs."""

from collections import Counter

import pytest

from mambaseg.datamodules.sampling import (
    MINIMUM_BATCHES,
    Pool,
    PooledBatchSampler,
    RankShardSampler,
)
from mambaseg.errors import InputError

LABELLED, UNLABELLED = list(range(21)), list(range(100, 150))


def pools(labelled=(LABELLED, 4), unlabelled=(UNLABELLED, 6)):
    """The pools that a data module with labelled and unlabelled patients makes."""
    return [Pool("labelled", *labelled, drop_remainder=True), Pool("unlabelled", *unlabelled)]


def two_stream(seed=0, batches=10, rank=0, world_size=1):
    return PooledBatchSampler(pools(), seed, batches, rank, world_size)


def epochs(sampler, count):
    for epoch in range(count):
        sampler.set_epoch(epoch)
        yield from sampler


def test_every_batch_has_its_counts_labelled_first():
    for batch in epochs(two_stream(), 3):
        indices = [key.index for key in batch]
        assert set(indices[:4]) <= set(LABELLED)
        assert set(indices[4:]) <= set(UNLABELLED)
        assert len(indices) == 10


def test_a_batch_is_a_function_of_seed_epoch_and_number():
    sampler = two_stream()
    batches = list(epochs(sampler, 3))
    fresh = two_stream()
    assert fresh.batch(2, 7) == batches[27]
    assert fresh.batch(0, 3) == batches[3]
    assert list(epochs(two_stream(), 3)) == batches
    assert list(epochs(two_stream(seed=1), 3)) != batches


def test_labelled_passes_drop_the_remainder():
    drawn = [key.index for batch in epochs(two_stream(batches=7), 5) for key in batch[:4]]
    passes = [drawn[start : start + 20] for start in range(0, len(drawn), 20)]
    assert len(passes) == 7
    assert all(len(set(one)) == 20 for one in passes), "no sample twice within a pass"
    assert len({tuple(one) for one in passes}) == 7, "every pass is shuffled anew"
    assert set(drawn) == set(LABELLED), "the dropped sample changes from pass to pass"


def test_unlabelled_passes_run_on_across_epochs():
    drawn = [key.index for batch in epochs(two_stream(batches=3), 20) for key in batch[4:]]
    for start in range(0, len(drawn) - 49, 50):
        assert Counter(drawn[start : start + 50]) == Counter(UNLABELLED), "each sample exactly once per pass"
    assert drawn[:50] != drawn[50:100]


def test_no_random_stream_is_used_twice():
    seeds = [key.seed for batch in epochs(two_stream(), 40) for key in batch]
    assert len(set(seeds)) == len(seeds)
    other = {key.seed for batch in epochs(two_stream(seed=1), 40) for key in batch}
    assert not other & set(seeds)


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_together_draw_the_batch_of_a_single_process(world_size):
    single = two_stream()
    ranks = [two_stream(rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in range(2):
        for number in range(10):
            shares = [sampler.batch(epoch, number) for sampler in ranks]
            together = sorted((key.index, key.seed) for share in shares for key in share)
            assert together == sorted((key.index, key.seed) for key in single.batch(epoch, number))
            for share in shares:
                assert sum(key.index < 100 for key in share) == 4 // world_size


def test_seek_starts_in_the_middle_once():
    whole = list(two_stream())
    sampler = two_stream()
    sampler.seek(0, 6)
    assert list(sampler) == whole[6:]
    assert list(sampler) == whole, "the offset holds for one iteration"
    sampler.seek(0, 6)
    sampler.set_epoch(0)
    assert list(sampler) == whole[6:], "naming the same epoch keeps the offset"
    sampler.seek(0, 6)
    sampler.set_epoch(1)
    assert list(sampler) == [two_stream().batch(1, number) for number in range(10)]
    sampler.seek(3, 10)
    assert (sampler.epoch, sampler.start) == (4, 0), "the end of an epoch is the next one's beginning"


def test_default_epoch_is_long():
    assert len(PooledBatchSampler(pools(), 0)) == MINIMUM_BATCHES
    assert len(PooledBatchSampler(pools((LABELLED, 8), (range(100, 4100), 8)), 0)) == 500
    assert len(PooledBatchSampler(pools(unlabelled=([], 0)), 0)) == MINIMUM_BATCHES


def test_any_mixture_of_pools():
    mixture = [Pool("labelled", [0, 1, 2], 2), Pool("scribble", range(10, 20), 3), Pool("unlabelled", range(30, 60), 1)]
    for batch in epochs(PooledBatchSampler(mixture, 0, 12), 2):
        indices = [key.index for key in batch]
        assert [sum(low <= index < low + 30 for index in indices) for low in (0, 30)] == [5, 1]
        assert all(10 <= index < 20 for index in indices[2:5])


def test_fewer_samples_than_a_batch_takes():
    sampler = PooledBatchSampler(pools(([0, 1, 2], 8), (UNLABELLED, 2)), 0, 6)
    drawn = [key.index for batch in sampler for key in batch[:8]]
    assert max(Counter(drawn).values()) - min(Counter(drawn).values()) <= 1


@pytest.mark.parametrize(("count", "world_size"), [(20, 1), (20, 3), (5, 4)])
def test_each_case_on_exactly_one_rank(count, world_size):
    shares = [list(RankShardSampler(count, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(RankShardSampler(count, rank, world_size)) for rank in range(world_size)] == list(map(len, shares))


def test_messages_for_bad_input():
    with pytest.raises(InputError, match=r"batch_labelled=4.*multiple of 3"):
        two_stream(world_size=3)
    with pytest.raises(InputError, match=r"no unlabelled samples.*batch_unlabelled=0"):
        PooledBatchSampler(pools(unlabelled=([], 4)), 0)
    with pytest.raises(InputError, match="every per-batch count is 0"):
        PooledBatchSampler(pools((LABELLED, 0), (UNLABELLED, 0)), 0)
    with pytest.raises(InputError, match="batch_labelled is -4"):
        PooledBatchSampler(pools((LABELLED, -4), (UNLABELLED, 0)), 0)
    with pytest.raises(InputError, match="batches_per_epoch"):
        two_stream(batches=-1)
    with pytest.raises(InputError, match="2 processes"):
        two_stream(rank=2, world_size=2)
    with pytest.raises(InputError, match=r"1 case.*2 processes"):
        RankShardSampler(1, 0, 2)
