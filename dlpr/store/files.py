"""Files that are whole or absent: data, fsync, rename, fsync of the directory."""

from __future__ import annotations

import errno
import json
import mmap
import os
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from dlpr.errors import ResourceError, StoreError

Json = dict[str, Any]


def canonical_json(value: object) -> bytes:
    """JSON with one spelling per value: what digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_FAILED = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EFBIG)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write below ``path`` into a message for users."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what = "the disk is full" if error.errno == errno.ENOSPC else "the quota is used up"
            raise ResourceError(
                f"cannot write {path}: {what}. Nothing finished is lost. Free some space "
                f"(`dlpr clean` removes what no result refers to) and run the same command again."
            ) from error
        if error.errno in _REFUSED:
            raise StoreError(
                f"cannot write {path}: {os.strerror(error.errno)}. Choose another folder with "
                f"--output, or have its owner grant write permission."
            ) from error
        if error.errno in _FAILED:
            raise StoreError(
                f"cannot write {path}: {os.strerror(error.errno)}. Finished tasks are kept; look "
                f"after the disk, the file server or the limit, and run the same command again."
            ) from error
        raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, their names durable."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync_directory(path.parent)


def look_again(folder: Path) -> None:
    """Have a network file system forget which names it believes absent from a folder.

    NFS asks the server anew when a folder is opened, and remembers absence until then.
    """
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY))
    except FileNotFoundError:
        if folder.parent != folder:
            look_again(folder.parent)
    except OSError:
        return


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make a file's content durable. A full NFS quota shows itself here."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def fsync_tree(path: Path) -> None:
    """Make every file and name below ``path`` durable."""
    for folder, _, names in os.walk(path):
        for name in names:
            fsync_file(Path(folder) / name)
        fsync_directory(Path(folder))


def partial_path(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses and that nobody takes for the finished thing."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under ``path`` when the block ends without an error."""
    with explained(path):
        make_folder(path.parent)
        partial = partial_path(path)
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        fsync_directory(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, which appears under ``path`` when the block ends without an error."""
    with explained(path):
        make_folder(path.parent)
        partial = partial_path(path)
        partial.mkdir()
        try:
            yield partial
            fsync_tree(partial)
            replace_tree(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def filled_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled, whose files take their places below ``path``, beside those that are
    there, when the block ends without an error; each of them is whole or absent."""
    with explained(path):
        make_folder(path)
        partial = partial_path(path)
        partial.mkdir()
        try:
            yield partial
            fsync_tree(partial)
            for folder, _, names in os.walk(partial):
                target = path / Path(folder).relative_to(partial)
                make_folder(target)
                for name in names:
                    (Path(folder) / name).replace(target / name)
                fsync_directory(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def replace_tree(partial: Path, target: Path) -> None:
    """Put a finished folder in place by a rename; what was there before is removed."""
    while True:
        try:
            partial.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        aside = partial_path(target)
        with suppress(FileNotFoundError):  # somebody who does the same was quicker
            target.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    fsync_directory(target.parent)


def link_file(source: Path, target: Path) -> None:
    """Give a finished file a further name, or copy it where the file system knows no links."""
    with explained(target):
        make_folder(target.parent)
        partial = partial_path(target)
        try:
            try:
                os.link(source, partial)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EXDEV):
                    raise
                shutil.copyfile(source, partial)
                fsync_file(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    with atomic_file(path) as file:
        file.write(json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")


def keep_json(path: Path, value: object) -> None:
    """Write JSON atomically, unless the file has it already."""
    if read_json(path) != value:
        write_json(path, value)


def read_json(path: Path) -> Json | None:
    """JSON of a file; None where there is none or where it is not whole.

    Raises
    ------
    StoreError
        Where it may not be read.
    """
    try:
        value = json.loads(_read_bytes(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {os.strerror(error.errno or 0)}.") from error
    return value if isinstance(value, dict) else None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
    look_again(path.parent)  # another host has put a new file in its place
    return path.read_bytes()


_ALIGNMENT = 64
"""Arrays of a file begin at multiples of this, so that BLAS takes them where they lie."""
_LOCAL_HEADER = 30
_ZIP64_EXTRA = 20
_PADDING_ID = 0xD935
"""Sizes and the number of fields of a zip file's local header (APPNOTE 4.3.7, 4.5.3, zipalign)."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Write arrays as one uncompressed ``.npz`` whose bytes depend on the arrays alone.

    Returns
    -------
    dict
        The CRC-32C of every member, which reading verifies.
    """
    checks: dict[str, int] = {}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.extra = _padding(file.tell() + _LOCAL_HEADER + len(info.filename) + _ZIP64_EXTRA)
            with archive.open(info, "w", force_zip64=True) as member:
                sink = _Checked(member)
                np.lib.format.write_array(sink, np.asanyarray(array), allow_pickle=False)
            checks[name] = sink.check
    return checks


def _padding(offset: int) -> bytes:
    """An extra field after which a member that would begin at ``offset`` is aligned."""
    n = -(offset + 4) % _ALIGNMENT
    return struct.pack("<HH", _PADDING_ID, n) + bytes(n)


class _Checked:
    """A file that is written to while its CRC-32C is taken."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.check = 0

    def write(self, data: Any) -> int:
        self.check = google_crc32c.extend(self.check, bytes(data))
        return int(self._file.write(data))


DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    NotImplementedError,  # a flag of zipfile's that it does not know
    RuntimeError,  # the flag "encrypted"
    struct.error,
    zipfile.BadZipFile,
    zlib.error,  # the flag "compressed"
)
"""What reading an ``.npz`` raises for a file that is gone or has flipped bits."""


def read_arrays(
    path: Path, checks: Mapping[str, int], names: tuple[str, ...] | None = None
) -> dict[str, NDArray[Any]]:
    """Arrays of a file of `write_arrays` where they lie: read-only, mapped, every byte checked.

    Parameters
    ----------
    path : Path
    checks : mapping of str to int
        What `write_arrays` returned: the file must hold these arrays and no others.
    names : tuple of str, optional
        Read these only, those of them that there are.

    Raises
    ------
    OSError
        Where the file is absent.
    ValueError
        Where it is damaged, or is not the one that was written.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        inside = members(path)
        if inside.keys() != checks.keys():
            raise ValueError("its arrays are not those that were written")
        whole = map_bytes(path)
        for name, (offset, nbytes) in inside.items():
            if names is None or name in names:
                member = whole[offset : offset + nbytes]
                if google_crc32c.value(member) != checks[name]:
                    raise ValueError(f"the content of {name} does not match its checksum")
                found[name] = _as_array(member)
    except DAMAGE as error:
        raise ValueError(str(error)) from error
    return found


def read_ahead(path: Path) -> None:
    """Have the system begin to read a file that is needed soon, if it is there."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def map_bytes(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file where they lie, read-only."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def members(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every member of an uncompressed archive."""
    found: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            file.seek(info.header_offset)
            n_name, n_extra = struct.unpack("<26xHH", file.read(_LOCAL_HEADER))
            offset = info.header_offset + _LOCAL_HEADER + n_name + n_extra
            found[info.filename.removesuffix(".npy")] = offset, info.file_size
    return found


def _as_array(member: NDArray[np.uint8]) -> NDArray[Any]:
    """The array of a member whose bytes are known to be right."""
    head = BytesIO(member[:_HEAD_NBYTES].tobytes())
    np.lib.format.read_magic(head)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(head)
    values = member[head.tell() :].view(dtype)
    return values.reshape(shape, order="F" if is_fortran else "C")


_HEAD_NBYTES = 1 << 12
"""More than the header of any array of dlpr's."""
