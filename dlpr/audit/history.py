"""The history of audits: a folder for each, published by one rename and never changed after."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import pydantic

from dlpr.audit.figures import Distributions
from dlpr.audit.record import NAME, RECORD_VERSION, AuditRecord
from dlpr.audit.spec import WORK, LastOnes
from dlpr.engine.output import clean
from dlpr.engine.stopping import leave
from dlpr.engine.verify import is_whole
from dlpr.errors import JobError, OwnerError, StoreError
from dlpr.stages.result import STORE
from dlpr.store.files import (
    Json,
    atomic_folder,
    explained,
    fsync_directory,
    link_file,
    make_folder,
    partial_path,
    read_json,
    write_json,
)
from dlpr.store.folder import StageFolder
from dlpr.store.lease import Lease

RECORD, DISTRIBUTIONS, SPEC = "audit.json", "distributions.npz", "audit.yaml"
PAGE, MANIFEST = "index.html", "manifest.json"
LAST = "last"
_IS_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(-\d{3,})?")  # no copy of a user
_POLL = 1.0


@dataclass(frozen=True)
class PastAudit:
    """A published audit."""

    path: Path

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.name

    @cached_property
    def record(self) -> AuditRecord:
        """What it said.

        Raises
        ------
        StoreError
            If it is damaged, or a newer dlpr wrote it.
        """
        self.verify(RECORD)
        found = read_json(self.path / RECORD) or {}
        version = found.get("record_version")
        if not isinstance(version, int) or version > RECORD_VERSION:
            raise StoreError(
                f"{self.path / RECORD} has version {version!r}; this dlpr reads versions up to "
                f"{RECORD_VERSION}. Use the dlpr that wrote it, or a newer one."
            )
        try:
            return AuditRecord.model_validate(found)
        except pydantic.ValidationError as error:
            raise StoreError(f"{self.path / RECORD} is no audit of dlpr: {error}") from error

    @cached_property
    def distributions(self) -> Distributions:
        """Of its rigidities."""
        self.verify(DISTRIBUTIONS)
        return Distributions.load(self.path / DISTRIBUTIONS)

    @property
    def manifest(self) -> Json:
        """Sizes and checksums of its files."""
        found = read_json(self.path / MANIFEST)
        if found is None:
            raise StoreError(f"{self.path} is no audit of dlpr: it has no readable {MANIFEST}.")
        return found

    def verify(self, *names: str) -> None:
        """Hold files against the manifest; all of them, and the store, if none are named.

        Raises
        ------
        StoreError
            For the first that is not what was written.
        """
        manifest = self.manifest
        files = names or tuple(manifest["files"])
        damaged = [name for name in files if _state(self.path / name) != manifest["files"][name]]
        if not names:
            store = manifest["store"].items()
            damaged += [
                name for name, (size, check) in store if not is_whole(self.path / name, size, check)
            ]
        if damaged:
            raise StoreError(
                f"{self.path / damaged[0]} is damaged or gone ({len(damaged)} files of this audit "
                f"are). Put it back from a copy, or move {self.path} out of the history: other "
                f"audits do without it."
            )


class History:
    """All audits of one history folder.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def work(self) -> Path:
        """The output folder of the job."""
        return self.path / WORK

    def audits(self) -> list[PastAudit]:
        """Published audits, oldest first."""
        found = sorted(path.parent for path in self.path.glob(f"*/{RECORD}"))
        return [PastAudit(path) for path in found if _IS_NAME.fullmatch(path.name)]

    def audit(self, name: str) -> PastAudit:
        """An audit by its name; "last" is the newest one.

        Raises
        ------
        StoreError
            If there is none of that name.
        """
        found = {audit.name: audit for audit in self.audits()}
        if name == LAST and found:
            name = max(found)
        if name not in found:
            known = ", ".join(list(found)[-5:]) or "none yet"
            raise StoreError(f"{self.path} has no audit {name!r}; the latest are: {known}.")
        return found[name]

    def last_good(self) -> PastAudit | None:
        """The newest audit in which no check failed; if all have failed, the newest."""
        return next(self._good(), self.newest())

    def _good(self) -> Iterator[PastAudit]:
        """Audits in which no check failed, newest first; only those that are asked for are read."""
        return (audit for audit in self.audits()[::-1] if audit.record.verdict != "fail")

    def newest(self) -> PastAudit | None:
        """The last audit, if there is any."""
        return next(iter(self.audits()[::-1]), None)

    def baseline(self, wanted: str | LastOnes) -> list[PastAudit]:
        """What an audit is held against: one audit, or the newest good ones; maybe none."""
        if isinstance(wanted, LastOnes):
            return list(islice(self._good(), wanted.last))[::-1]
        if wanted != LAST:
            return [self.audit(wanted)]
        last = self.last_good()
        return [] if last is None else [last]

    @contextmanager
    def owned(self, busy: Literal["wait", "refuse"]) -> Iterator[None]:
        """Be the only one who audits into this history.

        Raises
        ------
        OwnerError
            If somebody else does so and ``busy`` is "refuse".
        StoppedError
            If a stop is asked for while this one waits.
        """
        lease = Lease(self.path / "owner.json")
        if busy == "refuse":
            try:
                lease.acquire()
            except OwnerError:
                owner = lease.owner() or {}
                raise OwnerError(
                    f"another audit writes into {self.path}: process {owner.get('pid')} on "
                    f"{owner.get('host')}. Wait for it, or let `busy: wait` in the audit's file do "
                    f"so."
                ) from None
        else:
            while not lease.try_acquire():
                leave()
                time.sleep(_POLL)
        with lease.held():
            for partial in self.path.glob(".*.partial"):  # of audits that were killed
                if partial.is_dir():
                    shutil.rmtree(partial)
            yield

    def new_name(self) -> str:
        """When an audit begins, UTC; behind all that are there, whatever the clock says."""
        now = datetime.now(UTC).strftime(NAME)
        last = max((audit.name for audit in self.audits()), default="")
        if now > last:
            return now
        second, _, count = last.partition("Z")
        return f"{second}Z-{int(count[1:] or 1) + 1:03d}"

    @contextmanager
    def publishing(self, name: str, result: StageFolder) -> Iterator[Path]:
        """A folder to be filled, published under ``name`` with the result and a manifest.

        Parameters
        ----------
        name : str
            Of `new_name`.
        result : StageFolder
            The finished stage whose store is linked, so that cleaning ``work/`` leaves it.
        """
        with atomic_folder(self.path / name) as folder:
            _link_tree(result.path / STORE, folder / STORE)
            yield folder
            store = {
                file: state
                for receipt in result.receipts()
                for file, state in receipt.files.items()
                if file.startswith(f"{STORE}/")
            }
            others = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in others]
            files = {name: _state(folder / name) for name in names if name not in store}
            write_json(folder / MANIFEST, {"files": files, "store": store})

    def prune(self, keep: int) -> tuple[list[str], int]:
        """Remove all audits but the newest, and the stages that no result needs.

        The newest good audit and what the newest was held against stay in any case.

        Parameters
        ----------
        keep : int
            At least 1.

        Returns
        -------
        names : list of str
            Of audits that were removed.
        nbytes : int
            What was freed below ``work/``.

        Raises
        ------
        JobError
            If none is to be kept.
        OwnerError
            While an audit is going on.
        """
        if keep < 1:
            raise JobError(f"--keep {keep} would leave no audit; at least 1 is needed")
        with self.owned("refuse"):
            audits = self.audits()
            spared = {audit.name for audit in audits[-keep:]}
            if audits:
                good = self.last_good()
                spared |= {*audits[-1].record.held_against, good.name if good else ""}
            removed = [audit for audit in audits if audit.name not in spared]
            for audit in removed:
                with explained(audit.path):
                    partial = partial_path(audit.path)
                    audit.path.rename(partial)
                    fsync_directory(self.path)
                    shutil.rmtree(partial)
            nbytes = clean(self.work)[1] if self.work.is_dir() else 0
            return [audit.name for audit in removed], nbytes


def open_history(path: Path) -> History:
    """A history that is there: given itself, or by the file of its audit.

    Raises
    ------
    StoreError, JobError
    """
    from dlpr.audit.spec import AuditSpec

    folder = AuditSpec.load(path).folder if path.is_file() else path
    if not folder.is_dir():
        raise StoreError(
            f"{folder} is no history of audits: there is no such folder. `dlpr audit run` makes it."
        )
    return History(folder)


def _link_tree(source: Path, target: Path) -> None:
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        make_folder(here)
        for name in names:
            link_file(Path(folder) / name, here / name)


def _state(path: Path) -> list[int | str] | None:
    """Size and SHA-256 of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [path.stat().st_size, digest]
    except OSError:
        return None
