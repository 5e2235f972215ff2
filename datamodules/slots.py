"""Shared memory in which a loader's workers lay their batches, again and again."""

import itertools
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch

from mambaseg.datamodules.packing import PackedBatch

_KEYS = itertools.count()
_OPEN: "weakref.WeakValueDictionary[int, BatchSlots]" = weakref.WeakValueDictionary()
"""Those that this process has made: word of a batch carries a key, not the memory."""


class BatchSlots:
    """Shared memory for batches on their way from workers to the training process, which makes it.

    Memory made for one batch takes the system longer than copying the batch: pages are given out and taken back one by
    one, and a socket hands over the file descriptor. This memory is shared once, when the workers are started.

    A worker uses its slots in turn. It is asked for no more than ``prefetch`` batches that the loader has not yet
    returned, and the one returned last is taken before another is asked for: ``prefetch`` slots and one are enough. A
    slot that was used too early all the same is noticed by its turn.

    Args:
        workers: Number of workers.
        prefetch: Batches that each prepares ahead.
        room: Bytes of a batch; a larger one is sent as it is.
    """

    def __init__(self, workers: int, prefetch: int, room: int) -> None:
        # Made where it is shared: ``share_memory_`` would copy all of it there, whatever lies in it.
        shared = torch.UntypedStorage._new_shared(self.nbytes(workers, prefetch, room))  # type: ignore[no-untyped-call]
        self.memory = torch.empty(0, dtype=torch.uint8).set_(shared).view(workers, prefetch + 1, room)
        self.turns = torch.zeros(workers, prefetch + 1, dtype=torch.int64)
        self.turns.share_memory_()  # type: ignore[no-untyped-call]
        self.laid = 0
        self.key = next(_KEYS)
        _OPEN[self.key] = self

    @staticmethod
    def nbytes(workers: int, prefetch: int, room: int) -> int:
        """Return how much shared memory they take."""
        return workers * (prefetch + 1) * room

    def lay(self, packed: PackedBatch, worker: int) -> "PackedBatch | LaidBatch":
        """Lay a batch in the next slot; called in the worker of that number."""
        _, slots, room = self.memory.shape
        size = packed.flat.nbytes
        if size > room:
            return packed
        self.laid += 1
        slot = self.laid % slots
        self.turns[worker, slot] = self.laid
        self.memory[worker, slot, :size].copy_(packed.flat)
        return LaidBatch(self.key, worker, slot, self.laid, size, packed.fields)


@dataclass(frozen=True)
class LaidBatch:
    """A batch in a slot; this is all that a worker sends.

    Attributes:
        key: Which ``BatchSlots``.
        worker: Whose slots.
        slot: Which of them.
        turn: How many batches the worker had laid with this one.
        size: Bytes of the batch.
        fields: As in ``PackedBatch``.
    """

    key: int
    worker: int
    slot: int
    turn: int
    size: int
    fields: dict[str, Any]

    def take(self) -> PackedBatch:
        """Copy the batch out of its slot."""
        there = self._in_slot()
        return self._checked(replace(there, flat=there.flat.clone()))

    def pin_memory(self) -> PackedBatch:
        """Copy the batch into pinned memory; a loader calls it where it pins what it loads."""
        return self._checked(self._in_slot().pin_memory())

    def _in_slot(self) -> PackedBatch:
        return PackedBatch(_OPEN[self.key].memory[self.worker, self.slot, : self.size], self.fields)

    def _checked(self, taken: PackedBatch) -> PackedBatch:
        """Return what was taken, unless the worker has begun the slot's next turn meanwhile."""
        turn = int(_OPEN[self.key].turns[self.worker, self.slot])
        if turn != self.turn:
            raise RuntimeError(
                f"loader worker {self.worker} laid batch {turn} over batch {self.turn}, still in its slot"
            )
        return taken
