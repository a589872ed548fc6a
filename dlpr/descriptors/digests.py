"""What tells whether files and models that a job names are still those of its plan."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from dlpr.errors import JobError


def file_digest(path: Path, key: str) -> str:
    """SHA-256 of a file that a job names, read once in a process until it is written to.

    Raises
    ------
    JobError
        If it cannot be read.
    """
    try:
        state = path.stat()
        return _sha256(path, (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    except OSError as error:
        raise JobError(
            f"{key}: {path} cannot be read: {error.strerror}. Correct the job file."
        ) from None


@lru_cache(maxsize=64)
def _sha256(path: Path, state: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(path: Path, key: str) -> str:
    """SHA-256 of the names and contents of all files in a folder that a job names.

    Raises
    ------
    JobError
        If it is no folder, or a file cannot be read.
    """
    if not path.is_dir():
        raise JobError(f"{key}: {path} is no folder. Correct the job file.")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    names = [f"{file.relative_to(path)} {file_digest(file, key)}" for file in files]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def check_digest(what: str, found: str, planned: str | None) -> None:
    """Refuse a model that is not the one that a plan was made with.

    Raises
    ------
    JobError
        With both digests.
    """
    if planned is not None and planned != found:
        raise JobError(
            f"{what} is not the one that the features were planned with: its SHA-256 is"
            f" {found[:12]}, then it was {planned[:12]}. Run the job again, with the same model on"
            " all machines; a model that is made at random needs its weights in a file."
        )
