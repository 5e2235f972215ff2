"""Running prepare again: what is kept, what is made anew, and what a kill leaves behind."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mambaseg.datamodules.prepare import prepare
from mambaseg.datamodules.storage import PreparedDataset
from mambaseg.errors import InputError
from tests.datamodules.layouts import acdc_request, make_scans, write_wsl_slices, write_wsl_volumes


@pytest.fixture
def source(tmp_path):
    write_wsl_volumes(tmp_path / "source", make_scans())
    return tmp_path / "source"


def stamps(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}


def test_second_run_keeps_everything(source, tmp_path):
    out = tmp_path / "out"
    first = prepare(acdc_request(source, out))
    before, manifest = stamps(out), (out / "manifest.json").read_bytes()
    second = prepare(acdc_request(source, out))
    assert (len(first.imported), len(first.kept)) == (6, 0)
    assert (len(second.imported), len(second.kept)) == (0, 6)
    assert stamps(out) == before
    assert (out / "manifest.json").read_bytes() == manifest


def test_changed_source_is_imported_again(source, tmp_path):
    out = tmp_path / "out"
    prepare(acdc_request(source, out))
    os.utime(source / "ACDC_training_volumes" / "patient001_frame12.h5", (1, 1))
    assert prepare(acdc_request(source, out)).imported == ["patient001_frame02"]


def test_lost_and_damaged_files_are_imported_again(source, tmp_path):
    out = tmp_path / "out"
    prepare(acdc_request(source, out))
    (out / "cases" / "patient001_frame01" / "image.npy").unlink()
    (out / "cases" / "patient002_frame01" / "case.json").write_text("{")
    (out / "manifest.json").write_text("{")
    assert sorted(prepare(acdc_request(source, out)).imported) == ["patient001_frame01", "patient002_frame01"]
    PreparedDataset(out).verify()


def test_verify_repairs_a_flipped_byte(source, tmp_path):
    out = tmp_path / "out"
    prepare(acdc_request(source, out))
    path = out / "cases" / "patient001_frame01" / "label.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert prepare(acdc_request(source, out)).imported == []
    assert prepare(acdc_request(source, out, verify=True)).imported == ["patient001_frame01"]
    PreparedDataset(out).verify()


def test_cases_of_another_source_are_kept_until_force(source, tmp_path):
    out = tmp_path / "out"
    prepare(acdc_request(source, out))
    write_wsl_volumes(tmp_path / "more", make_scans({"patient003": (1, 15)}))
    report = prepare(acdc_request(tmp_path / "more", out))
    assert (len(report.imported), len(report.others)) == (2, 6)
    assert len(PreparedDataset(out).case_ids()) == 8
    prepare(acdc_request(tmp_path / "more", out, force=True))
    assert PreparedDataset(out).case_ids() == ["patient003_frame01", "patient003_frame02"]
    assert sorted(path.name for path in (out / "cases").iterdir()) == ["patient003_frame01", "patient003_frame02"]


def test_other_normalisation_needs_force(source, tmp_path):
    out = tmp_path / "out"
    prepare(acdc_request(source, out))
    with pytest.raises(InputError, match=r"'normalise' is 'auto', this run asks for 'minmax'.*--force"):
        prepare(acdc_request(source, out, normalise="minmax"))
    prepare(acdc_request(source, out, normalise="minmax", force=True))
    assert PreparedDataset(out).record("patient001_frame01").normalisation == "minmax"


def test_volumes_and_slices_give_the_same_files(source, tmp_path):
    write_wsl_slices(tmp_path / "slices", make_scans())
    prepare(acdc_request(source, tmp_path / "a"))
    prepare(acdc_request(tmp_path / "slices", tmp_path / "b"))
    first, second = PreparedDataset(tmp_path / "a"), PreparedDataset(tmp_path / "b")
    for case_id in first.case_ids():
        for kind in ("image", "label", "scribble"):
            assert first.sha256(case_id, kind) == second.sha256(case_id, kind)


def test_callback_counts_every_case(source, tmp_path):
    seen = []
    prepare(acdc_request(source, tmp_path / "out"), lambda *arguments: seen.append(arguments))
    assert len(seen) == 6
    assert {(outcome, total) for _, outcome, total in seen} == {("imported", 6)}


def test_bad_requests(source, tmp_path):
    with pytest.raises(InputError, match="--workers is 0"):
        prepare(acdc_request(source, tmp_path / "out", workers=0))
    with pytest.raises(InputError, match="is the source folder itself"):
        prepare(acdc_request(source, source))


KILLED_RUN = """
    import os, signal, sys
    from pathlib import Path
    import numpy as np
    from mambaseg.datamodules.prepare import prepare
    from tests.datamodules.layouts import acdc_request

    whole_save, saved = np.save, 0

    def save_half_then_die(path, array, **options):
        global saved
        saved += 1
        whole_save(path, array, **options)
        if saved == int(sys.argv[3]):
            with open(path, "r+b") as file:
                file.truncate(Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    np.save = save_half_then_die
    prepare(acdc_request(Path(sys.argv[1]), Path(sys.argv[2]), workers=1))
"""


@pytest.mark.parametrize("killed_at", [1, 7, 8, 9])
def test_kill_in_the_middle_then_run_again(source, tmp_path, killed_at, repository):
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(KILLED_RUN), str(source), str(out), str(killed_at)]
    killed = subprocess.run(command, cwd=repository, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL

    for path in out.rglob("*.npy"):
        if not path.name.startswith("."):
            np.load(path)
    assert [path.name[0] for path in out.rglob("*.npy")].count(".") == 1
    with pytest.raises(InputError, match="prepare"):
        PreparedDataset(out)

    finished = (killed_at - 1) // 3
    report = prepare(acdc_request(source, out))
    assert (len(report.imported), len(report.kept)) == (6 - finished, finished)
    assert not list(out.rglob(".*"))
    dataset = PreparedDataset(out)
    dataset.verify()
    for scan in make_scans():
        np.testing.assert_array_equal(dataset.array(scan.case_id, "image"), scan.image)
