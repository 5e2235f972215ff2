"""Published splits, random splits by patient, and the leakage checks."""

import json
import zipfile
from collections import Counter

import numpy as np
import pytest

from mambaseg.datamodules.manifest import CaseRecord, Header
from mambaseg.datamodules.splits import (
    PARTS,
    Split,
    check_split,
    leakage_report,
    load_split,
    random_split,
    save_split,
    split_names,
)
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.datamodules.writer import DatasetWriter
from mambaseg.errors import InputError

PUBLISHED_ORDER = """
099 038 050 100 058 021 049 020 072 040 060 089 004 056 098 096 031 018 094 047 048 055 097 074 043 041 063 037 095
054 026 088 032 069 006 071 012 073 061 017 025 010 057 029 051 005 036 046 062 034 076 092 070 077 067 003 091 016
014 044 042 090 053 027 035 086 023 009 079 015"""
FIRST_N_SLICES = {1: 32, 3: 68, 7: 136, 14: 256, 21: 396, 28: 512, 35: 664, 70: 1312}


def patients(*numbers: int) -> tuple[str, ...]:
    return tuple(f"patient{number:03d}" for number in numbers)


SMALL = Split("small", "acdc", patients(1, 2, 3, 4), patients(5), patients(6, 7))


def store(root, images: dict[str, int]) -> PreparedDataset:
    """Store one case a name, whose image is filled from the seed given for it."""
    writer = DatasetWriter(root, Header("acdc", ("background", "RV"), "none"))
    for patient, seed in images.items():
        image = np.random.default_rng(seed).random((2, 3, 3), dtype=np.float32)
        record = CaseRecord(f"{patient}_frame01", patient, "none", (), {}, None, None, {})
        writer.write(record, {"image": image})
    writer.finish()
    return PreparedDataset(root)


@pytest.fixture
def dataset(tmp_path):
    return store(tmp_path / "acdc", {patient: i for i, patient in enumerate(patients(*range(1, 8)))})


def test_names_of_the_package():
    folds = [f"acdc_wsl_fold{k}" for k in range(1, 6)]
    assert set(split_names()) >= {"acdc_70_10_20", *folds}


@pytest.mark.parametrize("name", ["acdc_70_10_20", *(f"acdc_wsl_fold{k}" for k in range(1, 6))])
def test_published_split_divides_all_hundred_patients(name):
    split = load_split(name)
    assert (split.name, split.dataset) == (name, "acdc")
    assert split.note
    together = [patient for part in PARTS for patient in split.part(part)]
    assert sorted(together) == list(patients(*range(1, 101)))


def test_published_order():
    split = load_split("acdc_70_10_20")
    assert split.train == tuple(f"patient{number}" for number in PUBLISHED_ORDER.split())
    assert (len(split.val), len(split.test)) == (10, 20)


@pytest.mark.parametrize("fold", range(1, 6))
def test_wsl_folds(fold):
    split = load_split(f"acdc_wsl_fold{fold}")
    assert split.test == patients(*range(20 * fold - 19, 20 * fold + 1))
    assert split.val == ()


@pytest.mark.real_data
def test_lists_and_slice_counts_of_the_real_data(acdc_archive):
    split = load_split("acdc_70_10_20")
    for part, file in (("train", "train_slices.list"), ("val", "val.list"), ("test", "test.list")):
        rows = (acdc_archive / "lists" / file).read_text().split()
        assert split.part(part) == tuple(dict.fromkeys(row.split("_")[0] for row in rows))
    with zipfile.ZipFile(acdc_archive / "acdc_trainval.zip") as pack:
        volumes = json.loads(pack.read("meta.json"))
    slices = Counter()
    for name, meta in volumes.items():
        slices[name.split("_")[0]] += meta["shape"][0]
    assert {n: sum(slices[p] for p in split.labelled(n)) for n in FIRST_N_SLICES} == FIRST_N_SLICES
    assert sum(slices[p] for p in split.val) == 210


def test_labelled_takes_the_first():
    assert load_split("acdc_70_10_20").labelled(3) == patients(99, 38, 50)


@pytest.mark.parametrize("n", [0, -1, 71])
def test_labelled_refuses_impossible_numbers(n):
    with pytest.raises(InputError, match=f"'acdc_70_10_20': {n} labelled patients asked for, expected 1 to 70"):
        load_split("acdc_70_10_20").labelled(n)


@pytest.mark.parametrize("n", [1, 5, 10, 79])
def test_validation_is_carved_out_of_train(n):
    fold = load_split("acdc_wsl_fold2")
    carved = fold.with_validation(n)
    assert len(carved.val) == n
    assert set(carved.train) | set(carved.val) == set(fold.train)
    assert not set(carved.train) & set(carved.val)
    assert carved.test == fold.test
    assert carved.name == f"acdc_wsl_fold2_val{n}"
    assert list(carved.train) == [patient for patient in fold.train if patient in carved.train]


def test_carved_validation_holds_every_diagnosis():
    carved = load_split("acdc_wsl_fold1").with_validation(8)
    diagnoses = Counter((int(patient[-3:]) - 1) // 20 for patient in carved.val)
    assert diagnoses == {1: 2, 2: 2, 3: 2, 4: 2}


def test_validation_is_not_carved_twice_or_out_of_nothing():
    with pytest.raises(InputError, match="already has 10 validation patients"):
        load_split("acdc_70_10_20").with_validation(5)
    with pytest.raises(InputError, match="80 validation patients asked for, expected 1 to 79"):
        load_split("acdc_wsl_fold1").with_validation(80)


def test_unknown_name_gives_close_matches():
    with pytest.raises(InputError, match=r"no split 'acdc_wsl_fold6'\. Did you mean 'acdc_wsl_fold"):
        load_split("acdc_wsl_fold6")
    with pytest.raises(InputError, match=r"Split file .*mine\.json does not exist"):
        load_split("mine.json")


def test_save_and_load(tmp_path):
    save_split(SMALL, tmp_path / "mine.json")
    assert load_split(tmp_path / "mine.json") == SMALL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("test"), "'test' is missing"),
        (lambda d: d.update(train="patient001"), "'train' is 'patient001', expected a list of texts"),
        (lambda d: d.update(val=[1]), r"'val' is \[1\]"),
        (lambda d: d.update(tset=[]), "no field 'tset'. Did you mean 'test'"),
    ],
)
def test_bad_file_names_field_and_value(change, words, tmp_path):
    save_split(SMALL, tmp_path / "mine.json")
    document = json.loads((tmp_path / "mine.json").read_text())
    change(document)
    (tmp_path / "mine.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=rf"mine\.json.*{words}"):
        load_split(tmp_path / "mine.json")


def test_random_split_is_by_patient_seeded_and_complete():
    groups = [f"patient{i:03d}" for i in range(50) for _ in range(2)]
    split = random_split(groups, (0.7, 0.1, 0.2), 1, "r", "acdc")
    assert (len(split.train), len(split.val), len(split.test)) == (35, 5, 10)
    assert sorted(split.train + split.val + split.test) == sorted(set(groups))
    assert random_split(reversed(groups), (0.7, 0.1, 0.2), 1, "r", "acdc") == split
    assert random_split(groups, (0.7, 0.1, 0.2), 2, "r", "acdc").train != split.train
    assert "seed 1" in split.note


def test_random_split_stays_the_same_for_ever():
    split = random_split([f"p{i}" for i in range(6)], (0.5, 0.0, 0.5), 0, "r", "d")
    assert (split.train, split.val, split.test) == (("p2", "p4", "p5"), (), ("p0", "p3", "p1"))


def test_patients_without_a_mask_all_train_and_the_others_stay_in_order():
    groups, shares = [f"p{i}" for i in range(20)], (0.7, 0.1, 0.2)
    whole = random_split(groups, shares, 0, "r", "d")
    without = {whole.test[0], whole.val[0], whole.train[3]}
    split = random_split(groups, shares, 0, "r", "d", without)
    assert set(split.train[-3:]) == without, "the first ones are those with masks"
    assert (len(split.train), len(split.val), len(split.test)) == (14, 2, 4)
    assert sorted(split.train + split.val + split.test) == sorted(groups)
    assert set(whole.test) - without <= set(split.test)
    with pytest.raises(InputError, match="6 patients have masks, too few"):
        random_split(groups, shares, 0, "r", "d", groups[6:])


@pytest.mark.parametrize("fractions", [(0.7, 0.3), (0.7, 0.1, 0.1), (1.2, -0.2, 0.0)])
def test_random_split_refuses_bad_fractions(fractions):
    with pytest.raises(InputError, match="expected three shares"):
        random_split(["a", "b", "c"], fractions, 0, "r", "d")


def test_random_split_refuses_an_empty_part():
    with pytest.raises(InputError, match=r"3 patients are too few for a val share of 0\.01"):
        random_split(["a", "b", "c"], (0.69, 0.01, 0.3), 0, "r", "d")


def test_clean_split_passes(dataset):
    check_split(SMALL, dataset)
    report = leakage_report(SMALL, dataset)
    assert not report.leaks
    assert report.lines() == []


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (Split("s", "acdc", patients(1, 2), patients(2), ()), "patient002 is in 'train' and in 'val'"),
        (Split("s", "acdc", patients(1), patients(2), patients(1)), "patient001 is in 'train' and in 'test'"),
        (Split("s", "acdc", patients(1, 1), (), ()), "'train' names patient001 more than once"),
        (Split("s", "acdc", patients(1, 100), (), ()), r"'train': 1 of 2 patients are not in the data \(patient100\)"),
        (Split("s", "promise12", patients(1), (), ()), "divides data set 'promise12', but the data is 'acdc'"),
    ],
)
def test_check_split_refuses(split, words, dataset):
    with pytest.raises(InputError, match=words):
        check_split(split, dataset)


def test_unknown_patient_gives_close_matches(dataset):
    with pytest.raises(InputError, match="Close to 'patient01': patient001"):
        check_split(Split("s", "acdc", ("patient01",), (), ()), dataset)


def test_absent_test_set_matters_only_when_asked_for(tmp_path):
    dataset = store(tmp_path, {patient: i for i, patient in enumerate(patients(1, 2, 3, 4, 5))})
    check_split(SMALL, dataset, parts=("train", "val"))
    with pytest.raises(InputError, match=r"'test': 2 of 2 patients are not in the data \(patient006, patient007\)"):
        check_split(SMALL, dataset, parts=("test",))


def test_leakage_outside_the_asked_parts_is_still_refused(dataset):
    split = Split("s", "acdc", patients(1), (), patients(1))
    with pytest.raises(InputError, match="patient001 is in 'train' and in 'test'"):
        check_split(split, dataset, parts=("train",))


def test_leakage_report_finds_copies_under_other_names(tmp_path):
    images = {patient: i for i, patient in enumerate(patients(*range(1, 8)))}
    images["patient006"] = images["patient001"]
    images["patient003"] = images["patient002"]
    split = Split("s", "acdc", patients(1, 2, 3, 4), patients(5, 4), patients(6, 7))
    report = leakage_report(split, store(tmp_path, images))
    assert report.shared_patients == {"patient004": ("train", "val")}
    assert report.crossing_images == (("patient001_frame01", "patient006_frame01"),)
    assert report.identical_images == (
        ("patient001_frame01", "patient006_frame01"),
        ("patient002_frame01", "patient003_frame01"),
    )
    assert report.leaks
    assert len(report.lines()) == 3
