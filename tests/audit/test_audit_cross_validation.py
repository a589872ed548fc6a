"""Held-out errors of the training set in an audit: figures, checks, nights without anything new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zarr
from audit_cases import Nights, crystals, shorten

from dlpr.audit.record import AuditRecord, CheckRecord
from dlpr.stages.cross_validation import STORE

CHECKS: list[dict[str, Any]] = [
    {"of": "cv_rmse", "at_most": 0, "on_failure": "warn"},
    {"of": "cv_mae", "group": "*", "at_most": 1e9},
    {"of": "cv_rmse", "at_most": {"times": 1.001}, "name": "as before"},
]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nights]:
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch, lambda _: None)
        found = Nights(tmp_path_factory.mktemp("held_out"))
        wrong = crystals(20, 1, 0.3, "hot")
        wrong[7].info["energy"] += 5.0
        found.put("hot.xyz", wrong)
        found.data |= {"checks": CHECKS, "cross_validation": {"folds": 4, "by": "stratified"}}
        yield found


def arrays_of(nights: Nights) -> dict[str, Any]:
    path = nights.spec().folder / "work" / STORE
    group: Any = zarr.open_group(str(path), mode="r")
    return {name: np.asarray(array[:]) for name, array in group.arrays()}


def check_of(record: AuditRecord, measure: str, group: str | None = None) -> CheckRecord:
    return next(one for one in record.checks if (one.measure, one.group) == (measure, group))


def test_figures_are_of_structures_that_a_fit_has_not_seen(nights: Nights) -> None:
    record = nights.run()
    arrays = arrays_of(nights)
    error = 1e3 * (arrays["structure_energy"] - arrays["structure_energy_label"])
    error /= arrays["structure_n_atoms"]
    found = check_of(record, "cv_rmse.energy")
    assert (found.set, found.verdict, found.unit) == ("train", "warn", "meV/atom")
    assert found.found == pytest.approx(np.sqrt(np.mean(error**2)))
    assert f"The worst: frame 7 of hot.xyz ({np.abs(error).max():.3g} meV/atom)" in found.meaning
    for number, group in enumerate(("cold", "hot")):
        own = np.abs(error[arrays["structure_group"] == number])
        assert check_of(record, "cv_mae.energy", group).found == pytest.approx(own.mean())
    told = record.cross_validation
    assert told is not None
    assert [fold.n_structures for fold in told.folds] == [10, 10, 10, 10]
    rmse = [fold.errors[0].rmse for fold in told.folds]
    assert told.spread[0].rmse_std == pytest.approx(np.std(rmse, ddof=1))
    again = nights.run()
    assert not any(one.n_computed for one in again.work)
    assert again.cross_validation == told
    before = next(one for one in again.checks if one.name.startswith("as before"))
    assert (before.baseline, before.verdict) == (found.found, "pass")


def test_other_folds_are_another_figure(nights: Nights) -> None:
    """What it is held against is nothing of the same kind; rigidities are what they were."""
    nights.run()
    record = nights.run(cross_validation={"by": "group"})
    computed = {one.stage for one in record.work if one.n_computed}
    assert computed == {"cross-validation"}
    before = next(one for one in record.checks if one.name.startswith("as before"))
    assert before.verdict == "pass"
    assert "cross_validation" in before.meaning
    arrays, told = arrays_of(nights), record.cross_validation
    assert told is not None
    assert [fold.name for fold in told.folds] == ["cold", "hot"]
    error = np.abs(arrays["structure_energy"] - arrays["structure_energy_label"])
    own = error / arrays["structure_n_atoms"]
    hot = check_of(record, "cv_mae.energy", "hot").found
    assert hot == pytest.approx(1e3 * own[arrays["structure_fold"] == 1].mean())
