"""Downloads from a local server that breaks off, and archives that try to escape."""

import hashlib
import io
import stat
import tarfile
import zipfile

import pytest

from mambaseg.datamodules.download import archive_name, fetch, unpack
from mambaseg.errors import InputError
from tests.datamodules.range_server import CONTENT, serving

DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    with serving() as server:
        yield server


def test_whole_download(server, tmp_path):
    target = fetch(server.url, tmp_path / "deep" / "acdc.zip", DIGEST)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["acdc.zip"]
    fetch(server.url, target, DIGEST)
    assert server.asked == [None]


def test_broken_transfer_goes_on_where_it_stopped(server, tmp_path):
    server.breaks = [1_200_000, 700_000]
    seen = []
    fetch(server.url, tmp_path / "acdc.zip", DIGEST, lambda done, total: seen.append((done, total)))
    assert (tmp_path / "acdc.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1200000-", "bytes=1900000-"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_second_run_resumes_what_the_first_left(server, tmp_path):
    server.breaks = [500_000, 0, 0, 0, 0]
    with pytest.raises(InputError, match=r"broke off 4 times .*500000 bytes are kept in .*\.part.*again"):
        fetch(server.url, tmp_path / "acdc.zip", DIGEST)
    assert not (tmp_path / "acdc.zip").exists()
    server.asked.clear()
    fetch(server.url, tmp_path / "acdc.zip", DIGEST)
    assert server.asked == ["bytes=500000-"]
    assert (tmp_path / "acdc.zip").read_bytes() == CONTENT


def test_file_that_changed_on_the_server_starts_over(server, tmp_path):
    server.breaks = [500_000, 0, 0, 0, 0]
    with pytest.raises(InputError):
        fetch(server.url, tmp_path / "acdc.zip")
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch(server.url, tmp_path / "acdc.zip").read_bytes() == CONTENT[::-1]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.breaks = [500_000]
    assert fetch(server.url, tmp_path / "acdc.zip", DIGEST).read_bytes() == CONTENT


def test_another_range_than_asked_for_starts_over(server, tmp_path):
    server.shift = 7
    server.breaks = [500_000]
    assert fetch(server.url, tmp_path / "acdc.zip").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=500000-", None]


def test_part_without_validator_resumes_only_under_a_checksum(server, tmp_path):
    server.etag = None
    (tmp_path / "acdc.zip.part").write_bytes(CONTENT[:1000])
    fetch(server.url, tmp_path / "acdc.zip", DIGEST)
    assert server.asked == ["bytes=1000-"]
    (tmp_path / "other.zip.part").write_bytes(b"bytes of another file")
    assert fetch(server.url, tmp_path / "other.zip").read_bytes() == CONTENT


def test_killed_after_the_last_byte(server, tmp_path):
    (tmp_path / "acdc.zip.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "acdc.zip", DIGEST).read_bytes() == CONTENT


def test_part_longer_than_the_file_starts_over(server, tmp_path):
    (tmp_path / "acdc.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(server.url, tmp_path / "acdc.zip", DIGEST).read_bytes() == CONTENT


def test_checksum_mismatch_removes_the_file(server, tmp_path):
    with pytest.raises(InputError, match=f"sha256 of the download is {DIGEST}, expected {'0' * 64}"):
        fetch(server.url, tmp_path / "acdc.zip", "0" * 64)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".validator")]


def test_server_errors(server, tmp_path):
    server.errors = [503]
    fetch(server.url, tmp_path / "acdc.zip", DIGEST)
    server.errors = [404]
    with pytest.raises(InputError, match="the server answers 404 Not Found"):
        fetch(server.url, tmp_path / "other.zip")


def test_bad_addresses(tmp_path):
    with pytest.raises(InputError, match="must begin with http"):
        fetch("file:///etc/passwd", tmp_path / "x")
    with pytest.raises(InputError, match="broke off 4 times"):
        fetch("http://127.0.0.1:1/x", tmp_path / "x")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/acdc.zip?key=1", "acdc.zip"),
        ("https://host/", "archive"),
        ("https://host/a/..", "archive"),
        ("https://host/x%2Fy%20z.zip", "y_z.zip"),
    ],
)
def test_archive_name(url, name):
    assert archive_name(url) == name


def make_zip(path, *names, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, options.get("content", name))
    return path


def make_tar(path, *members):
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = 4 if info.isfile() else 0
            archive.addfile(info, io.BytesIO(b"data"))
    return path


def test_unpack_zip_and_tar(tmp_path):
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    unpack(make_zip(tmp_path / "x.zip", "a/", "a/b.txt", "c.txt"), tmp_path / "zip")
    unpack(make_tar(tmp_path / "x.tar.gz", folder, "a/b.txt", "d/c.txt"), tmp_path / "tar")
    assert (tmp_path / "zip" / "a" / "b.txt").read_text() == "a/b.txt"
    assert (tmp_path / "tar" / "d" / "c.txt").read_text() == "data"


def _link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


BAD_NAMES = ["../x", "a/../../x", "/etc/x", "C:\\x", "..\\x", "\\x"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_member_outside_the_folder_is_refused(make, name, tmp_path):
    archive = make(tmp_path / "x.archive", "fine.txt", name)
    with pytest.raises(InputError, match="would be written outside the folder"):
        unpack(archive, tmp_path / "in" / "target")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.archive"]
    assert not (tmp_path / "in" / "target").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_tar_link_or_device_is_refused(kind, tmp_path):
    with pytest.raises(InputError, match="'link' is a link or a device"):
        unpack(make_tar(tmp_path / "x.tar", _link(kind)), tmp_path / "target")


def test_zip_link_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="'link' is a link or a device"):
        unpack(tmp_path / "x.zip", tmp_path / "target")


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path):
    archive = make_zip(tmp_path / "x.zip", "a", "b", content=b"\0" * 1_000_000)
    assert archive.stat().st_size < 10_000
    with pytest.raises(InputError, match="more than 1500000 bytes"):
        unpack(archive, tmp_path / "target", size_limit=1_500_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]


def test_damaged_archives(tmp_path):
    (tmp_path / "page.zip").write_text("<html>log in</html>")
    with pytest.raises(InputError, match=r"neither a zip nor a tar archive.*web page"):
        unpack(tmp_path / "page.zip", tmp_path / "target")
    archive = make_zip(tmp_path / "x.zip", "a", content=CONTENT[:10_000])
    content = bytearray(archive.read_bytes())
    content[5000] ^= 255
    archive.write_bytes(content)
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "target")
    tarred = make_tar(tmp_path / "x.tar.gz", *(f"file{i}" for i in range(200)))
    tarred.write_bytes(tarred.read_bytes()[:-200])
    with pytest.raises(InputError, match="cannot be unpacked"):
        unpack(tarred, tmp_path / "target")
    assert not (tmp_path / "target").exists()
