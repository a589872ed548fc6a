"""The protocol: a stage's folder holds its plan, one part per task, and one receipt per part.

``work/<stage>-<digest>/plan.json`` says everything that decides a bit of the stage's output: the
settings and the digests of what it reads. ``receipts/<task>.json`` says that a task is done, and
counts only while it is whole and the files it names are there with the sizes it names. Whoever
does a task twice writes the same bytes twice.

A plan may say of each task what decides its bits, and nothing else. Tasks of equal keys are one
task: what one plan's folder holds, another adopts (`StageFolder.adopt`), so that data that grow
cost what is new.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dlpr.errors import CorruptPartError, StoreError
from dlpr.store.files import (
    Json,
    canonical_json,
    explained,
    fsync_directory,
    link_file,
    look_again,
    make_folder,
    read_ahead,
    read_arrays,
    read_json,
    write_arrays,
    write_json,
)

FORMAT_VERSION = 5
"""Version of everything dlpr writes, down to its bits: a change of either makes new plans. A
store of a newer version is refused."""

_DIGEST_LENGTH = 16
KEYS = "keys.json"
"""Digests, one per task, of what decides its bits; of none where tasks cannot be adopted."""


def check_format(found: object, path: Path) -> None:
    """Refuse what a newer dlpr wrote."""
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise StoreError(
            f"{path} has on-disk format {found!r}; this dlpr reads formats up to "
            f"{FORMAT_VERSION}. Use the dlpr that wrote it, or a newer one."
        )


@dataclass(frozen=True)
class Receipt:
    """What a finished task leaves to be read by others.

    Attributes
    ----------
    task : int
    files : dict of str to list
        Path below the folder -> [size in bytes, checksum].
    facts : dict
        Small results of the task (counts, sums) that depend on plan and task alone.
    cost : dict
        Seconds, peak memory, host: what it took, different every time.
    """

    task: int
    files: dict[str, list[Any]]
    facts: Json
    cost: Json

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(int(size) for size, _ in self.files.values())

    @property
    def content(self) -> str:
        """Digest of what the task has put out, whatever its number."""
        files = [[_renumbered(name, self.task, 0), check] for name, check in self.files.items()]
        return digest([files, self.facts])[:_DIGEST_LENGTH]


class StageFolder:
    """One stage of one plan on disk.

    Parameters
    ----------
    path : Path
    output : str, optional
        Digest of its output where that is known.
    """

    def __init__(self, path: Path, output: str | None = None) -> None:
        self.path = Path(path)
        self._output = output
        self._known: dict[int, tuple[object, Receipt]] = {}
        self._whole: list[Receipt] | None = None

    @classmethod
    def create(
        cls,
        work: Path,
        stage: str,
        settings: Json,
        inputs: Mapping[str, StageFolder],
        tasks: int | Sequence[object],
        dry: bool = False,
    ) -> StageFolder:
        """The folder of a plan, made if it is not there.

        Parameters
        ----------
        work : Path
        stage : str
            Names the code that runs its tasks.
        settings : dict
            JSON; with the inputs it decides every bit of the output.
        inputs : mapping of str to StageFolder
            Finished stages that it reads.
        tasks : int or sequence
            How many there are; or, as JSON, all that decides what each of them puts out.
        dry : bool
            Only say where it would be.
        """
        keys = [] if isinstance(tasks, int) else [_key(stage, task) for task in tasks]
        plan: Json = {
            "format_version": FORMAT_VERSION,
            "stage": stage,
            "settings": settings,
            "inputs": {name: folder.output_digest() for name, folder in inputs.items()},
            "n_tasks": tasks if isinstance(tasks, int) else len(tasks),
            "keys": digest(keys)[:_DIGEST_LENGTH],
        }
        folder = cls(work / f"{stage}-{digest(plan)[:_DIGEST_LENGTH]}")
        plan["places"] = {name: one.path.name for name, one in inputs.items()}
        is_new = canonical_json(read_json(folder.path / "plan.json")) != canonical_json(plan)
        if not dry and (is_new or folder._keys() != keys):
            with explained(folder.path):
                make_folder(folder.path / "receipts")
            write_json(folder.path / KEYS, {"keys": keys})
            write_json(folder.path / "plan.json", plan)
        return folder

    @cached_property
    def plan(self) -> Json:
        """As written."""
        plan = read_json(self.path / "plan.json")
        if plan is None:
            raise StoreError(f"{self.path} is not a stage of dlpr: it has no readable plan.json.")
        check_format(plan.get("format_version"), self.path)
        return plan

    @property
    def name(self) -> str:
        """Folder name: stage and digest."""
        return self.path.name

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return str(self.plan["stage"])

    @property
    def settings(self) -> Json:
        """Settings of the plan."""
        settings: Json = self.plan["settings"]
        return settings

    @property
    def n_tasks(self) -> int:
        """Number of tasks."""
        return int(self.plan["n_tasks"])

    def waves(self) -> list[list[int]]:
        """Tasks in groups; those of one group need earlier groups alone, if anything."""
        found: list[list[int]] = self.settings.get("waves") or [list(range(self.n_tasks))]
        return found

    def input(self, name: str) -> StageFolder:
        """A stage that this one reads. The plan knows its output; readers verify what they read."""
        place = self.path.parent / self.plan["places"][name]
        return StageFolder(place, output=self.plan["inputs"][name])

    def inputs(self) -> dict[str, StageFolder]:
        """All stages that it reads, by name."""
        return {name: self.input(name) for name in self.plan["inputs"]}

    def _receipt_path(self, task: int) -> Path:
        return self.path / "receipts" / f"{task:06d}.json"

    def receipt(self, task: int) -> Receipt | None:
        """The receipt of a task, or None while the task is to be done."""
        path = self._receipt_path(task)
        state = _state(path)
        if state is None:
            return None
        if task not in self._known or self._known[task][0] != state:
            found = read_json(path)
            if found is None or found.pop("digest", None) != digest(found):
                return None
            self._known[task] = state, Receipt(**found)
        receipt = self._known[task][1]
        whole = all(_size(self.path / name) == size for name, (size, _) in receipt.files.items())
        return receipt if whole else None

    def settle(self) -> StageFolder:
        """Take a stage that `missing` has just found finished for whole from here on.

        Its receipts and the digest of its output are then remembered and not looked for again:
        what a run asks for some forty times. Readers still verify what they read.
        """
        self._whole = [self._known[task][1] for task in range(self.n_tasks)]
        self._output = self.output_digest()
        return self

    def receipts(self) -> list[Receipt]:
        """All receipts of a finished stage, in task order."""
        if self._whole is not None:
            return self._whole
        lacking = self.missing()
        if lacking:
            raise StoreError(
                f"{self.path}: {len(lacking)} of {self.n_tasks} tasks have no valid receipt "
                f"(the first is {lacking[0]}). Run `dlpr run` again to finish them."
            )
        return [self._known[task][1] for task in range(self.n_tasks)]

    def facts(self, task: int) -> Json:
        """Facts of a task of a finished stage, without a look at the others."""
        return (self._done(task) if self._whole is None else self._whole[task]).facts

    def _done(self, task: int) -> Receipt:
        receipt = self.receipt(task)
        if receipt is None:
            raise self.corrupt(task, self._part_name(task), "it has no valid receipt")
        return receipt

    def missing(self) -> list[int]:
        """Tasks without a valid receipt."""
        look_again(self.path / "receipts")
        return [task for task in range(self.n_tasks) if self.receipt(task) is None]

    def write_receipt(
        self, task: int, files: Mapping[str, Any], facts: Json, cost: Json
    ) -> Receipt:
        """Say that a task is done; its data must be durable already."""
        sizes = {name: [(self.path / name).stat().st_size, check] for name, check in files.items()}
        return self._put_receipt(Receipt(task, sizes, facts, cost))

    def _put_receipt(self, receipt: Receipt) -> Receipt:
        record: Json = json.loads(canonical_json(asdict(receipt)))
        write_json(self._receipt_path(receipt.task), {**record, "digest": digest(record)})
        return Receipt(**record)

    def adopt(self, missing: Sequence[int]) -> int:
        """Take what other plans' tasks of equal keys have put out.

        Files are linked, so that removing either folder leaves the other whole. A receipt's cost
        stays that of the process that did the task.

        Returns
        -------
        int
            How many of the missing tasks are done now.
        """
        keys = self._keys() if missing else []
        wanted = {keys[task]: task for task in missing if task < len(keys)}
        count = 0
        for other in self._siblings() if wanted else ():
            for number, key in enumerate(other._keys()):
                receipt = other.receipt(number) if key in wanted else None
                if receipt is not None and self._link(other, receipt, wanted[key]):
                    del wanted[key]
                    count += 1
        return count

    def _keys(self) -> list[str]:
        return list((read_json(self.path / KEYS) or {}).get("keys", ()))

    def _link(self, other: StageFolder, receipt: Receipt, task: int) -> bool:
        files = {_renumbered(name, receipt.task, task): name for name in receipt.files}
        try:
            for name, source in files.items():
                link_file(other.path / source, self.path / name)
        except FileNotFoundError:  # somebody cleans the other folder
            return False
        for folder in {(self.path / name).parent for name in files}:
            fsync_directory(folder)
        sizes = {name: receipt.files[source] for name, source in files.items()}
        self._put_receipt(Receipt(task, sizes, receipt.facts, receipt.cost))
        return True

    def withdraw(self, task: int) -> None:
        """Make a task undone, and those of other plans that share its files."""
        keys = self._keys()
        for other in self._siblings() if keys else ():
            for number, key in enumerate(other._keys()):
                if key == keys[task]:
                    other._receipt_path(number).unlink(missing_ok=True)
        with explained(self._receipt_path(task)):
            self._receipt_path(task).unlink(missing_ok=True)

    def _siblings(self) -> list[StageFolder]:
        """Other plans of the same stage."""
        found = sorted(self.path.parent.glob(f"{self.stage}-*/{KEYS}"))
        return [StageFolder(path.parent) for path in found if path.parent != self.path]

    def output_digest(self) -> str:
        """Digest of what a finished stage has put out: the same data, the same digest."""
        if self._output is not None:
            return self._output
        receipts = [[r.task, r.files, r.facts] for r in self.receipts()]
        return digest([self.stage, receipts])

    def _part_name(self, task: int) -> str:
        return f"parts/{task:06d}.npz"

    def write_part(self, task: int, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Write a task's arrays; returns the ``files`` of its receipt."""
        name = self._part_name(task)
        return {name: write_arrays(self.path / name, arrays)}

    def expect_part(self, task: int) -> None:
        """Say that a task's part will be read next."""
        read_ahead(self.path / self._part_name(task))

    def read_part(self, task: int, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
        """A task's arrays, checked, mapped where they lie: read-only.

        Raises
        ------
        CorruptPartError
        """
        wanted = None if names is None else tuple(names)
        name = self._part_name(task)
        receipt = self._done(task)
        try:
            return read_arrays(self.path / name, receipt.files[name][1], wanted)
        except (OSError, ValueError) as error:
            raise self.corrupt(task, name, error) from error

    def corrupt(self, task: int, name: str, error: object) -> CorruptPartError:
        """The error that says that a task's data are not what its receipt says."""
        return CorruptPartError(
            f"{self.path / name} (task {task} of {self.stage}) is damaged or gone: {error}. "
            f"Run the same command again: only this task is done anew.",
            str(self.path),
            task,
        )


def digest(value: object) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _key(stage: str, task: object) -> str:
    return digest([FORMAT_VERSION, stage, task])[:_DIGEST_LENGTH]


def _renumbered(name: str, old: int, new: int) -> str:
    """Name of the same file of another task."""
    return name.replace(f"parts/{old:06d}.", f"parts/{new:06d}.", 1)


def _size(path: Path) -> int:
    """Size of a file; -1 where there is none, which a network file system is asked twice."""
    for _ in range(2):
        try:
            return os.stat(path).st_size  # noqa: PTH116
        except FileNotFoundError:
            look_again(path.parent)
        except OSError:
            break
    return -1


def _state(path: Path) -> object:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def folders(work: Path) -> list[StageFolder]:
    """All stage folders below a work folder."""
    if not work.is_dir():
        return []
    return [StageFolder(path.parent) for path in sorted(work.glob("*-*/plan.json"))]
