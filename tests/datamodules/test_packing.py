"""Batches in one piece of memory: what they hold, how they are sent, pinned and moved, and what may be done to them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data._utils.pin_memory import pin_memory

from mambaseg.datamodules.batch import Supervision
from mambaseg.datamodules.datasets import Sample, collate
from mambaseg.datamodules.demo import DemoDataModule
from mambaseg.datamodules.packing import ALIGNMENT, Place, move, pack, stack, unpack

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DTYPES = ["float32", "uint8", "int64", "bool", "float16", "complex64", "int16", "float64", "uint16"]


def samples(shape=(5, 7), count=3, strong=True, audit=True):
    rng = np.random.default_rng(0)

    def label():
        return rng.integers(0, 4, shape, np.uint8)

    def image():
        return rng.standard_normal((1, *shape), np.float32)

    return [
        Sample(
            image=image(),
            label=label(),
            supervision=Supervision(number % 3),
            case_id=f"patient{number}",
            spacing_mm=(1.5, float("nan")),
            image_strong=image() if strong else None,
            audit_label=label() if audit else None,
        )
        for number in range(count)
    ]


def tensors(batch):
    return {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}


def elsewhere(batch):
    """A batch whose packed tensors have been copied, as to a GPU; the other tensors are those of the batch."""
    packed = pack(batch)
    return unpack(replace(packed, flat=packed.flat.clone()))


def same(first, second):
    assert list(first) == list(second)
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype, name
            assert value.shape == second[name].shape, name
            assert torch.equal(value, second[name]), name
        else:
            assert value is second[name] or repr(value) == repr(second[name]), name
    return True


def packed_names(batch):
    return {name for name, value in pack(batch).fields.items() if isinstance(value, Place)}


def test_arrays_of_any_type_and_shape_are_stacked_into_one_memory():
    rng = np.random.default_rng(0)
    shapes = [(1, 5, 7), (), (3,), (0, 4), (2, 3, 5, 7), (1,)]
    arrays = {
        f"{dtype} {shape}": [(rng.standard_normal(shape) * 9).astype(dtype) for _ in range(3)]
        for dtype in DTYPES
        for shape in shapes
    }
    arrays["transposed"] = [rng.random((4, 6)).T, rng.random((4, 6)).T]
    found = stack(arrays)
    assert list(found) == list(arrays)
    for name, tensor in found.items():
        assert tensor.is_contiguous()
        assert tensor.storage_offset() * tensor.itemsize % ALIGNMENT == 0
        assert np.array_equal(tensor.numpy(), np.stack(arrays[name])), name
        assert tensor.numpy().dtype == arrays[name][0].dtype, name
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 1


def test_stacking_refuses_arrays_of_different_shapes():
    with pytest.raises(ValueError, match="shape"):
        stack({"image": [np.zeros((2, 3)), np.zeros((3, 2))]})


@pytest.mark.parametrize("shape", [(5, 7), (3, 5, 7), (1, 1), (0, 7)])
@pytest.mark.parametrize("optional", [True, False])
def test_a_packed_batch_is_the_batch(shape, optional):
    whole = samples(shape, strong=optional, audit=optional)
    batch = collate(whole)
    assert torch.equal(batch["image"], torch.from_numpy(np.stack([sample.image for sample in whole])))
    assert torch.equal(batch["label"], torch.from_numpy(np.stack([sample.label for sample in whole])))
    assert batch["supervision"].tolist() == batch["kinds"] == [0, 1, 2]
    assert batch["supervision"].dtype == torch.int64
    assert ("image_strong" in batch) == ("audit_label" in batch) == optional
    packed = pack(batch)
    assert packed_names(batch) == set(tensors(batch))
    assert packed.flat.untyped_storage().data_ptr() == batch["image"].untyped_storage().data_ptr(), "nothing is copied"
    assert same(unpack(packed), batch)
    assert same(unpack(pickle.loads(pickle.dumps(packed))), batch)
    assert same(elsewhere(batch), batch)


def test_a_batch_changed_before_its_transfer_arrives_as_changed():
    batch = collate(samples())
    batch["image"].mul_(2)
    assert packed_names(batch) == set(tensors(batch))
    batch["label"] = batch["label"] + 1
    batch["supervision"] = batch["supervision"].clone().requires_grad_(False)
    batch["image_strong"] = batch["image_strong"][..., 1:]
    batch["audit_label"] = batch["audit_label"][:2]
    batch["mine"] = torch.arange(3)
    batch["nested"] = {"weights": [torch.ones(2)]}
    assert packed_names(batch) == {"image"}
    assert same(elsewhere(batch), batch)


def test_only_plain_tensors_in_a_row_are_packed():
    def batch():
        return collate(samples())

    everything = set(tensors(batch()))
    without = batch()
    del without["label"]
    assert packed_names(without) == {"image"}, "no hole is moved"
    twice = batch() | {"image_strong": batch()["image"]}
    twice["image_strong"] = twice["image"]
    assert len(packed_names(twice) & {"image", "image_strong"}) == 1, "two names are two tensors on the GPU"
    for name, spoil in {
        "image": lambda tensor: tensor.requires_grad_(),
        "image_strong": lambda tensor: torch.nn.Parameter(tensor, requires_grad=False),
        "label": lambda tensor: tensor.to_sparse(),
        "audit_label": lambda tensor: tensor.mT,
    }.items():
        spoilt = batch()
        spoilt[name] = spoil(spoilt[name])
        assert name not in packed_names(spoilt)
        assert elsewhere(spoilt)[name] is spoilt[name]
    nothing = batch() | {"image": torch.zeros(0)}
    assert packed_names(nothing) == {"image"}
    assert same(elsewhere(nothing), nothing)
    with torch.inference_mode():
        assert packed_names(batch()) == everything
        assert same(elsewhere(batch()), batch())


def test_tensors_that_share_memory_are_each_autograds_own():
    batch = elsewhere(collate(samples()))
    weight = torch.ones(1, requires_grad=True)
    loss = (weight * batch["image"]).sum()
    batch["image_strong"].zero_()
    batch["supervision"].add_(1)
    loss.backward()
    assert weight.grad == batch["image"].sum()


def test_one_tensor_is_pinned(monkeypatch):
    pinned = []

    def pin(tensor):
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = collate(samples())
    arrived = unpack(pin_memory(pack(batch)))
    assert same(arrived, batch)
    assert len(pinned) == 1
    assert {tensor.untyped_storage().data_ptr() for tensor in tensors(arrived).values()} == {pinned[0].data_ptr()}
    batch["mine"] = torch.arange(3)
    arrived = unpack(pin_memory(pack(batch)))
    assert same(arrived, batch)
    assert arrived["mine"] is pinned[-1] or arrived["mine"] is pinned[-2]


class Copies(TorchDispatchMode):
    """Counts the copies between devices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._to_copy.default and "device" in (kwargs or {})
        return function(*args, **(kwargs or {}))


def test_a_batch_is_moved_in_one_copy():
    batch = collate(samples())
    assert move(batch, CPU) is batch
    with Copies() as copies:
        moved = move(batch, torch.device("meta"))
    assert copies.count == 1
    for name, tensor in tensors(batch).items():
        assert moved[name].device.type == "meta"
        assert (moved[name].shape, moved[name].dtype) == (tensor.shape, tensor.dtype)


def test_what_training_sees_can_be_saved_and_compiled(tmp_path):
    """torch does neither with tensors that share memory as several types."""
    module = data(0)
    batch = module.transfer_batch_to_device(next(iter(module.train_dataloader())), CPU, 0)
    torch.save(batch, tmp_path / "batch.pt")
    assert same(torch.load(tmp_path / "batch.pt", weights_only=False), batch)

    def brighten(image, supervision):
        image.add_(1)
        return image + supervision.sum()

    expected = batch["image"] + 1 + batch["supervision"].sum()
    found = torch.compile(brighten, backend="aot_eager", fullgraph=True)(batch["image"], batch["supervision"])
    assert torch.equal(found, expected)


def data(workers=1, **changes):
    module = DemoDataModule(
        **(
            {"patients": 3, "held_out": 1, "depth": 3, "size": (32, 32), "labelled_patients": 1, "batches_per_epoch": 6}
            | {"transform": "weak_strong", "workers": workers, "seed": 1}
            | changes
        )
    )
    module.setup("fit")
    return module


@pytest.mark.parametrize("memory", ["host", "pinned"])
@pytest.mark.gpu
def test_batches_on_a_gpu(memory):
    module, alone = data(transform="published"), data(0, transform="published")
    for loaded, expected in zip(module.train_dataloader(), alone.train_dataloader(), strict=True):
        assert all(tensor.is_pinned() for tensor in tensors(loaded).values())
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors(loaded).values()}) == 1
        assert len(tensors(loaded)) == 4
        assert same(loaded, expected)
        if memory == "host":
            loaded = elsewhere(loaded)
        loaded["mine"] = torch.arange(3)
        with Copies() as copies:
            moved = module.transfer_batch_to_device(loaded, GPU, 0)
        assert copies.count == 2
        wanted = {name: tensor.to(GPU) for name, tensor in tensors(loaded).items()}
        for name, tensor in tensors(moved).items():
            assert tensor.device == GPU
            assert torch.equal(tensor, wanted[name].to(tensor.dtype)), name
            assert tensor.data_ptr() % ALIGNMENT == 0
        assert moved["label"].dtype == moved["audit_label"].dtype == torch.int64
        assert [moved[name] for name in ("case_id", "kinds")] == [loaded[name] for name in ("case_id", "kinds")]
