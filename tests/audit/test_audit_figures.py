"""Figures, and the environments behind them, against NumPy on the published result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from audit_cases import Nights, alarms, crystals
from numpy.typing import NDArray
from scipy.stats import spearmanr

from dlpr.audit import errors, worst
from dlpr.audit.figures import Distributions, Key
from dlpr.audit.history import History
from dlpr.audit.record import AuditRecord, CheckRecord, FlaggedEnvironment
from dlpr.core.quantiles import QuantileSketch
from dlpr.stages import result
from dlpr.structures import ingest

SI, GE = 14, 32
BIN = 2.0**-10
WRONG = {"at_most": 0, "on_failure": "warn"}
"""No check of these holds, so that each tells its environments."""
CHECKS: list[dict[str, Any]] = [
    {"of": "lpr", "quantile": 0.2, "group": "*", "species": "*", "at_least": 1e9},
    {"of": "lpr", "share_below": 0.01, **WRONG},
    {"of": "prior_ratio", "quantile": 0.5, "species": "Ge", "at_least": 1e9},
    {"of": "uncertainty", "quantile": 0.9, **WRONG},
    {"of": "uncertainty", "share_below": 40.0, "group": "hot", **WRONG},
    {"of": "structure_pr", "quantile": 0.3, "group": "*", "at_least": 1e9},
    {"of": "rmse", **WRONG},
    {"of": "mae", "group": "hot", **WRONG},
    {"of": "rmse", "quantity": "forces", **WRONG},
    {"of": "mae", "quantity": "forces", "group": "cold", **WRONG},
    {"of": "rank_correlation", "at_least": 2},
    {"of": "enrichment", "at_least": 0},
    {"of": "rmse", "quantity": "energy_per_cell", "at_least": 0},
    {"of": "mae", "quantity": "energy_per_root", "group": "hot", "at_least": 0},
    {"of": "error", "quantity": "force_magnitude", "quantile": 0.8, "group": "hot", "at_least": 0},
    {"of": "error", "share_below": 10.0, "at_least": 0},
]


def mixed(n: int, seed: int, group: str) -> Any:
    frames = crystals(n, seed, 0.2 if group == "hot" else 0.1, group)
    rng = np.random.default_rng(seed)
    long = frames[1] * (4, 1, 1)
    frames[1] = long[rng.permutation(len(long))]  # stored by space, see `run`
    for k, atoms in enumerate(frames):
        atoms.numbers[rng.permutation(len(atoms))[: 1 + k % 3]] = GE
        atoms.set_array("forces", rng.normal(size=(len(atoms), 3)))
    return frames


class Run:
    """An audit of mixed structures, and its result as arrays."""

    def __init__(self, nights: Nights, **changes: Any) -> None:
        changes |= {"checks": CHECKS, "uncertainty": {"set": "md"}, "flag": {"count": 160}}
        self.spec = nights.spec(**changes)
        self.record: AuditRecord = nights.run(**changes)
        store = zarr.open_group(str(self.spec.folder / "work" / "rigidity.zarr"), mode="r")
        group = store["md"]
        self.arrays = {name: np.asarray(array[:]) for name, array in group.arrays()}  # type: ignore[union-attr]
        self.attributes: dict[str, Any] = dict(group.attrs)
        offset = self.arrays["structure_offset"]
        names = np.array(group["structure_group"].attrs["names"])  # type: ignore[index]
        self.structure_group = names[self.arrays["structure_group"]]
        self.structure = np.repeat(np.arange(len(offset) - 1), np.diff(offset))
        self.group = self.structure_group[self.structure]
        self.species = self.arrays["environment_species"]
        self.lpr = self.arrays["environment_lpr"]

    def check(self, measure: str, group: str | None = None, species: int | None = None) -> Any:
        (found,) = (
            one
            for one in self.record.checks
            if (one.measure, one.group, one.species) == (measure, group, species)
        )
        return found

    def own(self, group: str | None, species: int | None = None) -> NDArray[np.bool_]:
        meant = np.ones(len(self.lpr), bool)
        if group is not None:
            meant &= self.group == group
        return meant if species is None else meant & (self.species == species)

    def behind(self, check: CheckRecord) -> list[FlaggedEnvironment]:
        return [self.record.flagged[k] for k in check.flagged]

    def place(self, one: FlaggedEnvironment) -> int:
        """Where a flagged environment is in the result."""
        (structure,) = np.flatnonzero(self.arrays["structure_source_frame"] == one.frame)
        return int(self.arrays["structure_offset"][structure]) + one.atom


def prepared(path: Path) -> Nights:
    nights = Nights(path)
    nights.put("cold.xyz", mixed(30, 0, "cold"))
    nights.put("md_000.xyz", [*mixed(8, 2, "cold"), *mixed(8, 3, "hot")])
    nights.data["train"]["files"] = ["cold.xyz"]
    nights.data["test"]["md"]["group_by"] = "config_type"
    nights.data["test_forces"] = True
    return nights


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, serial: None) -> Iterator[Run]:
    """Results of several chunks, and structures that are stored by space."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (result, worst, errors):
            patch.setattr(module, "CHUNK_ROWS", 30)
        patch.setattr(ingest, "SORTED_FRAME_ATOMS", 10)
        yield Run(prepared(tmp_path_factory.mktemp("figures")))


def lowest(values: NDArray[Any], q: float) -> float:
    return float(np.sort(values)[max(int(np.ceil(q * len(values))), 1) - 1])


@pytest.mark.parametrize("group", ["cold", "hot"])
@pytest.mark.parametrize("species", [SI, GE])
def test_quantiles_of_groups_and_species(run: Run, group: str, species: int) -> None:
    check = run.check("lpr.q0.2", group, species)
    own = run.own(group, species)
    assert check.found == pytest.approx(lowest(run.lpr[own], 0.2), rel=BIN)
    assert check.verdict == "fail"
    found = [run.place(one) for one in run.behind(check)]
    assert found == np.flatnonzero(own)[np.argsort(run.lpr[own])][: len(found)].tolist()
    assert len(found) == min(10, own.sum())


def test_shares_and_ratios(run: Run) -> None:
    assert run.check("lpr.below0.01").found == pytest.approx(np.mean(run.lpr < 0.01), abs=0.01)
    ratio = run.arrays["environment_prior_ratio"][run.own(None, GE)]
    assert run.check("prior_ratio.q0.5", None, GE).found == pytest.approx(
        lowest(ratio, 0.5), rel=BIN
    )


def test_uncertainties(run: Run) -> None:
    a = run.record.conventions["uncertainty"]["a"]
    sigma = 1e3 * a / np.sqrt(run.lpr)
    check = run.check("uncertainty.q0.9")
    assert lowest(sigma, 0.89) <= check.found * (1 + BIN)
    assert check.found <= lowest(sigma, 0.91) * (1 + BIN)
    assert check.unit == "meV/atom"
    worst_one = run.behind(check)[0]
    assert worst_one.uncertainty == pytest.approx(sigma.max())
    hot = sigma[run.own("hot")]
    found = run.check("uncertainty.below40", "hot").found
    assert found == pytest.approx(np.mean(hot < 40.0), abs=2 / len(hot))


@pytest.mark.parametrize("group", ["cold", "hot"])
def test_structures(run: Run, group: str) -> None:
    check = run.check("structure_pr.q0.3", group)
    own = np.flatnonzero(run.structure_group == group)
    pr = run.arrays["structure_pr"][own]
    assert check.found == pytest.approx(lowest(pr, 0.3), rel=BIN)
    first = run.place(run.behind(check)[0])
    assert run.structure[first] == own[np.argmin(pr)]
    assert run.lpr[first] == run.lpr[run.structure == run.structure[first]].min()


def test_errors_of_energies(run: Run) -> None:
    label, energy = (run.arrays[f"structure_energy{name}"] for name in ("_label", ""))
    error = 1e3 * (energy - label) / np.diff(run.arrays["structure_offset"])
    check = run.check("rmse.energy")
    assert check.found == pytest.approx(np.sqrt(np.mean(error**2)))
    assert run.structure[run.place(run.behind(check)[0])] == np.argmax(np.abs(error))
    hot = run.structure_group == "hot"
    assert run.check("mae.energy", "hot").found == pytest.approx(np.mean(np.abs(error[hot])))


def test_errors_of_energies_of_cells(run: Run) -> None:
    error = 1e3 * (run.arrays["structure_energy"] - run.arrays["structure_energy_label"])
    n_atoms = np.diff(run.arrays["structure_offset"])
    assert run.check("rmse.energy_per_cell").found == pytest.approx(np.sqrt(np.mean(error**2)))
    own = np.abs(error / np.sqrt(n_atoms))[run.structure_group == "hot"]
    check = run.check("mae.energy_per_root", "hot")
    assert (check.found, check.unit) == (pytest.approx(own.mean()), "meV/√atom")
    below = run.check("error.energy.below10").found
    assert below == pytest.approx(np.mean(np.abs(error / n_atoms) < 10.0), abs=1 / len(error))
    (of_all,) = (
        e for e in run.record.sets[1].errors if (e.quantity, e.group) == ("energy per atom", None)
    )
    assert of_all.bias == pytest.approx(np.mean(error / n_atoms))


def test_low_rigidity_beside_errors(run: Run) -> None:
    """The environments behind are those of the largest errors."""
    error = run.arrays["structure_energy"] - run.arrays["structure_energy_label"]
    size = np.abs(error) / np.diff(run.arrays["structure_offset"])
    check = run.check("rank_correlation")
    expected = spearmanr(1 / run.arrays["structure_pr"], size).statistic
    assert check.found == pytest.approx(expected)
    assert run.structure[run.place(run.behind(check)[0])] == np.argmax(size)
    found = np.argmax(size) == np.argmin(run.arrays["structure_pr"])
    assert run.check("enrichment").found == pytest.approx(16.0 * found)


def test_rigidities_of_structures_that_chunks_cut(run: Run) -> None:
    """Structures of 8 and 32 environments in chunks of 30: some are whole, some are cut."""
    offset, found = run.arrays["structure_offset"], run.arrays["structure_lpr"]
    cut = {int(np.searchsorted(offset, edge, "right")) - 1 for edge in range(30, offset[-1], 30)}
    assert 0 < len(cut) < len(offset) - 1
    for structure in range(len(offset) - 1):
        own = run.lpr[offset[structure] : offset[structure + 1]]
        expected = [lowest(own, level) for level in (0.0, 0.05, 0.5)]
        rtol = BIN if structure in cut else 0.0
        np.testing.assert_allclose(found[structure], expected, rtol=rtol)
        assert found[structure, 0] == own.min()


def test_errors_of_forces(run: Run) -> None:
    frames = [*mixed(8, 2, "cold"), *mixed(8, 3, "hot")]
    label = np.concatenate([atoms.arrays["forces"] for atoms in frames])
    error = 1e3 * (run.arrays["environment_forces"] - label)
    check = run.check("rmse.forces")
    assert check.found == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)  # decimals of a file
    found = [run.place(one) for one in run.behind(check)]
    assert found == np.argsort(-np.linalg.norm(error, axis=1))[:10].tolist()
    force, size = (np.linalg.norm(one, axis=1) for one in (run.arrays["environment_forces"], label))
    hot = 1e3 * np.abs(force - size)[run.own("hot")]
    found_at = run.check("error.force_magnitude.q0.8", "hot").found
    assert found_at == pytest.approx(lowest(hot, 0.8), rel=2 * BIN)
    cold = np.abs(error[run.own("cold")])
    assert run.check("mae.forces", "cold").found == pytest.approx(np.mean(cold), rel=1e-5)


def test_the_worst_of_every_set_are_shown(run: Run) -> None:
    shown = {run.place(one) for one in run.record.flagged}
    assert set(np.argsort(run.lpr)[:50].tolist()) <= shown
    assert len(run.record.flagged) == len(shown) == 160
    for one in run.record.flagged:
        place = run.place(one)
        assert one.lpr == run.lpr[place]
        assert one.species == run.species[place]
        assert one.group == run.group[place]


def test_a_kernels_uncertainty_has_what_its_references_do_not_see(
    tmp_path: Path, serial: None
) -> None:
    kernel = {"kernel": {"regularizer": 1e-6, "references": {"count": 5}}}
    run = Run(prepared(tmp_path), model=kernel)
    a, mu = run.record.conventions["uncertainty"]["a"], run.attributes["factor"]["mu"]
    sigma = 1e3 * a * np.sqrt(1.0 / run.lpr + run.arrays["environment_residual"] / mu)
    check = run.check("uncertainty.q0.9")
    assert lowest(sigma, 0.89) <= check.found * (1 + BIN)
    assert check.found <= lowest(sigma, 0.91) * (1 + BIN)
    assert np.mean(sigma > 1.1 * 1e3 * a / np.sqrt(run.lpr)) > 0.3
    assert run.behind(check)[0].uncertainty == pytest.approx(sigma.max())
    assert run.record.sets[1].groups[0].uncertainty is not None


def test_distributions_are_kept_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = Distributions()
    for k, group in enumerate(("a", "b", "c, d")):
        sketch = found.sketches[Key("md", "lpr", group, 14 + k)] = QuantileSketch()
        sketch.add(np.append(rng.exponential(size=100), [0.0, np.inf]))
    found.save(tmp_path / "some.npz")
    again = Distributions.load(tmp_path / "some.npz")
    assert again.sketches.keys() == found.sketches.keys()
    for key, sketch in found.sketches.items():
        one = again.sketches[key]
        np.testing.assert_array_equal(one.bin_count, sketch.bin_count)
        assert (one.n, one.minimum, one.maximum) == (sketch.n, sketch.minimum, sketch.maximum)
    assert again.of("md", "lpr").n == 306
    assert again.of("md", "lpr", "c, d").n == 102
    assert again.of("md", "lpr", "a", 15).n == 0


def test_bounds_that_are_multiples(nights: Nights) -> None:
    """The median LPR over nights whose regularizer is the same, on data that are not."""
    measure = {"of": "lpr", "quantile": 0.5}
    values, names = [], []
    for seed in (2, 5, 8):
        nights.put("md_000.xyz", crystals(20, seed, 0.02 * seed + 0.05))
        record = nights.run(checks=[{**measure, "at_least": 0}])
        values.append(record.checks[0].found)
        names.append(record.name)
    before = {"checks": [{**measure, "at_most": {"times": 1.1}}], "baseline": {"last": 3}}
    (check,) = nights.run(**before).checks
    assert check.baseline == np.median(values)
    assert check.bound == pytest.approx(1.1 * np.median(values))
    assert "median of 3 audits" in check.expected
    bound = {"times": 0.9, "of": names[0]}
    (check,) = nights.run(checks=[{**measure, "at_least": bound}]).checks
    assert (check.baseline, check.found) == (values[0], values[2])
    assert (check.verdict == "pass") == (values[2] >= 0.9 * values[0])
    assert check.expected == f"at least 0.9 of {names[0]}"


def test_what_cannot_be_measured_does_not_pass(nights: Nights) -> None:
    check = {"of": "lpr", "quantile": 0.5, "group": "liquid", "at_least": 0}
    record = nights.run(checks=[check])
    ((_, found),) = alarms(record).items()
    assert (found.found, found.verdict) == (None, "fail")
    assert "nothing to measure" in found.meaning


def test_what_is_shown_is_shared_out(nights: Nights) -> None:
    nights.data["test"] = {"md": {"files": "md_*.xyz"}, "hot": {"files": "hot.xyz"}}
    low = {"of": "lpr", "quantile": 0.5}
    checks = [
        {**low, "set": "md", "at_least": 1e9, "on_failure": "warn"},
        {**low, "at_least": 0},
        {**low, "set": "hot", "at_least": 1e9},
    ]
    record = nights.run(checks=checks, flag={"count": 20, "per_check": 4})
    warned, held, _, failed = record.checks
    assert (failed.flagged, warned.flagged, held.flagged) == ([0, 1, 2, 3], [4, 5, 6, 7], [])
    assert [one.set for one in record.flagged] == ["hot"] * 4 + ["md"] * 10 + ["hot"] * 6
    few = nights.run(checks=checks, flag={"count": 1})
    assert ([check.flagged for check in few.checks], len(few.flagged)) == ([[], [], [], [0]], 1)


def test_a_species_and_a_group_of_its_name_are_told_apart(nights: Nights) -> None:
    for name in ("cold.xyz", "md_000.xyz"):
        nights.put(name, crystals(5, len(name), group="Si"))
    nights.data["test"]["md"]["group_by"] = "config_type"
    half = {"of": "lpr", "quantile": 0.5, "at_least": 0}
    checks = [half, {**half, "group": "Si"}, {**half, "species": "Si"}]
    nights.run(checks=checks)
    series = [one for one in nights.run(checks=checks).series if one.key[:2] == ("lpr.q0.5", "md")]
    assert [one.key[2:] for one in series] == [(None, None), ("Si", None), (None, SI)]
    assert [len(one.values) for one in series] == [2, 2, 2]


def test_a_check_keeps_the_name_that_its_user_gave(nights: Nights) -> None:
    own = {"of": "lpr", "quantile": 0.5, "at_least": 0, "name": "firm enough"}
    each = {**own, "group": "*"}
    one = {**own, "set": "md"}
    names = [check.name for check in nights.run(checks=[own, each, one]).checks]
    assert names == ["firm enough: md", "firm enough: md (all)", "firm enough"]


def test_an_unseen_species_is_found_where_it_is(nights: Nights) -> None:
    frames = crystals(5, 9)
    frames[3].numbers[2] = GE
    nights.put("md_000.xyz", frames)
    record = nights.run(checks=[{"of": "unseen", "species": "*", "at_most": 0}])
    found = {one.species: one for one in record.checks}
    assert found[GE].found == 1
    behind = [record.flagged[k] for k in found[GE].flagged]
    assert [(one.frame, one.atom) for one in behind] == [(3, 2)]
    assert "central_species" in behind[0].flags
    assert found[SI].found >= 4  # its neighbours
    history = History(nights.spec().folder)
    assert history.audits()[0].record == record


def test_without_a_regularizer_there_is_no_prior_to_compare_with(nights: Nights) -> None:
    record = nights.run(model={"linear": {"regularizer": 0.0}}, solver="auto")
    assert History(nights.spec().folder).newest() is not None
    assert record.flagged
    assert {one.prior_ratio for one in record.flagged} == {None}
    assert record.sets[-1].groups[0].prior_ratio.values == []
