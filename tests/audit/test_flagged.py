"""Files of flagged environments: other programs find the right atoms in them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from page_cases import empty_record
from small_run import LARGE, SmallRun, small_run

import dlpr.audit.flagged as flagged_module
from dlpr.audit.flagged import centre_of, write_flagged
from dlpr.audit.record import FlaggedEnvironment
from dlpr.errors import InputError
from dlpr.exports import structures as exported
from dlpr.handles import Result

__all__ = ["small_run"]
PLACES = [("film", 0, 5), ("film", 1, 4711), ("train", 3, 0), ("film", 2, 0), ("film", 1, 0)]
"""Set, frame and atom: small, sorted by space, of another set, isolated, sorted again."""


def file_of(run: SmallRun, name: str) -> str:
    return str(run.output.parent / f"{name}.extxyz")


def environment(run: SmallRun, name: str, frame: int, atom: int, **more: Any) -> FlaggedEnvironment:
    group: Any = Result(run.output).open(name)
    row = int(group["structure_offset"][frame]) + atom
    return FlaggedEnvironment(
        set=name,
        file=file_of(run, name),
        frame=frame,
        atom=atom,
        species=int(group["environment_species"][row]),
        group="all",
        lpr=float(group["environment_lpr"][row]),
        prior_ratio=float(group["environment_prior_ratio"][row]),
        **more,
    )


@pytest.fixture(scope="module")
def written(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flagged")
    found = [environment(small_run, *place) for place in PLACES]
    told = found[2].model_copy(update={"uncertainty": 12.5, "flags": ["central_species"]})
    record = empty_record(flagged=[*found[:2], told, *found[3:]])
    paths = write_flagged(record, Result(small_run.output), folder)
    assert [path.name for path in paths] == ["flagged.extxyz", "flagged.json.gz"]
    return folder


def images(source: Any, atom: int, radius: float) -> Any:
    """Vectors to all periodic images within a radius, by going through far more than needed."""
    reach = [range(-3, 4) if periodic else range(1) for periodic in source.pbc]
    found = []
    for shift in np.array(np.meshgrid(*reach)).reshape(3, -1).T:
        vector = source.positions + shift @ source.cell.array - source.positions[atom]
        near = np.flatnonzero(np.linalg.norm(vector, axis=1) < radius)
        found += [(int(row), *vector[row]) for row in near]
    return np.array(sorted(found))


def test_a_frame_shows_the_environment_that_it_names(small_run: SmallRun, written: Path) -> None:
    result = Result(small_run.output)
    frames = ase.io.read(written / "flagged.extxyz", ":")
    for atoms, (name, frame, atom) in zip(frames, PLACES, strict=True):
        source, group = small_run.sources[name][frame], result.open(name)
        start = int(group["structure_offset"][frame])
        told = [atoms.info[key] for key in ("set", "source_file", "source_frame", "flagged_atom")]
        assert told == [name, file_of(small_run, name), frame, atom]
        centre = centre_of(atoms)
        assert atoms.arrays["is_flagged"].sum() == 1
        assert atoms.arrays["source_atom"][centre] == atom
        rows = start + atoms.arrays["source_atom"]
        assert atoms.numbers.tolist() == source.numbers[atoms.arrays["source_atom"]].tolist()
        for column in ("lpr", "prior_ratio"):
            expected = group[f"environment_{column}"][:][rows]
            np.testing.assert_array_equal(atoms.arrays[column], expected)
        if len(source) <= exported.WHOLE_ATOMS:
            np.testing.assert_array_equal(atoms.positions, source.positions)
            np.testing.assert_array_equal(atoms.cell.array, source.cell.array)
            np.testing.assert_array_equal(atoms.pbc, source.pbc)
        else:
            assert not atoms.pbc.any()
            vector = atoms.positions - atoms.positions[centre]
            mine = np.column_stack([atoms.arrays["source_atom"], vector])
            theirs = images(source, atom, 2 * atoms.info["cutoff"])
            order = np.lexsort(np.round(mine, 6).T[::-1])
            np.testing.assert_allclose(mine[order], theirs[np.lexsort(np.round(theirs, 6).T[::-1])])
    assert frames[2].info["uncertainty"] == 12.5
    assert frames[2].info["flags"] == "central_species"
    assert "uncertainty" not in frames[0].info
    assert len(small_run.sources["film"][1]) == LARGE > len(frames[1]) > 100


def test_a_frame_in_source_order_is_cut_with_all_its_images(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "WHOLE_ATOMS", 10)
    record = empty_record(flagged=[environment(small_run, "film", 0, 5)])
    write_flagged(record, Result(small_run.output), tmp_path)
    (atoms,) = ase.io.read(tmp_path / "flagged.extxyz", ":")
    vector = atoms.positions - atoms.positions[centre_of(atoms)]
    theirs = images(small_run.sources["film"][0], 5, 8.0)
    assert len(atoms) == len(theirs) > 64
    mine = np.column_stack([atoms.arrays["source_atom"], vector])
    mine, theirs = (x[np.lexsort(np.round(x, 6).T[::-1])] for x in (mine, theirs))
    np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_chemiscope_shows_the_flagged_atoms_alone(small_run: SmallRun, written: Path) -> None:
    data = json.loads(gzip.decompress((written / "flagged.json.gz").read_bytes()))
    frames = ase.io.read(written / "flagged.extxyz", ":")
    shown = [(one["structure"], one["center"]) for one in data["environments"]]
    assert shown == [(k, centre_of(atoms)) for k, atoms in enumerate(frames)]
    assert [one["size"] for one in data["structures"]] == [len(atoms) for atoms in frames]
    values = data["properties"]["lpr"]["values"]
    expected = [atoms.arrays["lpr"][centre_of(atoms)] for atoms in frames]
    assert np.isinf(expected[3])
    assert values[3] is None or np.isnan(values[3])
    np.testing.assert_array_equal(np.delete(values, 3), np.delete(expected, 3))
    assert data["properties"]["set"]["values"] == [name for name, _, _ in PLACES]


def test_chemiscope_gets_no_more_atoms_than_it_can_show(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [environment(small_run, "train", k, 0) for k in range(3)]
    record, result = empty_record(flagged=found), Result(small_run.output)
    monkeypatch.setattr(flagged_module, "CHEMISCOPE_ATOMS", 17)
    assert len(write_flagged(record, result, tmp_path)) == 2
    data = json.loads(gzip.decompress((tmp_path / "flagged.json.gz").read_bytes()))
    assert len(data["structures"]) == 2
    assert len(ase.io.read(tmp_path / "flagged.extxyz", ":")) == 3
    monkeypatch.setattr(flagged_module, "CHEMISCOPE_ATOMS", 7)
    assert [path.name for path in write_flagged(record, result, tmp_path)] == ["flagged.extxyz"]


def test_nothing_flagged_nothing_written(small_run: SmallRun, tmp_path: Path) -> None:
    assert write_flagged(empty_record(), Result(small_run.output), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frame": 99}, r"train has no structure of frame 99 of .*train\.extxyz"),
        ({"file": "/gone.extxyz"}, r"train has no structure of frame 0 of /gone\.extxyz"),
    ],
)
def test_a_frame_that_is_not_there(
    small_run: SmallRun, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    one = environment(small_run, "train", 0, 0).model_copy(update=wrong)
    with pytest.raises(InputError, match=message):
        write_flagged(empty_record(flagged=[one]), Result(small_run.output), tmp_path)
    assert list(tmp_path.iterdir()) == []
