import pytest

from mambaseg.io.atomic import atomic_path, write_text


def test_the_file_appears_whole(tmp_path):
    write_text(tmp_path / "deep" / "a.json", "é")
    assert (tmp_path / "deep" / "a.json").read_text(encoding="utf-8") == "é"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.json"]


def fail_half_way(target):
    with atomic_path(target) as temporary:
        assert temporary.suffix == ".npy"
        temporary.write_text("half")
        raise RuntimeError("disk full")


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path):
    target = tmp_path / "a.npy"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk"):
        fail_half_way(target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
