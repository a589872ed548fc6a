"""Digests of runs of environments: equal where the atoms are, and where they are cut the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stages_cases import frame, structures_of

import dlpr.stages.structures as structures_module
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.structures import _Cache, open_structures

SOME = settings(
    deadline=None,
    max_examples=12,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def variants() -> list[Atoms]:
    """Frames that differ in one thing each."""
    base = frame(4, 1)
    base.cell = np.diag([60.0, 60.0, 60.0])
    base.pbc = True
    moved, other, wider, slab, fewer = base.copy(), base.copy(), base.copy(), base.copy(), base[:3]
    moved.positions[0, 0] += 1.0
    other.numbers[0] = 14 + 32 - other.numbers[0]
    wider.cell[2, 2] = 70.0
    slab.pbc = (True, True, False)
    swapped = base[[1, 0, 2, 3]]
    return [base, moved, other, wider, slab, fewer, swapped]


VARIANTS = variants()
DRAWN = st.lists(
    st.tuples(
        st.integers(0, len(VARIANTS) - 1), st.sampled_from([-1.0, 2.0]), st.sampled_from("ab")
    ),
    min_size=1,
    max_size=8,
)


def labelled(drawn: list[tuple[int, float, str]]) -> list[Atoms]:
    found = []
    for number, energy, group in drawn:
        atoms = VARIANTS[number].copy()
        atoms.info = {"energy": energy, "group": group}
        found.append(atoms)
    return found


def atoms_of(frames: list[Atoms], start: int, stop: int, labels: bool) -> tuple[Any, ...]:
    """All that a run of environments is: whole structures, and where it begins and ends in them."""
    offset = np.cumsum([0, *map(len, frames)])
    first, last = (int(np.searchsorted(offset, at, side="right")) - 1 for at in (start, stop - 1))
    inside = tuple(
        (
            *(atoms.numbers.tobytes(), atoms.positions.tobytes()),
            *(atoms.cell.array.tobytes(), atoms.pbc.tobytes()),
            *((atoms.info["energy"], atoms.info["group"]) if labels else ()),
        )
        for atoms in frames[first : last + 1]
    )
    return start - offset[first], stop - offset[last], inside


@SOME
@given(drawn=DRAWN, sets=st.integers(1, 3), data=st.data(), part_atoms=st.sampled_from([6, 1000]))
def test_digests_are_equal_where_the_atoms_are(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    drawn: list[tuple[int, float, str]],
    sets: int,
    data: st.DataObject,
    part_atoms: int,
) -> None:
    """In any sets, parts and places; with labels, where energies and groups are equal as well."""
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", part_atoms)
    known: dict[bool, dict[str, Any]] = {False: {}, True: {}}
    for number in range(sets):
        frames = labelled(drawn if number == 0 else data.draw(DRAWN))
        folder = tmp_path_factory.mktemp("contents")
        store = open_structures(structures_of(folder, {"x.xyz": frames}))
        total = sum(map(len, frames))
        cuts = data.draw(st.sets(st.integers(1, total), max_size=5))
        runs = list(pairwise(sorted({0, total} | cuts)))
        for labels in (False, True):
            found = store.contents(runs, ("energy",) if labels else ())
            for digest, (start, stop) in zip(found, runs, strict=True):
                content = atoms_of(frames, start, stop, labels)
                assert known[labels].setdefault(digest, content) == content
    for contents in known.values():
        assert len(contents) == len(set(contents.values()))


@pytest.mark.parametrize("change", ["energy", "group", "nothing known"])
def test_a_label_changes_the_digest_of_the_labels_alone(tmp_path: Path, change: str) -> None:
    found = []
    for name in ("before", "after"):
        frames = labelled([(0, 1.0, "a"), (1, 2.0, "b"), (2, 3.0, "a")])
        if name == "after":
            frames[1].info |= {"energy": {"energy": 2.5}, "group": {"group": "a"}}.get(change, {})
            if change == "nothing known":
                del frames[1].info["energy"]
        (tmp_path / name).mkdir()
        store = open_structures(structures_of(tmp_path / name, {"x.xyz": frames}))
        found.append(
            [store.contents([(0, 4), (4, 8), (8, 12)], labels) for labels in ((), ("energy",))]
        )
    (atoms, labels), (same_atoms, other_labels) = found
    assert atoms == same_atoms
    assert [a == b for a, b in zip(labels, other_labels, strict=True)] == [True, False, True]


def test_names_of_groups_count_and_not_their_numbers(tmp_path: Path) -> None:
    """A group that comes before all others in the alphabet changes no other's rows."""
    frames = labelled([(0, 1.0, "b"), (1, 2.0, "c")])
    more = labelled([(2, 3.0, "a")])
    found = []
    for name, files in (("two", {"x.xyz": frames}), ("three", {"x.xyz": frames, "y.xyz": more})):
        (tmp_path / name).mkdir()
        store = open_structures(structures_of(tmp_path / name, files))
        found.append(
            (store.group.tolist()[:2], store.contents([(0, 4), (4, 8)], labels=("energy",)))
        )
    assert found[0][0] != found[1][0]
    assert found[0][1] == found[1][1]


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    asked=st.lists(st.integers(0, 5), max_size=40),
)
def test_a_cache_gives_what_is_read_and_holds_no_more_bytes_than_it_may(
    sizes: list[int], asked: list[int]
) -> None:
    cache, held, n_read = _Cache(64), {}, 0
    for number in (k % len(sizes) for k in asked):

        def read(number: int = number) -> Any:
            nonlocal n_read
            n_read += 1
            return np.full(sizes[number], number, np.uint8)

        n_before = n_read
        np.testing.assert_array_equal(cache.get(number, read), np.full(sizes[number], number))
        assert (n_read == n_before) == (number in held)
        held.pop(number, None)
        held[number] = sizes[number]
        while sum(held.values()) > 64 and len(held) > 1:
            del held[next(iter(held))]
        assert cache.nbytes == sum(held.values())


def test_one_array_of_more_bytes_than_a_cache_may_hold_is_held_until_the_next() -> None:
    cache = _Cache(64)
    large = cache.get("large", lambda: np.zeros(100, np.uint8))
    assert cache.get("large", lambda: np.ones(1, np.uint8)) is large
    cache.get("small", lambda: np.zeros(8, np.uint8))
    assert cache.nbytes == 8


def test_structures_of_a_part_are_not_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more structures than the cache holds, it holds those that are near."""
    frames = labelled([(k % len(VARIANTS), float(k), "a") for k in range(12)])
    store = open_structures(structures_of(tmp_path, {"x.xyz": frames}))
    monkeypatch.setattr(structures_module, "CHUNK_ROWS", 4)
    monkeypatch.setattr(structures_module, "_cache", _Cache(400))  # a cell has 72 bytes
    asked, rows = [], structures_module._Part.rows

    def count(part: Any, name: str, start: int, stop: int | None) -> Any:
        asked.append((name, start))
        return rows(part, name, start, stop)

    monkeypatch.setattr(structures_module._Part, "rows", count)
    for index, atoms in enumerate(frames):
        np.testing.assert_allclose(store.structure("cell", index), atoms.cell.array, atol=1e-6)
        np.testing.assert_array_equal(store.structure("pbc", index), atoms.pbc)
    assert sorted(asked) == [(name, start) for name in ("cell", "pbc") for start in (0, 4, 8)]
