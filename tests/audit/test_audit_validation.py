"""Errors beside rigidities, along trajectories and over volumes, of sets that are made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from dlpr.audit.record_validation import ValidationRecord
from dlpr.audit.validation import MOST_POINTS, MOST_STEPS, finding, sampled, validation_of

DIGITS = 5e-4
"""Of numbers that are kept for pictures, relative."""


class Made:
    """A set of files, each of some structures, and what a result says of it."""

    def __init__(self, frames: list[int], n_atoms: Any, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        n = sum(frames)
        self.n_atoms = np.broadcast_to(np.asarray(n_atoms), n).astype(np.int64)
        self.arrays: dict[str, Any] = {
            "structure_offset": np.concatenate([[0], np.cumsum(self.n_atoms)]),
            "structure_group": rng.integers(0, 2, n).astype(np.int32),
            "structure_source_file": np.repeat(np.arange(len(frames), dtype=np.int32), frames),
            "structure_source_frame": np.concatenate([np.arange(k) for k in frames]),
            "structure_pr": 10.0 ** rng.normal(size=n),
            "structure_lpr": np.sort(10.0 ** rng.normal(size=(n, 3)), axis=1),
            "structure_energy_label": -3.0 * self.n_atoms + rng.normal(size=n),
        }
        error = rng.normal(size=n) / np.sqrt(self.arrays["structure_pr"])
        self.arrays["structure_energy"] = self.arrays["structure_energy_label"] + error
        self.volume, self.pbc = 20.0 * self.n_atoms, np.ones((n, 3), bool)
        self.files = [f"{k}.xyz" for k in range(len(frames))]

    @property
    def error(self) -> np.ndarray:
        """meV"""
        found = self.arrays["structure_energy"] - self.arrays["structure_energy_label"]
        return cast("np.ndarray", 1e3 * found)

    def seen(self, plots: Any = None, convention: str = "mean") -> ValidationRecord:
        group = zarr.create_group(zarr.storage.MemoryStore())
        group.attrs["model"] = {"rows": convention}
        names = {"structure_group": ["a", "b"], "structure_source_file": self.files}
        for name, values in self.arrays.items():
            array = group.create_array(name, data=values)
            if name in names:
                array.attrs["names"] = names[name]
        store = SimpleNamespace(
            volume=self.volume,
            structure_offset=self.arrays["structure_offset"],
            over_structures={"pbc": self.pbc}.__getitem__,
        )
        return validation_of(group, cast("Any", store), plots)


@pytest.mark.parametrize("convention", ["mean", "sum", "sqrt"])
def test_ranks_are_of_the_models_own_convention(convention: str) -> None:
    made = Made([60], np.random.default_rng(1).integers(1, 50, 60))
    made.arrays["structure_energy_label"][3] = np.nan
    made.arrays["structure_pr"][7] = np.inf
    known = np.delete(np.arange(60), [3, 7])
    power = {"mean": 1.0, "sum": 0.0, "sqrt": 0.5}[convention]
    size, pr = np.abs(made.error) / made.n_atoms**power, made.arrays["structure_pr"]
    found = made.seen(convention=convention)
    assert found.rigidity_error is not None
    of_all, *groups = found.rigidity_error.groups
    assert of_all.n == 58
    assert of_all.rank_correlation == pytest.approx(spearmanr(1 / pr[known], size[known]).statistic)
    np.testing.assert_allclose(found.rigidity_error.error, size[known], rtol=DIGITS)
    for number, one in enumerate(groups):
        own = known[made.arrays["structure_group"][known] == number]
        assert (one.group, one.n) == ("ab"[number], len(own))
        expected = spearmanr(1 / pr[own], size[own]).statistic
        assert finding(found, "rank_correlation", one.group) == pytest.approx(expected)
    worst = np.argmax(np.where(np.isfinite(size), size, -1)[known])
    is_found = int(worst in np.argsort(pr[known])[:3])  # 1 of 1 %, 3 of 5 %
    assert finding(found, "enrichment", None) == pytest.approx(is_found * 58 / 3)
    assert finding(found, "enrichment", "c") is None


def test_medians_of_bins_lie_among_the_points() -> None:
    found = Made([200], 4).seen().rigidity_error
    assert found is not None
    assert len(found.bin_rigidity) == 10
    assert found.bin_rigidity == sorted(found.bin_rigidity)
    order = np.argsort(found.rigidity)
    for part, x, y in zip(order.reshape(10, 20), found.bin_rigidity, found.bin_error, strict=True):
        assert x == pytest.approx(np.median(np.array(found.rigidity)[part]), rel=2 * DIGITS)
        assert y == pytest.approx(np.median(np.array(found.error)[part]), rel=2 * DIGITS)


def test_files_of_frames_of_equal_size_are_trajectories() -> None:
    sizes = np.concatenate([np.full(12, 8), np.full(12, 9), np.arange(1, 13), np.full(3, 8)])
    made = Made([12, 12, 12, 3], sizes)
    made.arrays["structure_lpr"][20, 0] = 1e-9
    found = made.seen()
    assert found.n_trajectories == 2
    assert [one.file for one in found.trajectories] == ["1.xyz", "0.xyz"]  # the lowest LPR first
    assert found.energy_volume is None
    every = made.seen(["trajectory", "energy_volume"])
    assert every.n_trajectories == 4
    assert every.energy_volume is not None
    neither = made.seen([])
    assert (neither.trajectories, neither.energy_volume) == ([], None)


def test_a_trajectory_frame_by_frame() -> None:
    made = Made([30], 8)
    made.arrays["structure_energy_label"][[0, 4]] = np.nan
    made.arrays["structure_lpr"][9] = np.nan
    (found,) = made.seen().trajectories
    assert (found.n_frames, found.frames_per_point, found.frames) == (30, 1, list(range(30)))
    assert found.error[4] is None
    assert found.minimum[9] is found.low[9] is found.median[9] is None
    for values, column in zip((found.minimum, found.low, found.median), range(3), strict=True):
        own = np.array(values, np.float64)
        np.testing.assert_allclose(own, made.arrays["structure_lpr"][:, column], rtol=DIGITS)
    size = np.abs(made.error) / 8
    np.testing.assert_allclose(np.array(found.error, np.float64), size, rtol=DIGITS)


def test_frames_of_a_long_trajectory_share_points() -> None:
    n = 2 * MOST_STEPS + 1
    made = Made([n], 8)
    (found,) = made.seen().trajectories
    assert found.frames_per_point == 3
    assert found.frames == list(range(0, n, 3))
    assert len(found.frames) == len(found.minimum) == len(found.error) <= MOST_STEPS
    lpr, size = made.arrays["structure_lpr"], made.error / 8
    for k in (0, 100, len(found.frames) - 1):
        own = slice(3 * k, 3 * k + 3)
        assert found.minimum[k] == pytest.approx(lpr[own, 0].min(), rel=DIGITS)
        assert found.low[k] == pytest.approx(np.median(lpr[own, 1]), rel=DIGITS)
        assert found.median[k] == pytest.approx(np.median(lpr[own, 2]), rel=DIGITS)
        assert found.error[k] == pytest.approx(np.sqrt(np.mean(size[own] ** 2)), rel=DIGITS)


def test_the_plane_has_bulk_structures_alone() -> None:
    made = Made([40], np.arange(1, 41))
    made.pbc[5, 2] = False
    made.volume[6] = 0.0
    made.arrays["structure_energy_label"][7] = np.nan
    found = made.seen().energy_volume
    assert found is not None
    kept = np.delete(np.arange(40), [5, 6, 7])
    assert (found.n, found.is_labelled) == (37, True)
    energy = made.arrays["structure_energy_label"] / made.n_atoms
    np.testing.assert_allclose(found.energy, energy[kept], rtol=1e-6)
    np.testing.assert_allclose(found.volume, 20.0, rtol=DIGITS)
    np.testing.assert_allclose(found.rigidity, made.arrays["structure_pr"][kept], rtol=DIGITS)


def test_without_labels_predictions_are_on_the_plane_and_nothing_is_ranked() -> None:
    made = Made([40], np.arange(1, 41))
    made.arrays["structure_energy_label"][:] = np.nan
    found = made.seen()
    assert found.rigidity_error is None
    assert finding(found, "rank_correlation", None) is None
    assert found.energy_volume is not None
    assert not found.energy_volume.is_labelled
    energy = made.arrays["structure_energy"] / made.n_atoms
    np.testing.assert_allclose(found.energy_volume.energy, energy, rtol=1e-6)
    del made.arrays["structure_energy"]
    assert made.seen().energy_volume is None


def test_of_many_structures_the_extreme_ones_are_drawn() -> None:
    made = Made([5000], 8)
    found = made.seen().rigidity_error
    assert found is not None
    assert len(found.error) == len(found.rigidity) <= MOST_POINTS
    assert max(found.error) == pytest.approx(np.abs(made.error).max() / 8, rel=DIGITS)
    assert min(found.rigidity) == pytest.approx(made.arrays["structure_pr"].min(), rel=DIGITS)
    assert made.seen() == made.seen()


@given(st.integers(0, 2000), st.integers(8, 400), st.integers(0, 9), st.integers(1, 3))
def test_a_sample_is_spread_and_has_what_is_lowest(
    n: int, wanted: int, seed: int, n_scores: int
) -> None:
    orders = [np.random.default_rng((seed, k)).permutation(n) for k in range(n_scores)]
    found = sampled(wanted, *orders)
    assert len(found) <= min(n, wanted)
    assert (np.diff(found) > 0).all()
    if n > wanted:
        for order in orders:
            assert set(order[: wanted // 4].tolist()) <= set(found.tolist())
        assert orders[0][-1] in found
