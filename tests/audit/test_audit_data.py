"""Structures that all but repeat others, and labels that do not fit in: planted, found, named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from ase import Atoms
from audit_cases import Nights, alarms, crystals

from dlpr.audit.record import AuditRecord, CheckRecord
from dlpr.stages.rows import open_rows
from dlpr.store.folder import StageFolder

NEAR: list[dict[str, Any]] = [
    {"of": "near_duplicates", "at_most": 0, "on_failure": "warn"},
    {"of": "near_leakage", "at_most": 0, "on_failure": "warn"},
    {"of": "duplicates", "at_most": 0},
]
OUTLIERS: list[dict[str, Any]] = [{"of": "outliers", "at_most": 0, "on_failure": "warn"}]


def rattled(atoms: Atoms, amplitude: float) -> Atoms:
    found = atoms.copy()
    found.rattle(amplitude, seed=7)
    return found


def rotated(atoms: Atoms) -> Atoms:
    found = atoms.copy()
    found.rotate(37.0, (1, 2, 3), rotate_cell=True)
    return found


def strained(atoms: Atoms) -> Atoms:
    found = atoms.copy()
    found.set_cell(found.cell.array * [1.02, 1.0, 1.0], scale_atoms=True)
    return found


def frames_of(record: AuditRecord, check: CheckRecord) -> set[int]:
    return {record.flagged[k].frame for k in check.flagged}


def test_near_duplicates(nights: Nights) -> None:
    md = crystals(60, 2, 0.15)
    planted = [rattled(md[3], 1e-4), rotated(md[10]), md[20] * (2, 1, 1), strained(md[30])]
    nights.put("md_000.xyz", md)
    nights.put("md_001.xyz", planted)
    record = nights.run(checks=NEAR)
    ((key, check),) = alarms(record).items()
    assert (key, check.found) == (("near_duplicates", "md"), 3)
    assert "3 of md_001.xyz repeat md_000.xyz" in check.meaning
    assert "the first: frame 0 of md_001.xyz is near frame 3 of md_000.xyz" in check.meaning
    assert frames_of(record, check) == {0, 1, 2}


def test_near_duplicates_of_a_training_set_without_rigidities(nights: Nights) -> None:
    cold = crystals(20, 0)
    nights.put("cold.xyz", [*cold, rattled(cold[4], 1e-4), rattled(cold[4], 1e-5), cold[4] * 2])
    ((key, check),) = alarms(nights.run(checks=NEAR)).items()
    assert (key, check.found) == (("near_duplicates", "train"), 3)


def test_near_leakage(nights: Nights) -> None:
    cold = crystals(20, 0)
    nights.put("md_001.xyz", [rotated(cold[2]), strained(cold[3]), rattled(cold[19], 1e-4)])
    record = nights.run(checks=NEAR)
    ((key, check),) = alarms(record).items()
    assert (key, check.found) == (("near_leakage", "md"), 2)
    assert "frame 0 of md_001.xyz is near frame 2 of cold.xyz" in check.meaning
    assert frames_of(record, check) == {0, 2}


def test_a_tolerance_of_ones_own(nights: Nights) -> None:
    md = crystals(30, 2, 0.15)
    nights.put("md_000.xyz", [*md, strained(md[3])])
    wide = [{**NEAR[0], "set": "md", "within": 0.2}]
    (check,) = nights.run(checks=wide).checks
    assert check.found >= 1
    assert check.verdict == "warn"


def test_projections_are_those_of_rows_wherever_a_structure_is_cut(nights: Nights) -> None:
    """The training set's, from its rows, are those that it has as a test set."""
    nights.put("cold.xyz", [*crystals(4, 0), crystals(1, 9)[0] * (3, 2, 2)])
    nights.data["numerics"] = {"task_environments": 20, "block_environments": 10}
    nights.data["test"]["train"] = "train"
    spec = nights.spec()
    record = nights.run(checks=NEAR)
    assert not alarms(record)
    store = zarr.open_group(str(spec.folder / "work" / "rigidity.zarr"), mode="r")
    (rows,) = (spec.folder / "work" / "work").glob("rows-*")
    found = open_rows(StageFolder(rows)).projections()
    np.testing.assert_allclose(found, np.asarray(store["train/structure_projection"][:]), rtol=1e-9)


@pytest.mark.parametrize(("name", "file"), [("md", "md_000.xyz"), ("train", "cold.xyz")])
def test_a_wrong_label(nights: Nights, name: str, file: str) -> None:
    nights.data["test"]["train"] = "train"
    frames = crystals(60, 2, 0.15) if name == "md" else crystals(40, 0)
    nights.put(file, frames)
    assert not alarms(nights.run(checks=OUTLIERS))
    frames[7].info["energy"] += 4.0
    nights.put(file, frames)
    record = nights.run(checks=OUTLIERS)
    ((key, check),) = alarms(record).items()
    assert (key, check.found) == (("outliers", name), 1)
    assert frames_of(record, check) == {7}
    arrays = zarr.open_group(str(nights.spec().folder / "work" / "rigidity.zarr"), mode="r")[name]
    energy, label, pr = (
        float(arrays[f"structure_{of}"][7])  # type: ignore[index, arg-type]
        for of in ("energy", "energy_label", "pr")
    )
    left = 1.0 - 1.0 / pr if name == "train" else 1.0  # of the error of a fit without it
    error = 1e3 * abs(energy - label) / 8 / left
    assert f"frame 7 of {file} is off by {error:.3g} meV/atom" in check.meaning
