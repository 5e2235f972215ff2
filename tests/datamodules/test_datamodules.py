"""Supervision pools, what each stage may read, and the messages a person gets."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser

from mambaseg.datamodules.acdc import ACDCDataModule
from mambaseg.datamodules.base import DATAMODULES, SegmentationDataModule
from mambaseg.datamodules.batch import IGNORE_INDEX, Supervision
from mambaseg.datamodules.datasets import SliceDataset, VolumeDataset
from mambaseg.datamodules.demo import DemoDataModule
from mambaseg.datamodules.manifest import CaseRecord, Header
from mambaseg.datamodules.phantom import Phantom
from mambaseg.datamodules.prepared import resolve_root
from mambaseg.datamodules.sampling import SampleKey
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.datamodules.transforms import TRANSFORMS, create_transform
from mambaseg.datamodules.writer import DatasetWriter
from mambaseg.errors import InputError

SMALL = {"patients": 5, "held_out": 2, "depth": 3, "size": (32, 32), "batches_per_epoch": 6, "labelled_patients": 2}


class Watched(Phantom):
    """A phantom that records which arrays were read and can replace masks by nonsense."""

    def __init__(self, *args, poison=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.poison = set(poison)
        self.read = set()
        self.without = set()

    def has(self, case_id, kind):
        return (case_id, kind) not in self.without

    def spacing_mm(self, case_id):
        return None if (case_id, "spacing") in self.without else super().spacing_mm(case_id)

    def array(self, case_id, kind):
        self.read.add((case_id, kind))
        array = super().array(case_id, kind)
        if kind != "image" and self.group(case_id) in self.poison:
            return np.random.default_rng(0).integers(0, 4, array.shape, dtype=np.uint8)
        return array


class WatchedDemo(DemoDataModule):
    """The demo on a watched phantom."""

    def __init__(self, poison=(), **kwargs):
        super().__init__(**(SMALL | kwargs))
        self.phantom = Watched(9, 2, 3, (32, 32), 0, poison=poison)

    def patients_read(self, kind):
        return {self.phantom.group(case_id) for case_id, read in self.phantom.read if read == kind}


def ready(stage="fit", **kwargs):
    data = WatchedDemo(**kwargs)
    data.setup(stage)
    return data


def test_semi_supervised_batches():
    data = ready()
    for loaded in data.train_dataloader():
        assert loaded["label"].dtype == loaded["audit_label"].dtype == torch.uint8
        batch = data.transfer_batch_to_device(loaded, torch.device("cpu"), 0)
        assert batch["image"].shape == (8, 1, 32, 32)
        assert batch["image"].dtype == torch.float32
        assert batch["label"].dtype == batch["supervision"].dtype == batch["audit_label"].dtype == torch.int64
        assert [len(spacing) for spacing in batch["spacing_mm"]] == [2] * 8
        assert batch["supervision"].tolist() == [Supervision.DENSE] * 4 + [Supervision.NONE] * 4
        assert all(case_id[:10] in ("phantom001", "phantom002") for case_id in batch["case_id"][:4])
        assert all(case_id[:10] in ("phantom003", "phantom004", "phantom005") for case_id in batch["case_id"][4:])
        assert (batch["label"][:4] < 4).all()
        assert (batch["label"][4:] == IGNORE_INDEX).all()
        assert torch.equal(batch["audit_label"][:4], batch["label"][:4])
        assert (batch["audit_label"][4:] < 4).all()
        assert "image_strong" not in batch


@pytest.mark.parametrize("transform", TRANSFORMS.names())
def test_masks_of_unlabelled_patients_change_nothing_but_the_audit(transform):
    clean = ready(transform=transform).train_dataloader()
    poisoned = ready(transform=transform, poison=("phantom003", "phantom004", "phantom005")).train_dataloader()
    audits_differ = 0
    for one, other in zip(clean, poisoned, strict=True):
        assert one.keys() == other.keys()
        assert one["kinds"] == other["kinds"]
        for name in one.keys() - {"case_id", "kinds", "spacing_mm", "audit_label"}:
            assert torch.equal(one[name], other[name]), name
        assert torch.equal(one["audit_label"][:4], other["audit_label"][:4])
        audits_differ += not torch.equal(one["audit_label"][4:], other["audit_label"][4:])
    assert audits_differ > 0, "the poison must have been there"


def test_without_audit_the_masks_are_not_even_read():
    data = ready(audit=False)
    for batch in data.train_dataloader():
        assert "audit_label" not in batch
    assert data.patients_read("label") == {"phantom001", "phantom002"}


def test_fit_never_touches_test_patients():
    data = ready()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert data.patients_read("image") == {f"phantom{number:03d}" for number in range(1, 8)}
    testing = ready("test")
    assert not testing.phantom.read
    cases = [batch["case_id"][0] for batch in testing.test_dataloader()]
    assert {case_id[:10] for case_id in cases} == {"phantom008", "phantom009"} == testing.patients_read("image")


def test_prediction_reads_no_masks():
    data = ready("predict")
    for batch in data.predict_dataloader():
        assert (batch["label"] == IGNORE_INDEX).all()
        assert batch["supervision"].tolist() == [Supervision.NONE]
    assert not data.patients_read("label")


def test_validation_cases_are_whole_and_native():
    data = ready("validate")
    batches = list(data.val_dataloader())
    assert [batch["case_id"] for batch in batches] == [
        [f"phantom{number:03d}_frame{frame:02d}"] for number in (6, 7) for frame in (1, 2)
    ]
    for batch in batches:
        case_id = batch["case_id"][0]
        assert np.array_equal(batch["image"][0, 0].numpy(), data.phantom.array(case_id, "image"))
        assert np.array_equal(batch["label"][0].numpy(), data.phantom.array(case_id, "label"))
        assert batch["spacing_mm"] == [data.phantom.spacing_mm(case_id)], "not rounded"


def test_scribble_supervision():
    data = ready(supervision="scribble", batch_unlabelled=0, labelled_patients=None)
    for batch in data.train_dataloader():
        known = batch["label"] != IGNORE_INDEX
        assert 0 < known.float().mean() < 0.1
        assert known.flatten(1).any(1).all(), "every slice has a stroke"
        assert (batch["supervision"] == Supervision.SCRIBBLE).all()
        assert (batch["label"] == batch["audit_label"])[known].all()
        assert (batch["audit_label"] < 4).all()


def test_masks_scribbles_and_unlabelled_images_in_one_batch():
    data = ready(scribble_patients=1, batch_scribble=2)
    batch = next(iter(data.train_dataloader()))
    assert batch["supervision"].tolist() == [2] * 4 + [1] * 2 + [0] * 4
    assert all(case_id.startswith("phantom003") for case_id in batch["case_id"][4:6])
    coverage = (batch["label"] != IGNORE_INDEX).float().flatten(1).mean(1)
    assert (coverage[:4] == 1).all()
    assert ((coverage[4:6] > 0) & (coverage[4:6] < 0.2)).all()
    assert (coverage[6:] == 0).all()


def test_two_views():
    batch = next(iter(ready(transform="weak_strong").train_dataloader()))
    assert batch["image_strong"].shape == batch["image"].shape
    assert not torch.equal(batch["image_strong"], batch["image"])


def test_purely_labelled_training_opens_labelled_patients_only():
    data = ready(batch_unlabelled=0)
    batch = next(iter(data.train_dataloader()))
    assert (batch["supervision"] == Supervision.DENSE).all()
    assert "audit_label" not in batch
    assert data.patients_read("image") == {"phantom001", "phantom002"}


def test_ranks_share_a_batch():
    single = next(iter(ready().train_dataloader()))
    shares = []
    for rank in range(2):
        data = WatchedDemo()
        connector = SimpleNamespace(use_distributed_sampler=False)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, num_devices=2, _accelerator_connector=connector)
        data.setup("fit")
        shares.append(next(iter(data.train_dataloader())))
        assert len(data.val_dataloader()) == 2
    together = torch.cat([share["image"][part] for part in (slice(0, 2), slice(2, 4)) for share in shares])
    assert torch.equal(together, single["image"])


def test_a_trainer_that_replaces_samplers_is_refused():
    data = WatchedDemo()
    connector = SimpleNamespace(use_distributed_sampler=True)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, num_devices=2, _accelerator_connector=connector)
    with pytest.raises(InputError, match="use_distributed_sampler: false"):
        data.setup("fit")


def test_unknown_spacing_is_nan():
    source = Watched(1, 2, 3, 32)
    source.without.add(("phantom001_frame01", "spacing"))
    sample = VolumeDataset(source, ["phantom001_frame01"])[0]
    assert np.isnan(sample.spacing_mm).all()


def test_audit_of_a_case_without_a_mask_is_unknown():
    source = Watched(1, 2, 3, 32)
    source.without.add(("phantom001_frame01", "label"))
    for supervision in (Supervision.NONE, Supervision.SCRIBBLE):
        dataset = SliceDataset(
            source, {"phantom001_frame01": supervision}, create_transform("published", (32, 32)), audit=True
        )
        assert (dataset[SampleKey(0, 1)].audit_label == IGNORE_INDEX).all()


def test_a_missing_array_is_named():
    source = Watched(1, 2, 3, 32)
    source.without |= {("phantom001_frame02", "label"), ("phantom001_frame02", "scribble")}
    transform = create_transform("published", (32, 32))
    with pytest.raises(InputError, match=r"phantom001_frame02.*'label'.*dense"):
        SliceDataset(source, {"phantom001_frame02": Supervision.DENSE}, transform)
    with pytest.raises(InputError, match=r"phantom001_frame02.*'scribble'"):
        SliceDataset(source, {"phantom001_frame02": Supervision.SCRIBBLE}, transform)
    with pytest.raises(InputError, match=r"phantom001_frame02.*'label'.*evaluation"):
        VolumeDataset(source, ["phantom001_frame02"])
    assert len(VolumeDataset(source, ["phantom001_frame02"], labels=False)) == 1


def test_the_missing_archive_message_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="make data DATASET=acdc SOURCE="):
        ACDCDataModule(root=str(tmp_path / "nothing")).setup("fit")


def test_acdc_is_described_before_its_data_is_there():
    data = ACDCDataModule()
    assert data.num_classes == 4
    assert data.class_names == ("background", "RV", "Myo", "LV")
    assert data.in_channels == 1


def test_data_folder_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MAMBASEG_DATA", raising=False)
    assert str(resolve_root("data/acdc")) == "data/acdc"
    monkeypatch.setenv("MAMBASEG_DATA", str(tmp_path))
    assert resolve_root("data/acdc") == tmp_path / "acdc"
    assert str(resolve_root("/other/acdc")) == "/other/acdc"


def test_messages_for_bad_settings():
    with pytest.raises(InputError, match="99 labelled patients"):
        ready(labelled_patients=99)
    with pytest.raises(InputError, match="batch_unlabelled=0"):
        ready(labelled_patients=None).train_dataloader()
    with pytest.raises(InputError, match="batch_scribble"):
        ready(batch_scribble=2).train_dataloader()
    with pytest.raises(InputError, match="supervision"):
        ready(supervision="boxes")
    with pytest.raises(InputError, match="scribble_patients"):
        ready(supervision="scribble", scribble_patients=1)
    with pytest.raises(InputError, match="published"):
        ready(transform="publishd")
    with pytest.raises(InputError, match="held_out"):
        ready(held_out=0)
    with pytest.raises(RuntimeError, match="setup"):
        WatchedDemo().train_dataloader()


def test_registered_names():
    assert {"acdc", "demo"} <= set(DATAMODULES.names())


def test_yaml_builds_a_datamodule():
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    config = parser.parse_object(
        {
            "data": {
                "class_path": "mambaseg.datamodules.acdc.ACDCDataModule",
                "init_args": {"size": [96, 80], "supervision": "scribble", "transform_options": {"max_angle": 10}},
            }
        }
    )
    data = parser.instantiate(config).data
    assert isinstance(data, ACDCDataModule)
    assert data.size == (96, 80)
    assert data.transform.max_angle == 10


def test_yaml_refuses_a_misspelt_setting():
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(SegmentationDataModule, "data", subclass_mode=True)
    demo = {"class_path": "mambaseg.datamodules.demo.DemoDataModule", "init_args": {"labelled_patient": 2}}
    with pytest.raises(ArgumentError, match="labelled_patient"):
        parser.parse_object({"data": demo})


def prepared(root, flipped):
    """Prepared phantom patients, a bit flipped in the file of one array."""
    phantom = Phantom(6, 1, 2, (32, 32), 0)
    writer = DatasetWriter(root, Header("phantom", phantom.class_names, "none"))
    for case_id in phantom.case_ids():
        about = CaseRecord(case_id, phantom.group(case_id), "none", (), {}, spacing_mm=None, affine=None, details={})
        writer.write(about, {kind: phantom.array(case_id, kind) for kind in ("image", "label", "scribble")})
    writer.finish()
    if flipped is not None:
        path = next((root / "cases").glob(f"{flipped[0]}*/{flipped[1]}.npy"))
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return PreparedDataset(root)


class Prepared(DemoDataModule):
    """The demo on prepared patients; of its training patients, one has masks, one has scribbles, one has nothing."""

    def __init__(self, source, **kwargs):
        self.prepared = source
        supervision = {"labelled_patients": 1, "scribble_patients": 1}
        super().__init__(**{**SMALL, "patients": 3, "held_out": 1, **supervision, **kwargs})

    def open_source(self):
        return self.prepared


@pytest.mark.parametrize(
    ("flipped", "audit"),
    [
        (("phantom001", "image"), False),
        (("phantom001", "label"), False),
        (("phantom002", "scribble"), False),
        (("phantom002", "label"), True),
        (("phantom003", "image"), False),
        (("phantom003", "label"), True),
        (("phantom004", "image"), False),
        (("phantom004", "label"), False),
    ],
)
def test_damage_is_found_before_training(tmp_path, flipped, audit):
    data = Prepared(prepared(tmp_path, flipped), audit=audit)
    opens = [lambda: data.setup("fit"), data.val_dataloader]
    if flipped[0] == "phantom004":
        opens.pop(0)()
    with pytest.raises(InputError, match=rf"{flipped[0]}.*{flipped[1]}\.npy: sha256 is"):
        opens[0]()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_arrays_are_examined_once_whatever_the_number_of_workers(tmp_path, method):
    """After the data is set up, checksums are wrong: a worker that compared one would end the epoch."""
    data = Prepared(prepared(tmp_path, None), workers=2, batch_scribble=1, batch_unlabelled=1, batch_labelled=1)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.multiprocessing_context = method
    for path in (tmp_path / "cases").glob("*/*.npy"):
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]) if path.stem == "image" else last[:0] + b"\x00")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(list(loader)) == SMALL["batches_per_epoch"]


@pytest.mark.parametrize(
    ("done", "meaning"),
    [(["clip99", "publisher"], "clip99"), (["minmax", "minmax"], "minmax"), (["minmax", "clip99"], None)],
)
def test_prepared_data_tell_how_a_new_scan_is_scaled(done, meaning, monkeypatch):
    data = ACDCDataModule(root="nowhere")
    source = PreparedDataset.__new__(PreparedDataset)
    cases = {str(number): SimpleNamespace(normalisation=how) for number, how in enumerate(done)}
    source.manifest = SimpleNamespace(cases=cases)
    monkeypatch.setattr(ACDCDataModule, "source", source)
    assert data.normalisation == meaning
    assert DemoDataModule(**SMALL).normalisation is None
