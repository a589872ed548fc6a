"""Which frames one task reads: all, in order, and few others where a file is put in or grows."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stages_cases import SELECTION, finished, frame, structures_of

from dlpr.errors import InputError
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.ingest import Runs
from dlpr.stages.structures import open_structures

TASK_ATOMS, FEWEST_ATOMS = 100, 20
SIZES = st.lists(st.integers(1, 130), max_size=8)
"""Atoms of the frames of a file."""
FILES = st.dictionaries(st.integers(0, 999), SIZES, min_size=1, max_size=10)
"""Files by the number that is their name, in this order."""


@pytest.fixture(autouse=True, scope="module")
def small_tasks() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_stage, "TASK_ATOMS", TASK_ATOMS)
        patch.setattr(ingest_stage, "FEWEST_ATOMS", FEWEST_ATOMS)
        yield


def runs_of(files: dict[int, list[int]]) -> Runs:
    """Tasks over files, in the order of their names."""
    names = sorted(files)
    digests = [hashlib.sha256(str(name).encode()).hexdigest() for name in names]
    return ingest_stage._runs([np.array(files[name], np.int64) for name in names], digests)


def named(files: dict[int, list[int]]) -> list[tuple[tuple[int, int, int], ...]]:
    """The same with the files' names in place of their numbers."""
    names = sorted(files)
    return [tuple((names[n], start, stop) for n, start, stop in run) for run in runs_of(files)]


@settings(deadline=None)
@given(files=FILES)
def test_every_frame_is_read_once_and_in_order(files: dict[int, list[int]]) -> None:
    found = [
        (name, frame)
        for run in named(files)
        for name, start, stop in run
        for frame in range(start, stop)
    ]
    assert found == [(name, k) for name in sorted(files) for k in range(len(files[name]))]
    assert {name for run in named(files) for name, _, _ in run} == set(files)


@settings(deadline=None)
@given(files=FILES)
def test_tasks_are_bounded_and_large_files_have_their_own(files: dict[int, list[int]]) -> None:
    for run in named(files):
        n_atoms = [sum(files[name][start:stop]) for name, start, stop in run]
        n_frames = sum(stop - start for _, start, stop in run)
        assert sum(n_atoms) <= TASK_ATOMS or n_frames == 1
        for name, start, stop in run:
            if sum(files[name]) > TASK_ATOMS:
                assert len(run) == 1
            else:
                assert (start, stop) == (0, len(files[name]))


@settings(deadline=None)
@given(files=FILES, more=SIZES)
def test_a_file_behind_all_others_changes_the_last_task_at_most(
    files: dict[int, list[int]], more: list[int]
) -> None:
    before, after = named(files), named(files | {1000: more})
    assert after[: len(before) - 1] == before[:-1]


@settings(deadline=None)
@given(files=FILES, name=st.integers(0, 999), more=SIZES)
def test_tasks_before_a_change_and_behind_a_common_one_stay(
    files: dict[int, list[int]], name: int, more: list[int]
) -> None:
    """A file is put in, taken out or replaced."""
    before, after = named(files), named(files | {name: more})
    for one, other in ((before, after), (after, before)):
        first = [run for run in one if run[-1][0] < name]
        assert other[: max(0, len(first) - 1)] == first[:-1]
    begins = {run[0][:2]: number for number, run in enumerate(after)}
    for number, run in enumerate(before):
        if run[0][0] > name and run[0][:2] in begins:
            assert after[begins[run[0][:2]] :] == before[number:]
            break


@settings(deadline=None)
@given(files=FILES, name=st.integers(0, 999), more=SIZES)
def test_behind_a_large_file_nothing_changes(
    files: dict[int, list[int]], name: int, more: list[int]
) -> None:
    large = [n for n in files if n > name and sum(files[n]) > TASK_ATOMS]
    if large:
        first = min(large)
        kept = [
            [run for run in named(some) if run[0][0] >= first]
            for some in (files, files | {name: more})
        ]
        assert kept[0] == kept[1] != []


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 130), min_size=1), more=SIZES)
def test_a_large_file_that_grows_keeps_its_tasks_but_the_last(
    sizes: list[int], more: list[int]
) -> None:
    if sum(sizes) > TASK_ATOMS:
        before, after = named({1: sizes}), named({1: sizes + more})
        assert after[: len(before) - 1] == before[:-1]


def test_one_file_more_changes_few_tasks_of_many_small_ones() -> None:
    files = {10 * k: [4] * 3 for k in range(200)}
    before = set(named(files))
    assert len(before) > 20
    new = [len(set(named(files | {10 * k + 5: [4] * 3})) - before) for k in range(200)]
    assert np.mean(new) < 2.5
    assert max(new) < 12


def test_frames_that_where_leaves_out_are_parts_without_structures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts may be empty; what is behind them is found all the same."""
    monkeypatch.setitem(SELECTION, "where", "energy != 1.0 and energy != 11.0")
    files = {f"{k}.xyz": [frame(60, k), frame(60, k + 10)] for k in range(3)}
    structures = structures_of(tmp_path, files)
    counts = [receipt.facts["n_structures"] for receipt in structures.receipts()]
    assert counts == [1, 1, 0, 0, 1, 1]
    store = open_structures(structures)
    assert store.energy.tolist() == [0.0, 10.0, 2.0, 12.0]
    assert store.structure_offset.tolist() == [0, 60, 120, 180, 240]
    assert [b - a for a, b in pairwise(store.part_edges.tolist())] == [60, 60, 0, 0, 60, 60]


def test_a_file_is_hashed_once_whatever_number_of_tasks_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []

    def counted(file: Any, name: str, plain: Any = hashlib.file_digest) -> Any:
        hashed.append(Path(file.name).name)
        return plain(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    files = {name: [frame(60, k) for k in range(4)] for name in ("a.xyz", "b.xyz")}
    structures = structures_of(tmp_path, files)
    assert structures.n_tasks == 8
    assert sorted(hashed) == ["a.xyz", "b.xyz"]
    structures.withdraw(0)
    (tmp_path / "a.xyz").write_text((tmp_path / "a.xyz").read_text().replace("Si", "Ge", 1))
    with pytest.raises(InputError, match=r"a\.xyz was changed while it was read"):
        finished(structures)
