"""Batches that workers lay in shared memory: every one arrives once and whole, and no file descriptor with it."""

import functools
import gc
import itertools
import time
import weakref

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from torch.multiprocessing import reductions
from torch.utils.data._utils.pin_memory import pin_memory

from mambaseg.datamodules.batch import Supervision
from mambaseg.datamodules.datasets import Sample, collate
from mambaseg.datamodules.loader import ResumableDataLoader
from mambaseg.datamodules.packing import PackedBatch, pack, unpack
from mambaseg.datamodules.sampling import Pool, PooledBatchSampler
from mambaseg.datamodules.slots import BatchSlots, LaidBatch


class Numbered(torch.utils.data.Dataset):
    """Volumes filled with their sample's seed, some of them late."""

    def __init__(self, slow=None):
        self.slow = slow

    def __getitem__(self, key):
        if self.slow is not None and key.index % self.slow == 0:
            time.sleep(0.02)
        value = np.float32(key.seed % 10007)
        return Sample(
            image=np.full((1, 3, 5, 7), value),
            label=np.full((3, 5, 7), key.index, np.uint8),
            supervision=Supervision.DENSE,
            case_id=f"{key.index}",
            spacing_mm=(float("nan"), 1.0, 2.0),
            audit_label=np.full((3, 5, 7), key.seed % 251, np.uint8),
        )


def loader(workers, batches=30, prefetch=2, slow=None):
    sampler = PooledBatchSampler([Pool("labelled", list(range(12)), 3)], seed=3, batches_per_epoch=batches)
    return ResumableDataLoader(Numbered(slow), sampler, workers, prefetch)


def content(batch):
    tensors = {name: value.numpy().tobytes() for name, value in batch.items() if isinstance(value, torch.Tensor)}
    return tensors | {name: repr(batch[name]) for name in ("case_id", "spacing_mm", "kinds")}


@pytest.fixture
def descriptors(monkeypatch):
    """The tensors that come from workers as file descriptors."""
    received = []
    rebuild = reductions.rebuild_storage_fd

    @functools.wraps(rebuild)
    def counted(*arguments):
        received.append(arguments)
        return rebuild(*arguments)

    monkeypatch.setattr(reductions, "rebuild_storage_fd", counted)
    return received


def filled(value):
    samples = [Numbered()[type("Key", (), {"index": value, "seed": value})] for _ in range(3)]
    return pack(collate(samples))


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (1, 2), (2, 1), (2, 4)])
def test_every_batch_arrives_whole_and_in_order(workers, prefetch, descriptors):
    """The slowest reader and workers that overtake each other: what is kept must not change afterwards."""
    crowd, alone = loader(workers, prefetch=prefetch, slow=4), loader(0)
    for epoch in range(3):
        crowd.batch_sampler.set_epoch(epoch)
        alone.batch_sampler.set_epoch(epoch)
        kept = []
        for number, batch in enumerate(crowd):
            kept.append(batch)
            if number % 7 == 0:
                time.sleep(0.03)
        assert [content(batch) for batch in kept] == [content(batch) for batch in alone]
    assert crowd._sender.slots.memory.shape[:2] == (workers, prefetch + 1)
    assert not descriptors


def test_an_iteration_given_up_leaves_nothing_behind():
    crowd, alone = loader(2), loader(0)
    expected = [content(batch) for batch in alone]
    for taken in (1, 2, 5, 3, 1):
        assert [content(batch) for batch in itertools.islice(crowd, taken)] == expected[:taken]
    assert [content(batch) for batch in crowd] == expected


def test_a_batch_larger_than_a_slot_is_sent_as_one_tensor(descriptors, monkeypatch):
    monkeypatch.setattr(BatchSlots, "__init__", functools.partialmethod(small_slots, BatchSlots.__init__))
    assert [content(batch) for batch in loader(2)] == [content(batch) for batch in loader(0)]
    assert len(descriptors) == 30


def small_slots(self, initialise, workers, prefetch, room):
    initialise(self, workers, prefetch, room // 2)


def test_slots_travel_to_spawned_workers(descriptors):
    spawned = loader(1)
    spawned.multiprocessing_context = "spawn"
    assert [content(batch) for batch in spawned] == [content(batch) for batch in loader(0)]
    assert not descriptors


def test_replaced_workers_have_slots_of_their_own(monkeypatch):
    monkeypatch.setattr("mambaseg.datamodules.loader.LOOK_S", 0.5)
    crowd = loader(2)
    batches = iter(crowd)
    next(batches)
    slots = crowd._sender.slots
    crowd._iterator._workers[1].kill()
    rest = [content(batch) for batch in batches]
    assert rest == [content(batch) for batch in loader(0)][1:]
    assert crowd._sender.slots is not slots


def test_shared_memory_goes_with_the_workers():
    """Lightning ends them at the end of a fit, and keeps the loader."""
    crowd = loader(2)
    expected = [content(batch) for batch in crowd]
    slots = weakref.ref(crowd._sender.slots)
    _shutdown_workers_and_reset_iterator(crowd)
    gc.collect()
    assert slots() is None
    assert [content(batch) for batch in crowd] == expected


def test_workers_that_end_late_leave_the_memory_of_their_successors():
    crowd = loader(1)
    first = iter(crowd)
    next(first)
    ended = crowd._iterator
    crowd._iterator = crowd._sender.slots = None
    second = iter(crowd)
    next(second)
    slots = crowd._sender.slots
    ended._shutdown_workers()
    assert crowd._sender.slots is slots is not None
    assert sum(1 for _ in second) == 29


def test_a_file_that_is_missing_is_no_lost_worker(monkeypatch, caplog):
    def missing(data, key):
        raise FileNotFoundError("patient001.npy")

    monkeypatch.setattr(Numbered, "__getitem__", missing)
    crowd = loader(2)
    with pytest.raises(FileNotFoundError, match="patient001"):
        next(iter(crowd))
    assert not caplog.text


def test_where_another_process_took_the_shared_memory_data_is_loaded_without_workers(monkeypatch, caplog):
    def full(*_):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
        )

    monkeypatch.setattr(BatchSlots, "__init__", full)
    crowd = loader(2)
    assert [content(batch) for batch in crowd] == [content(batch) for batch in loader(0)]
    assert crowd.num_workers == 0
    assert "/dev/shm" in caplog.text


def test_slots_are_used_in_turn_and_a_late_reader_is_told():
    slots = BatchSlots(workers=2, prefetch=1, room=filled(0).flat.nbytes)
    first, second, other = slots.lay(filled(1), 0), slots.lay(filled(2), 0), slots.lay(filled(3), 1)
    assert isinstance(first, LaidBatch)
    last = slots.lay(filled(4), 0)
    for laid, value in [(first, 1), (other, 3), (last, 4), (first, 1)]:
        assert content(unpack(laid.take())) == content(unpack(filled(value)))
    with pytest.raises(RuntimeError, match="worker 0 laid batch 4 over batch 2"):
        second.take()


def test_a_batch_is_pinned_out_of_its_slot(monkeypatch):
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    slots = BatchSlots(workers=1, prefetch=1, room=filled(0).flat.nbytes)
    taken = pin_memory(slots.lay(filled(7), 0))
    assert isinstance(taken, PackedBatch)
    slots.memory.zero_()
    assert content(unpack(taken)) == content(unpack(filled(7)))
    assert [tensor.data_ptr() for tensor in pinned] == [taken.flat.data_ptr()]
