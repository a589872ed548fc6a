"""Rows of structures: read back whole, however tasks and runs cut them."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stages_cases import MODEL, finished, frame, numerics, rows_of, structures_of

from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.rows import RowStore, open_rows
from dlpr.store.files import read_json
from dlpr.store.folder import KEYS, StageFolder

SOME = settings(
    deadline=None,
    max_examples=10,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FRAMES = st.lists(st.tuples(st.integers(1, 12), st.sampled_from("abc")), min_size=1, max_size=12)
N_COLUMNS = 6
"""Three coordinates of two species."""


def frames_of(drawn: list[tuple[int, str]], seed: int = 0) -> list[Atoms]:
    return [frame(n, seed + k, group) for k, (n, group) in enumerate(drawn)]


def sums_of(atoms: Atoms) -> np.ndarray:
    """What the row of a structure must be."""
    return np.concatenate([atoms.positions[atoms.numbers == z].sum(axis=0) for z in (14, 32)])


def read(store: RowStore, n_rows: int) -> dict[str, list[tuple[list[float], list[int], float]]]:
    """All rows of each group, through its runs."""
    found: dict[str, list[tuple[list[float], list[int], float]]] = {}
    for one in store.runs(n_rows):
        rows = found.setdefault(one.group, [])
        for piece in store.read(one):
            assert len(piece) > 0
            columns = (piece.sums, piece.count, piece.energy)
            rows += zip(*(column.tolist() for column in columns), strict=True)
    return found


@SOME
@given(
    drawn=FRAMES,
    task_environments=st.integers(1, 20),
    part_atoms=st.sampled_from([7, 20, 1 << 18]),
    n_rows=st.lists(st.integers(1, 15), min_size=1, max_size=4),
)
def test_runs_of_rows_equal_sums_over_whole_structures(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    drawn: list[tuple[int, str]],
    task_environments: int,
    part_atoms: int,
    n_rows: list[int],
) -> None:
    """Any cuts into parts, tasks and runs; groups one after the other or in turn."""
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", part_atoms)
    frames = frames_of(drawn)
    structures = structures_of(tmp_path_factory.mktemp("rows"), {"x.xyz": frames})
    store = open_rows(rows_of(structures, task_environments))
    expected: dict[str, list[tuple[list[float], list[int], float]]] = {}
    for atoms in frames:
        count = [int(np.sum(atoms.numbers == z)) for z in (14, 32)]
        row = (sums_of(atoms).tolist(), count, atoms.info["energy"])
        expected.setdefault(atoms.info["group"], []).append(row)
    for n in [*n_rows, 1 << 62]:
        assert read(store, n) == expected
    square = np.mean(np.sum(np.concatenate([a.positions for a in frames]) ** 2, axis=1))
    assert store.mean_square == pytest.approx(square, rel=1e-12)


@SOME
@given(drawn=FRAMES, task_environments=st.integers(1, 20), n_rows=st.integers(1, 15))
def test_runs_have_about_as_many_rows_as_asked_for(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, str]],
    task_environments: int,
    n_rows: int,
) -> None:
    structures = structures_of(tmp_path_factory.mktemp("runs"), {"x.xyz": frames_of(drawn)})
    rows = rows_of(structures, task_environments)
    runs = open_rows(rows).runs(n_rows)
    here = [receipt.facts["groups"] for receipt in rows.receipts()]
    assert sorted({one.group for one in runs}) == sorted({group for _, group in drawn})
    for group in {one.group for one in runs}:
        own = [one for one in runs if one.group == group]
        for one in own:
            counts = [names.get(group, 0) for names in here[one.start : one.stop]]
            assert one.n_rows == sum(counts)
            assert sum(counts[:-1]) < n_rows
        assert all(2 * one.n_rows >= n_rows for one in own[:-1])
        assert all(a.stop <= b.start for a, b in pairwise(own))
        assert sum(one.n_rows for one in own) == sum(names.get(group, 0) for names in here)


def test_a_structure_that_is_cut_by_many_tasks_belongs_to_the_run_in_which_it_ends(
    tmp_path: Path,
) -> None:
    frames = [frame(n, n) for n in (2, 30, 3)]
    rows = rows_of(structures_of(tmp_path, {"x.xyz": frames}), 4)
    store = open_rows(rows)
    assert rows.n_tasks == 9
    (*idle, last) = store.runs(1)
    read_of = [sum(len(piece) for piece in store.read(one)) for one in (*idle, last)]
    assert read_of == [1, 0, 0, 0, 0, 0, 0, 1, 1]
    whole = idle[7]
    assert (whole.begin, whole.start, whole.stop) == (0, 7, 8)
    (piece,) = store.read(whole)
    assert piece.sums.tolist() == [sums_of(frames[1]).tolist()]


# keys ---------------------------------------------------------------------------------------------


def contents(folder: StageFolder) -> dict[str, str]:
    """What every task has put out, by its key."""
    keys = read_json(folder.path / KEYS)
    assert keys is not None
    found: dict[str, str] = {}
    for key, receipt in zip(keys["keys"], folder.receipts(), strict=True):
        assert found.setdefault(key, receipt.content) == receipt.content
    return found


def afresh(folder: StageFolder) -> StageFolder:
    """A fold all whose tasks are done here: none is adopted."""
    for task in range(folder.n_tasks):
        files, facts = fold_stage.run(folder, task)
        folder.write_receipt(task, files, facts, {})
    return folder


@SOME
@given(
    pool=st.lists(FRAMES, min_size=1, max_size=3),
    sets=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=2),
    task_environments=st.integers(2, 15),
    n_rows=st.lists(st.integers(1, 8), min_size=2, max_size=2, unique=True),
    tile_columns=st.sampled_from([2, 4096]),
)
def test_partials_of_equal_keys_are_equal(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    pool: list[list[tuple[int, str]]],
    sets: list[list[int]],
    task_environments: int,
    n_rows: list[int],
    tile_columns: int,
) -> None:
    """Whatever files the set has, and however many rows go together."""
    folder = tmp_path_factory.mktemp("keys")
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", 30)
    monkeypatch.setattr(ingest_stage, "FEWEST_ATOMS", 10)
    known: dict[str, str] = {}
    for chosen in sets:
        files = [frames_of(pool[k % len(pool)], seed=100 * (k % len(pool))) for k in chosen]
        named = {f"{k}.xyz": frames for k, frames in enumerate(files)}
        rows = rows_of(structures_of(folder, named), task_environments)
        for n in n_rows:
            monkeypatch.setattr(fold_stage, "run_rows", lambda *_, n=n: n)
            targets, how = {"rows": rows}, numerics(tile_columns)
            plan = fold_stage.plan(folder / "work", "hessian", targets, ["energy"], MODEL, how)
            for key, content in contents(afresh(plan)).items():
                assert known.setdefault(key, content) == content


def test_a_run_into_which_a_structure_goes_on_has_another_key(tmp_path: Path) -> None:
    """Runs of the same parts: one begins with the first, the other with what ends in the second."""
    rows = rows_of(structures_of(tmp_path, {"x.xyz": [frame(n, n) for n in (2, 4, 3)]}), 4)
    store = open_rows(rows)
    (whole,) = store.runs(1 << 62)
    late = next(one for one in store.runs(1) if one.begin < one.start)
    assert (whole.begin, late.begin) == (0, 0)
    whole = replace(whole, stop=late.stop)
    read_of = [sum(len(piece) for piece in store.read(one)) for one in (whole, late)]
    assert read_of == [2, 1]
    assert store.contents(whole) != store.contents(late)


def test_a_run_whose_last_structure_goes_on_has_another_key(tmp_path: Path) -> None:
    """The same sums of the same atoms, of a whole structure and of the beginning of one."""
    cut, whole = frame(4, 1), frame(4, 1)[:2]
    found = []
    for name, last in (("cut", cut), ("whole", whole)):
        (tmp_path / name).mkdir()
        last.info = {"energy": 1.0, "group": "all"}
        rows = rows_of(structures_of(tmp_path / name, {"x.xyz": [frame(2, 0), last]}), 4)
        store = open_rows(rows)
        first = store.runs(1)[0]
        assert (first.begin, first.stop) == (0, 1)
        n_read = sum(len(piece) for piece in store.read(first))
        found.append((n_read, store.contents(first)))
    assert [n for n, _ in found] == [1, 2]
    assert found[0][1] != found[1][1]


def test_structures_of_one_set_are_told_from_one_structure(tmp_path: Path) -> None:
    """The same sums in the same tasks, of one structure and of two that end and begin there."""
    one = frame(8, 1, symbols="Si")
    found = []
    for name, frames in (("one", [one]), ("two", [one[:4], one[4:]])):
        (tmp_path / name).mkdir()
        for atoms in frames:
            atoms.info = {"energy": 1.0, "group": "all"}
        store = open_rows(rows_of(structures_of(tmp_path / name, {"x.xyz": frames}), 4))
        (run,) = store.runs(1 << 62)
        found.append((sum(map(len, store.read(run))), store.contents(run)))
    assert [n for n, _ in found] == [1, 2]
    assert found[0][1] != found[1][1]


def test_a_file_more_moves_few_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows come in between, the runs behind them soon are what they were."""
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", 16)
    files = {f"{k:03d}.xyz": [frame(4, 4 * k + j) for j in range(4)] for k in range(40)}
    base: set[str] = set()
    changes = []
    for place in (None, "003x.xyz", "020x.xyz", "039x.xyz"):
        more = {} if place is None else {place: [frame(4, 1000 + j) for j in range(4)]}
        store = open_rows(rows_of(structures_of(tmp_path, files | more), 8))
        runs = {str(store.contents(one)) for one in store.runs(8)}
        if place is None:
            base = runs
            assert len(base) > 15
        else:
            changes.append(len(runs - base))
    assert all(1 <= n <= 8 for n in changes), changes


def test_edges_of_tasks_never_cross_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", 20)
    sizes = [5, 5, 5, 5, 5, 19, 3, 40, 2]
    structures = structures_of(tmp_path, {"x.xyz": [frame(n, n) for n in sizes]})
    parts = [receipt.facts["n_environments"] for receipt in structures.receipts()]
    assert parts == [20, 5, 19, 3, 40, 2] or sum(parts) == sum(sizes)
    rows = rows_of(structures, 7)
    edges = [0, *accumulate(r.facts["n_environments"] for r in rows.receipts())]
    assert set(accumulate(parts)) <= set(edges)
    assert max(b - a for a, b in pairwise(edges)) == 7
    assert finished(rows).missing() == []
