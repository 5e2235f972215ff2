"""What is known, stated patient by patient or case by case, and batches that draw from every pool."""

import pytest

from mambaseg.datamodules.batch import IGNORE_INDEX, Supervision
from mambaseg.datamodules.demo import DemoDataModule
from mambaseg.errors import InputError

SMALL = {"patients": 6, "held_out": 1, "depth": 2, "size": (32, 32), "batches_per_epoch": 5, "frames": 2}
POOLS = {"batch_labelled": 1, "batch_scribble": 2, "batch_unlabelled": 3}


def granted(**options):
    data = DemoDataModule(**(SMALL | POOLS | options))
    data.setup("fit")
    slices = data.train_dataloader().dataset
    return data, dict(zip(slices.cases, slices.supervision, strict=True))


def test_counts_give_all_three_pools_in_the_splits_order():
    _, known = granted(labelled_patients=1, scribble_patients=2)
    by_patient = {case_id[:10]: kind for case_id, kind in known.items()}
    assert list(by_patient.values()) == [Supervision.DENSE, *[Supervision.SCRIBBLE] * 2, *[Supervision.NONE] * 3]


def test_a_patient_and_a_case_can_be_stated_and_the_case_wins():
    stated = {"phantom002": "dense", "phantom002_frame02": "scribble", "phantom006_frame01": "scribble"}
    _, known = granted(labelled_patients=0, known=stated)
    expected = {
        "phantom002_frame01": Supervision.DENSE,
        "phantom002_frame02": Supervision.SCRIBBLE,
        "phantom006_frame01": Supervision.SCRIBBLE,
    }
    assert {case: kind for case, kind in known.items() if kind} == expected
    _, known = granted(labelled_patients=2, scribble_patients=1, known={"phantom001": "none"})
    assert known["phantom001_frame01"] is Supervision.NONE
    assert known["phantom002_frame01"] is Supervision.DENSE


def test_every_batch_draws_from_each_pool_in_the_set_proportions():
    data, known = granted(labelled_patients=1, scribble_patients=2)
    for batch in data.train_dataloader():
        assert batch["supervision"].tolist() == [2, 1, 1, 0, 0, 0]
        assert [known[case_id] for case_id in batch["case_id"]] == batch["supervision"].tolist()
        shares = (batch["label"] != IGNORE_INDEX).float().mean((1, 2)).tolist()
        assert shares[0] == 1.0
        assert all(0 < share < 0.1 for share in shares[1:3])
        assert shares[3:] == [0.0] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"known": {"phantom02": "dense"}}, r"no training patient or case 'phantom02'. Did you mean 'phantom0"),
        ({"known": {"phantom007": "dense"}}, "no training patient or case 'phantom007'"),
        ({"known": {"phantom001": "masks"}}, "phantom001 is 'masks'; it must be one of none, scribble, dense"),
        ({"known": {"phantom001": "dense"}, "supervision": "scribble"}, "phantom001 is dense, which needs"),
        ({"labelled_patients": 0}, "0 labelled patients asked for"),
    ],
)
def test_impossible_statements_are_named(options, message):
    with pytest.raises(InputError, match=message):
        granted(**options)
