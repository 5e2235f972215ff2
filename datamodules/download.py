"""Fetching an archive over HTTP(S) with resume, and unpacking it without trusting it."""

import lzma
import re
import shutil
import stat
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from mambaseg.datamodules.storage import file_sha256
from mambaseg.errors import InputError
from mambaseg.io.atomic import write_text

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and the total, None while unknown."""

DEFAULT_SIZE_LIMIT = 64 * 2**30
MOST_MEMBERS = 1_000_000
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError)
_BLOCK = 1 << 20
_TIMEOUT_S = 60.0
_ATTEMPTS = 4
_SERVER_ERROR = HTTPStatus.INTERNAL_SERVER_ERROR
_RANGE_NOT_SATISFIABLE = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE


def fetch(url: str, target: Path, sha256: str | None = None, progress: Progress = lambda done, total: None) -> Path:
    """Download ``url`` to ``target``; a broken transfer goes on where it stopped, in this call or in the next.

    The bytes gather in ``target`` + ``.part``; beside it stands the server's validator, so that a file which changed
    on the server meanwhile starts over.

    Args:
        url: ``http://`` or ``https://``.
        target: The finished file; if it exists, it is only checked.
        sha256: Expected checksum in hexadecimal.
        progress: Called after each block.

    Raises:
        InputError: The address is bad, the server does not deliver, or the checksum differs.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"--url {url!r} must begin with http:// or https://.")
    if not target.exists():
        part = target.with_name(target.name + ".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch_with_retries(url, part, sha256 is not None, progress)
        _check_sha256(part, sha256, url)
        part.replace(target)
        _validator_file(part).unlink(missing_ok=True)
    else:
        _check_sha256(target, sha256, url)
    return target


def archive_name(url: str) -> str:
    """Return the file name at the end of an address, without anything that has a meaning in a path."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "_", last).lstrip(".") or "archive"


def unpack(archive: Path, target: Path, size_limit: int = DEFAULT_SIZE_LIMIT) -> None:
    """Unpack a zip or tar archive into the new folder ``target``, which appears only when complete.

    Args:
        archive: The file.
        target: The folder; it must not exist yet.
        size_limit: Most bytes to write; never more than the disk has room for.

    Raises:
        InputError: The file is no such archive or damaged, has a member that would land outside ``target`` or is a
            link or device, has too many members, or is larger than the limit.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        folder = Path(temporary) / "content"
        folder.mkdir()
        try:
            with _members(archive) as members:
                _extract(members, folder, archive, size_limit)
        except _DAMAGED as error:
            raise InputError(f"{archive} cannot be unpacked: {error}. Remove it and download it again.") from error
        folder.rename(target)


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; ``plain`` is false for links and devices, ``open`` is None for folders."""

    name: str
    plain: bool
    open: Callable[[], IO[bytes]] | None


def _fetch_with_retries(url: str, part: Path, checked: bool, progress: Progress) -> None:
    """Transfer until complete; give up after several attempts in a row that brought nothing new."""
    fruitless = 0
    last: Exception | None = None
    while fruitless < _ATTEMPTS:
        before = _size(part)
        try:
            _continue_download(url, part, checked, progress)
        except urllib.error.HTTPError as error:
            if error.code < _SERVER_ERROR:
                message = f"--url {url}: the server answers {error.code} {error.reason}. Check the address."
                raise InputError(message) from error
            last = error
        except (HTTPException, OSError) as error:
            last = error
        else:
            return
        fruitless = 0 if _size(part) > before else fruitless + 1
    raise InputError(
        f"--url {url}: the transfer broke off {_ATTEMPTS} times ({last}); {_size(part)} bytes are kept in {part}. "
        "Run the same command again to go on."
    )


def _continue_download(url: str, part: Path, checked: bool, progress: Progress) -> None:
    done = _size(part)
    validator_file = _validator_file(part)
    request = urllib.request.Request(url, headers={"User-Agent": "mambaseg"})
    if done and validator_file.exists():
        request.add_header("If-Range", validator_file.read_text(encoding="utf-8"))
    if done and (validator_file.exists() or checked):
        request.add_header("Range", f"bytes={done}-")
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE and done:
            if error.headers.get("Content-Range") == f"bytes */{done}":
                return  # killed between the last byte and the renaming
            part.unlink()
            raise ConnectionError("the file on the server changed") from error
        raise
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        if resumed and not _starts_at(response, done):
            part.unlink()
            raise ConnectionError("the server sent another part of the file than was asked for")
        _receive(response, part, done if resumed else 0, progress)


def _receive(response: HTTPResponse, part: Path, done: int, progress: Progress) -> None:
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    _remember_validator(response, part)
    with part.open("ab" if done else "wb") as file:
        while block := response.read(_BLOCK):
            done += file.write(block)
            progress(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"{done} of {total} bytes arrived")


def _remember_validator(response: HTTPResponse, part: Path) -> None:
    """Keep what tells later whether the server still has the same file; If-Range takes no weak tags."""
    tag = response.headers.get("ETag")
    validator = tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
    if validator:
        write_text(_validator_file(part), validator)
    else:
        _validator_file(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _starts_at(response: HTTPResponse, offset: int) -> bool:
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-")


def _validator_file(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _check_sha256(file: Path, expected: str | None, url: str) -> None:
    if expected is None:
        return
    actual = file_sha256(file)
    if actual != expected.strip().lower():
        file.unlink()
        raise InputError(
            f"{url}: sha256 of the download is {actual}, expected {expected}; the file was removed. "
            "Check --sha256 and --url, then run again."
        )


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield (_zip_member(zipped, info) for info in zipped.infolist())
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tarred:
            yield (_tar_member(tarred, info) for info in tarred)
    else:
        raise InputError(f"{archive} is neither a zip nor a tar archive. Check --url: it may lead to a web page.")


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
    return _Member(info.filename, plain, None if info.is_dir() else lambda: archive.open(info))


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def open_file() -> IO[bytes]:
        file = archive.extractfile(info)
        if file is None:
            raise tarfile.ReadError(f"{info.name} has no content")
        return file

    return _Member(info.name, info.isfile() or info.isdir(), None if info.isdir() else open_file)


def _extract(members: Iterator[_Member], folder: Path, archive: Path, size_limit: int) -> None:
    written = 0
    room = shutil.disk_usage(folder).free
    for number, member in enumerate(members):
        if number >= MOST_MEMBERS:
            raise InputError(
                f"{archive} has more than {MOST_MEMBERS} members. Unpack it by hand if it is to be trusted."
            )
        _check_name(member, archive)
        destination = folder / member.name
        if member.open is None:
            destination.mkdir(parents=True, exist_ok=True)
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, destination.open("wb") as file:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > size_limit:
                    raise InputError(
                        f"{archive} unpacks to more than {size_limit} bytes. Unpack it by hand if it is to be trusted."
                    )
                if written > room:
                    raise InputError(
                        f"{archive} needs more than the {room} bytes that are free in {folder.parent.parent}."
                    )
                file.write(block)


def _check_name(member: _Member, archive: Path) -> None:
    windows = PureWindowsPath(member.name)
    outside = PurePosixPath(member.name).is_absolute() or windows.drive or windows.root or ".." in windows.parts
    if outside or not member.plain:
        why = "would be written outside the folder" if outside else "is a link or a device"
        raise InputError(f"{archive}: member {member.name!r} {why}. Do not use this archive.")
