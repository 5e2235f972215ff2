"""Reading prepared data: read-only maps, pickling, and a clear word for every kind of damage."""

import json
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from mambaseg.datamodules.manifest import CaseRecord, Header
from mambaseg.datamodules.source import UNKNOWN_LABEL, CaseSource
from mambaseg.datamodules.storage import PreparedDataset, file_sha256
from mambaseg.datamodules.writer import DatasetWriter
from mambaseg.errors import InputError

HEADER = Header("acdc", ("background", "RV", "Myo", "LV"), "none")
AFFINE = ((1.5, 0.0, 0.0, 1.0), (0.0, 1.4, 0.0, 2.0), (0.0, 0.0, 8.0, 3.0), (0.0, 0.0, 0.0, 1.0))


def record(case_id: str, **changes) -> CaseRecord:
    settings = {"spacing_mm": None, "affine": None, "details": {}, **changes}
    return CaseRecord(case_id, case_id.split("_")[0], "none", (), {}, **settings)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(3)
    writer = DatasetWriter(tmp_path / "acdc", HEADER)
    image = rng.random((3, 5, 4), dtype=np.float32)
    label = rng.integers(0, 4, (3, 5, 4)).astype(np.uint8)
    details = {"phase": "ED", "frame": 1}
    placed = record("patient001_frame01", spacing_mm=(8.0, 1.4, 1.5), affine=AFFINE, details=details)
    writer.write(placed, {"image": image, "label": label})
    writer.write(record("patient001_frame02"), {"image": 1 - image})
    writer.finish()
    return tmp_path / "acdc"


def edit_manifest(root, change):
    path = root / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_reads_back_what_was_written(root):
    dataset: CaseSource = PreparedDataset(root)
    rng = np.random.default_rng(3)
    image = rng.random((3, 5, 4), dtype=np.float32)
    assert (dataset.name, dataset.class_names) == ("acdc", HEADER.class_names)
    assert dataset.case_ids() == ["patient001_frame01", "patient001_frame02"]
    assert dataset.group("patient001_frame02") == "patient001"
    np.testing.assert_array_equal(dataset.array("patient001_frame01", "image"), image)
    np.testing.assert_array_equal(dataset.array("patient001_frame02", "image"), 1 - image)
    assert dataset.has("patient001_frame01", "label")
    assert not dataset.has("patient001_frame02", "label")
    assert dataset.spacing_mm("patient001_frame01") == (8.0, 1.4, 1.5)
    assert dataset.spacing_mm("patient001_frame02") is None


def test_details_geometry_and_checksum(root):
    dataset = PreparedDataset(root)
    assert dataset.shape("patient001_frame01") == (3, 5, 4)
    np.testing.assert_array_equal(dataset.affine("patient001_frame01"), AFFINE)
    assert dataset.details("patient001_frame01") == {"phase": "ED", "frame": 1}
    path = root / dataset.record("patient001_frame01").arrays["image"].file
    assert dataset.sha256("patient001_frame01", "image") == file_sha256(path)
    assert dataset.size_bytes() == sum(file.stat().st_size for file in root.rglob("*.npy"))


def test_arrays_are_read_only_maps_opened_once(root):
    dataset = PreparedDataset(root)
    array = dataset.array("patient001_frame01", "image")
    assert dataset.array("patient001_frame01", "image") is array
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files here")
def test_open_arrays_are_mapped_without_holding_files(root):
    dataset = PreparedDataset(root)
    before = len(os.listdir("/proc/self/fd"))
    arrays = [dataset.array(case_id, "image") for case_id in dataset.case_ids()]
    assert len(os.listdir("/proc/self/fd")) == before
    maps = Path("/proc/self/maps").read_text()
    assert all(str(root / dataset.record(case_id).arrays["image"].file) in maps for case_id in dataset.case_ids())
    assert all(array.size for array in arrays)


def _mean(dataset: PreparedDataset) -> float:
    return float(dataset.array("patient001_frame01", "image").mean())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_works_in_other_processes_after_use_here(root, method):
    dataset = PreparedDataset(root)
    here = _mean(dataset)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        assert pool.submit(_mean, dataset).result() == here


def test_pickle_carries_no_array(root):
    dataset = PreparedDataset(root)
    before = len(pickle.dumps(dataset))
    dataset.array("patient001_frame01", "image")
    assert len(pickle.dumps(dataset)) == before


def flip_last_byte(path, touch: bool):
    """Damage a file in place; unless it is touched, only its content tells."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + touch))


def _opened(dataset: PreparedDataset, answer: Connection) -> None:
    try:
        dataset.array("patient001_frame01", "image")
        dataset.array("patient001_frame01", "label")
    except InputError as error:
        answer.send(str(error))
    else:
        answer.send("opened")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_started_here_do_not_examine_again_what_was_found_whole(root, method):
    dataset = PreparedDataset(root)
    dataset.array("patient001_frame01", "image")
    context = multiprocessing.get_context(method)

    def in_a_worker():
        ours, theirs = context.Pipe()
        worker = context.Process(target=_opened, args=(dataset, theirs))
        worker.start()
        answer = ours.recv() if ours.poll(60) else "silent"
        worker.join()
        return answer

    assert in_a_worker() == "opened"
    flip_last_byte(root / "cases" / "patient001_frame01" / "image.npy", touch=False)
    assert in_a_worker() == "opened", "it was examined again"
    flip_last_byte(root / "cases" / "patient001_frame01" / "label.npy", touch=False)
    assert "label.npy: sha256 is" in in_a_worker(), "nobody had opened it here"


def test_what_is_written_after_it_was_found_whole_is_examined_again(root):
    dataset = PreparedDataset(root)
    dataset.array("patient001_frame01", "image")
    dataset._open.clear()
    dataset.array("patient001_frame01", "image")
    flip_last_byte(root / "cases" / "patient001_frame01" / "image.npy", touch=True)
    dataset._open.clear()
    with pytest.raises(InputError, match=r"image\.npy: sha256 is"):
        dataset.array("patient001_frame01", "image")


def test_a_pickle_for_later_vouches_for_nothing(root):
    dataset = PreparedDataset(root)
    dataset.array("patient001_frame01", "image")
    pickled = pickle.dumps(dataset)
    flip_last_byte(root / "cases" / "patient001_frame01" / "image.npy", touch=False)
    with pytest.raises(InputError, match=r"image\.npy: sha256 is"):
        pickle.loads(pickled).array("patient001_frame01", "image")


def test_unknown_label_is_the_index_that_losses_ignore():
    from mambaseg.datamodules.batch import IGNORE_INDEX  # brings torch, which spawned workers should not wait for

    assert UNKNOWN_LABEL == IGNORE_INDEX


def test_absent_folder_and_folder_without_manifest(tmp_path):
    with pytest.raises(InputError, match=r"absent does not exist .looked for .*mambaseg prepare"):
        PreparedDataset(tmp_path / "absent")
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        PreparedDataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(format="nnunet"), ["not written by `mambaseg prepare`", "'nnunet'"]),
        (lambda m: m.pop("format"), ["not written by `mambaseg prepare`"]),
        (lambda m: m.update(version=99), ["'version' is 99", "expected 1"]),
        (lambda m: m.pop("cases"), ["'cases' is missing"]),
        (lambda m: m["cases"][1].pop("group"), ["cases[1].'group' is missing"]),
        (lambda m: m["cases"][0].update(spacing_mm=[1, 2]), ["'spacing_mm' is [1, 2]", "3 numbers"]),
        (lambda m: m["cases"][0].update(affine=[[1, 2, 3, 4]]), ["'affine'", "four rows"]),
        (lambda m: m["cases"][0]["affine"].__setitem__(2, [1, 2]), ["affine.'2' is [1, 2]", "4 numbers"]),
        (lambda m: m["cases"][0]["arrays"].pop("image"), ["'arrays'", "an 'image'"]),
        (lambda m: m["cases"][0]["arrays"]["image"].update(file="../x.npy"), ["'../x.npy'", "inside"]),
        (lambda m: m["cases"][0]["arrays"]["image"].update(shape=[3, 5]), ["'shape' is [3, 5]"]),
        (lambda m: m["cases"][0].update(details=[]), ["details", "[]", "not an object"]),
        (lambda m: m["cases"][0].update(details={"age": float("nan")}), ["'details'", "texts and numbers"]),
        (lambda m: m["cases"][0].update(spacing_mm=[1, float("nan"), 1]), ["'spacing_mm' is [1, nan, 1]", "3 numbers"]),
        (lambda m: m["cases"][0].update(spacing_mm=[1, 10**400, 1]), ["'spacing_mm'", "3 numbers"]),
        (lambda m: m["cases"][0]["arrays"]["image"].update(dtype="object"), ["'dtype' is 'object'", "float32"]),
        (lambda m: m["cases"][0].update(group="p\ud800"), ["'group'", "text"]),
        (
            lambda m: m["cases"][0]["arrays"].update(image=m["cases"][1]["arrays"]["image"]),
            ["'file' is 'cases/patient001_frame02/image.npy'", "expected cases/patient001_frame01/image.npy"],
        ),
        (lambda m: m["cases"].append(m["cases"][0]), ["cases[2].'case_id'", "no other case has"]),
    ],
)
def test_bad_manifest_names_file_field_and_value(root, change, words):
    edit_manifest(root, change)
    with pytest.raises(InputError) as caught:
        PreparedDataset(root)
    for word in [str(root / "manifest.json"), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\x00", "[" * 100_000, "9" * 10_000])
def test_manifest_that_is_no_json_object(root, text):
    (root / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json"):
        PreparedDataset(root)


def test_missing_array_file(root):
    (root / "cases" / "patient001_frame01" / "image.npy").unlink()
    with pytest.raises(InputError, match=r"image\.npy is named by .*manifest\.json but does not exist.*prepare"):
        PreparedDataset(root).array("patient001_frame01", "image")


def test_array_unlike_the_manifest(root):
    np.save(root / "cases" / "patient001_frame01" / "image.npy", np.zeros((3, 5, 5), np.float32))
    with pytest.raises(InputError, match=r"holds float32 \(3, 5, 5\).*says float32 \(3, 5, 4\)"):
        PreparedDataset(root).array("patient001_frame01", "image")


@pytest.mark.parametrize("keep", [0, 40, 150])
def test_truncated_array(root, keep):
    path = root / "cases" / "patient001_frame01" / "image.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"image\.npy is not a whole \.npy file"):
        PreparedDataset(root).array("patient001_frame01", "image")


@pytest.mark.parametrize("at", [-1, 60], ids=["a voxel", "the order of the axes"])
def test_a_damaged_byte_is_no_array(root, at):
    path = root / "cases" / "patient001_frame01" / "image.npy"
    content = path.read_bytes()
    content = content[:-1] + bytes([content[-1] ^ 1]) if at == -1 else content.replace(b"False", b"True ")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"image\.npy: sha256 is .*Run `mambaseg prepare` again.*--verify"):
        PreparedDataset(root).array("patient001_frame01", "image")


def test_a_mask_value_beyond_the_classes_of_the_manifest(root):
    edit_manifest(root, lambda m: m.update(class_names=["background", "RV", "Myo"]))
    with pytest.raises(InputError, match=r"label\.npy has the value 3, but .*manifest\.json names 3 classes"):
        PreparedDataset(root).array("patient001_frame01", "label")


def test_a_field_that_stands_there_twice(root):
    path = root / "manifest.json"
    path.write_text(path.read_text().replace('"dataset":', '"dataset": "other", "dataset":'))
    with pytest.raises(InputError, match="field 'dataset' stands there 2 times"):
        PreparedDataset(root)


def test_unknown_case_and_kind(root):
    dataset = PreparedDataset(root)
    with pytest.raises(InputError, match=r"no case 'patient01_frame01'\. Did you mean 'patient001_frame01'"):
        dataset.array("patient01_frame01", "image")
    with pytest.raises(InputError, match="'patient001_frame02' has no label, only image"):
        dataset.array("patient001_frame02", "label")


def test_verify_finds_a_flipped_byte_and_a_missing_file(root):
    PreparedDataset(root).verify()
    path = root / "cases" / "patient001_frame01" / "label.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (root / "cases" / "patient001_frame02" / "image.npy").unlink()
    with pytest.raises(InputError, match=r"(?s)label\.npy: sha256 is .*patient001_frame02/image\.npy is named by"):
        PreparedDataset(root).verify()


def test_writer_refuses_other_settings_and_foreign_files(root, tmp_path):
    with pytest.raises(InputError, match=r"'normalise' is 'none', this run asks for 'minmax'.*--force"):
        DatasetWriter(root, Header("acdc", HEADER.class_names, "minmax"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"format": "other"}')
    for restart in (False, True):
        with pytest.raises(InputError, match="not written by `mambaseg prepare`"):
            DatasetWriter(foreign, HEADER, restart=restart)
    assert (foreign / "manifest.json").exists()


def test_writer_refuses_a_case_id_that_is_a_path(tmp_path):
    writer = DatasetWriter(tmp_path, HEADER)
    with pytest.raises(InputError, match=r"Case id '\.\./x'"):
        writer.write(record("../x"), {"image": np.zeros((1, 1, 1), np.float32)})


def test_manifest_is_gone_while_a_case_is_rewritten(root):
    writer = DatasetWriter(root, HEADER)
    assert (root / "manifest.json").exists()
    writer.write(record("patient001_frame02"), {"image": np.zeros((1, 1, 1), np.float32)})
    with pytest.raises(InputError, match="2 finished cases but no manifest"):
        PreparedDataset(root)
    writer.finish()
    assert not PreparedDataset(root).array("patient001_frame02", "image").any()


def test_restart_removes_own_files_only(root):
    mine = root / "cases" / "patient001_frame01" / "notes.txt"
    mine.write_text("mine")
    writer = DatasetWriter(root, Header("acdc", HEADER.class_names, "minmax"), restart=True)
    assert writer.records == {}
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["notes.txt"]
