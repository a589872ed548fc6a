"""Kernels, forces, stresses, baselines and weights, through whole runs, beside plain NumPy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from pipeline_cases import TINY, Outcome, assert_same_bits, crystals, full_features, make_job, run
from scipy.linalg import qr, solve_triangular

from dlpr.engine.check import check_job
from dlpr.engine.executors import WorkExecutor
from dlpr.errors import InputError, JobError

Array = np.ndarray[Any, Any]
SPECIES = [31, 33]
MU = 1e-3
STEP = 1e-4
KERNEL = {"regularizer": MU, "references": {"count": 5}}
LINEAR = {"regularizer": MU, "scale": "none"}
FORMS = [("cholesky", 12), ("cholesky", 4096), ("qr", 4096), ("dual", 4096)]
"""Solver and tile columns: tiles, and the three forms of one piece."""
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def labelled(n: int, seed: int) -> list[Atoms]:
    """Crystals of GaAs, of two groups; every third lacks a stress, every fourth its forces."""
    rng = np.random.default_rng(seed)
    frames = crystals(("Ga", "As"), n, seed)
    for k, atoms in enumerate(frames):
        results = {"energy": atoms.info.pop("energy") * len(atoms)}
        if k % 4:
            results["forces"] = rng.normal(size=(len(atoms), 3))
        if k % 3:
            results["stress"] = rng.normal(size=6)
        atoms.calc = SinglePointCalculator(atoms, **results)
    return frames


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write(folder / "train.xyz", labelled(9, 0), format="extxyz")
    write(folder / "test.xyz", labelled(4, 1), format="extxyz")
    return folder


def load(data: Path, name: str) -> list[Atoms]:
    return list(read(data / f"{name}.xyz", ":"))


def done(data: Path, output: str, **settings: Any) -> Outcome:
    job = make_job(
        data,
        {"files": "train.xyz", "group_by": "config_type"},
        {"train": "train", "test": {"files": "test.xyz"}},
        hypers=TINY,
        output=output,
        **settings,
    )
    return run(job)


class Plain:
    """A model by NumPy and SciPy: derivatives by differences, everything in memory."""

    def __init__(self, references: dict[int, Array] | None, constant: float = 0.0) -> None:
        """References by species, of a kernel of unit vectors with zeta 2; None: linear."""
        self.references, self.constant = references, constant

    def phi(self, frames: list[Atoms]) -> Array:
        """Rows of environments: a block for each species, energies of atoms behind each."""
        features = full_features(frames, SPECIES, TINY)
        number = np.concatenate([atoms.numbers for atoms in frames])
        blocks = []
        for z in SPECIES:
            rows = features
            if self.references is not None:
                rows = self._kernel(features, self.references[z])
            if self.constant:
                rows = np.hstack([rows, np.full((len(rows), 1), self.constant)])
            blocks.append(rows * (number == z)[:, None])
        return np.hstack(blocks)

    @staticmethod
    def _kernel(features: Array, references: Array) -> Array:
        unit, points = (x / np.linalg.norm(x, axis=1)[:, None] for x in (features, references))
        eigenvalue, vectors = np.linalg.eigh((points @ points.T) ** 2)
        kept = eigenvalue > 1e-12 * eigenvalue[-1]
        return (unit @ points.T) ** 2 @ (vectors[:, kept] / np.sqrt(eigenvalue[kept]))

    def total(self, atoms: Atoms) -> Array:
        return self.phi([atoms]).sum(axis=0)

    def forces(self, atoms: Atoms) -> Array:
        rows = []
        for j in range(len(atoms)):
            for a in range(3):
                sides = []
                for step in (STEP, -STEP):
                    moved = atoms.copy()
                    moved.positions[j, a] += step
                    sides.append(self.total(moved))
                rows.append((sides[1] - sides[0]) / (2 * STEP))
        return np.array(rows)

    def stress(self, atoms: Atoms) -> Array:
        rows = []
        for a, b in VOIGT:
            sides = []
            for step in (STEP, -STEP):
                strain = np.eye(3)
                strain[a, b] += step / 2
                strain[b, a] += step / 2
                moved = atoms.copy()
                moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                sides.append(self.total(moved))
            rows.append((sides[0] - sides[1]) / (2 * STEP * atoms.get_volume()))
        return np.array(rows)

    def loss_rows(self, frames: list[Atoms], loss: dict[str, float]) -> tuple[Array, Array]:
        """All rows times the roots of their weights, and their targets."""
        rows, targets = [], []
        for atoms in frames:
            results = atoms.calc.results
            factor = loss.get(atoms.info["config_type"], 1.0)
            if loss.get("energy", 1.0) and "energy" in results:
                root = np.sqrt(loss.get("energy", 1.0) * factor) / len(atoms)
                rows.append(self.total(atoms)[None] * root)
                targets.append([results["energy"] * root])
            if loss.get("forces") and "forces" in results:
                root = np.sqrt(loss["forces"] * factor)
                rows.append(self.forces(atoms) * root)
                targets.append(results["forces"].ravel() * root)
            if loss.get("stress") and "stress" in results:
                roots = np.sqrt(loss["stress"] * factor * np.array([1, 1, 1, 2, 2, 2]))
                rows.append(self.stress(atoms) * roots[:, None])
                targets.append(results["stress"] * roots)
        return np.concatenate(rows), np.concatenate(targets)

    def check(
        self, found: Outcome, data: Path, loss: dict[str, float], rtol: float, mu: float = MU
    ) -> None:
        """Rigidities and energies of both sets."""
        rows, targets = self.loss_rows(load(data, "train"), loss)
        n = rows.shape[1]
        stacked = np.vstack([rows, np.sqrt(mu) * np.eye(n)])
        q, triangle = qr(stacked, mode="economic")
        weights = solve_triangular(triangle, q[: len(rows)].T @ targets)
        for name in ("train", "test"):
            frames, arrays = load(data, name), found.sets[name]
            phi = self.phi(frames)
            edges = np.cumsum([0, *map(len, frames)])
            mean = np.array([phi[a:b].mean(axis=0) for a, b in pairwise(edges)])
            for array, own in (("environment_lpr", phi), ("structure_pr", mean)):
                rigidity = 1 / np.square(solve_triangular(triangle, own.T, trans="T")).sum(axis=0)
                np.testing.assert_allclose(arrays[array], rigidity, rtol=rtol, err_msg=array)
            energy = phi @ weights
            scale = np.abs(energy).max()
            close = {"rtol": 0, "atol": 10 * rtol * scale}
            np.testing.assert_allclose(arrays["environment_energy"], energy, **close)
            total = np.add.reduceat(energy, edges[:-1])
            np.testing.assert_allclose(arrays["structure_energy"], total, **close)


def chosen(found: Outcome, data: Path) -> dict[int, Array]:
    """The features of the references that a run chose."""
    features = full_features(load(data, "train"), SPECIES, TINY)
    part = found.used["references"].read_part(0)
    return {z: features[part[f"environment_{k}"]] for k, z in enumerate(SPECIES)}


@pytest.mark.parametrize("solver", ["auto", "qr", "cholesky"])
def test_kernel_of_energies(data: Path, solver: str) -> None:
    found = done(data, f"kernel-{solver}", model={"kernel": KERNEL}, solver=solver)
    plain = Plain(chosen(found, data))
    plain.check(found, data, {}, rtol=1e-7)
    frames = load(data, "test")
    features, phi = full_features(frames, SPECIES, TINY), plain.phi(frames)
    residual = 1.0 - np.sum(phi**2, axis=1)
    assert len(features) == len(residual)
    np.testing.assert_allclose(
        found.sets["test"]["environment_residual"], residual, rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("kind", ["linear", "kernel"])
@pytest.mark.parametrize(
    "loss",
    [
        {"energy": 1.0, "forces": 0.3},
        {"energy": 2.0, "stress": 0.5},
        {"energy": 0.0, "forces": 1.0},
        {"energy": 1.0, "forces": 0.3, "stress": 0.5, "groups": {"odd": 4.0}},
    ],
    ids=["forces", "stress", "forces alone", "all"],
)
def test_forces_and_stresses(data: Path, kind: str, loss: dict[str, Any]) -> None:
    """Frames that lack a label contribute what they have."""
    number = abs(hash(str(loss)))
    model = {kind: KERNEL if kind == "kernel" else LINEAR}
    found = done(data, f"{kind}-{number}", model=model, loss=loss)
    flat = {**loss, **loss.get("groups", {})}
    Plain(chosen(found, data) if kind == "kernel" else None).check(found, data, flat, rtol=2e-5)


@pytest.mark.parametrize(("solver", "tile_columns"), FORMS)
def test_composition_has_weights_with_a_regularizer_of_their_own(
    data: Path, solver: str, tile_columns: int
) -> None:
    linear = {**LINEAR, "baseline": {"composition": {"regularizer": 0.1}}}
    numerics = {"tile_columns": tile_columns}
    output = f"composition-{solver}-{tile_columns}"
    found = done(data, output, model={"linear": linear}, solver=solver, numerics=numerics)
    Plain(None, np.sqrt(MU / 0.1)).check(found, data, {}, rtol=1e-8)


def test_a_baseline_and_weights_are_changed_without_a_pass_over_the_data(data: Path) -> None:
    first = done(data, "baseline", model={"linear": LINEAR}, solver="cholesky")
    assert first.tasks["hessian"] > 0
    baseline = {"composition": {"regularizer": 0.1}}
    for model, loss in (
        ({**LINEAR, "baseline": baseline}, {}),
        ({**LINEAR, "regularizer": 0.1}, {}),
        ({**LINEAR, "baseline": {"isolated": {"Ga": -1.0, "As": 0.5}}}, {}),
        (LINEAR, {"energy": 3.0, "groups": {"odd": 2.0}}),
    ):
        found = done(data, "baseline", model={"linear": model}, loss=loss, solver="cholesky")
        assert not {"rows", "hessian"} & set(found.tasks)
        assert found.tasks["factor of the hessian"] == 1


@pytest.mark.parametrize(("solver", "tile_columns"), FORMS)
def test_isolated_atoms_are_taken_off_the_energies(
    data: Path, solver: str, tile_columns: int
) -> None:
    """A fit of energies less those of atoms, with these added to the prediction."""
    isolated = {"Ga": -3.0, "As": 2.0}
    numerics = {"tile_columns": tile_columns}
    linear = {**LINEAR, "baseline": {"isolated": isolated}}
    output = f"isolated-{solver}-{tile_columns}"
    found = done(data, output, model={"linear": linear}, solver=solver, numerics=numerics)
    frames = load(data, "train")
    plain = Plain(None)
    rows = np.array([plain.total(atoms) / len(atoms) for atoms in frames])
    atomic = [np.array([isolated[s] for s in atoms.symbols]) for atoms in frames]
    y = [atoms.get_potential_energy() / len(atoms) for atoms in frames]
    target = np.array(y) - [own.mean() for own in atomic]
    stacked = np.vstack([rows, np.sqrt(MU) * np.eye(rows.shape[1])])
    weights = np.linalg.lstsq(stacked, np.append(target, np.zeros(rows.shape[1])), rcond=None)[0]
    expected = plain.phi(frames) @ weights + np.concatenate(atomic)
    found_energy = found.sets["train"]["environment_energy"]
    np.testing.assert_allclose(found_energy, expected, rtol=0, atol=1e-7)


class Backwards(WorkExecutor):
    """Tasks in the order of falling numbers, wave by wave."""

    def run(self, folder, tasks, *arguments: Any, **options: Any) -> Any:  # type: ignore[no-untyped-def]
        return super().run(folder, list(tasks)[::-1], *arguments, **options)


def test_bits_of_a_kernel_with_forces_do_not_depend_on_the_order_of_tasks(data: Path) -> None:
    references = {"count": 5, "preselect": 3}
    settings = {
        "hypers": TINY,
        "model": {"kernel": {**KERNEL, "references": references}},
        "loss": {"forces": 0.1},
        "numerics": {"task_environments": 8, "block_environments": 4, "fold_block_rows": 4},
    }
    found = [
        run(make_job(data, output=f"order-{k}", **settings), executor=executor)
        for k, executor in enumerate((WorkExecutor(0), Backwards(0)))
    ]
    assert found[0].tasks["references"] > 2
    assert_same_bits(found[0].output, found[1].output)


@pytest.mark.parametrize(
    "references",
    [
        {"indices": [3, 1, 8, 30]},
        {"file": "test.xyz"},
        {"count": 4, "method": "random", "seed": 3},
        {"count": 4, "method": "cur"},
        {"count": {"Ga": 2, "As": 3}},
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_references_of_every_kind(data: Path, references: dict[str, Any]) -> None:
    model = {"kernel": {"regularizer": MU, "references": references}}
    found = done(data, f"references-{'-'.join(references)}-{len(str(references))}", model=model)
    facts = found.used["references"].receipts()[-1].facts["references"]
    part = found.used["references"].read_part(0)
    if "count" in references:
        count = references["count"]
        expected = count if isinstance(count, dict) else dict.fromkeys(("Ga", "As"), count)
        assert {symbol: own["count"] for symbol, own in facts.items()} == expected
    elif "indices" in references:
        taken = np.concatenate([part[f"environment_{k}"] for k in range(2)])
        np.testing.assert_array_equal(np.sort(taken), [1, 3, 8, 30])
    else:
        assert sum(own["count"] for own in facts.values()) == sum(map(len, load(data, "test")))
    assert np.isfinite(found.sets["test"]["environment_lpr"]).all()


def test_energies_that_some_structures_lack(tmp_path: Path) -> None:
    """Without one they are no rows; where none has one, all are, and nothing is predicted."""
    frames = crystals(("Ga", "As"), 8)
    for k, atoms in enumerate(frames):
        if k > 4:
            del atoms.info["energy"]
    write(tmp_path / "some.xyz", frames)
    write(tmp_path / "five.xyz", frames[:5])
    for atoms in frames:
        atoms.info.pop("energy", None)
    write(tmp_path / "none.xyz", frames)
    test = {"test": {"files": "some.xyz"}}
    some, five, none = (
        run(make_job(tmp_path, f"{name}.xyz", test, LINEAR, TINY, output=name))
        for name in ("some", "five", "none")
    )
    lpr = "environment_lpr"
    np.testing.assert_array_equal(some.sets["test"][lpr], five.sets["test"][lpr])
    assert none.facts["n_rows"] == 8
    assert "environment_energy" in some.sets["test"]
    assert "environment_energy" not in none.sets["test"]


@pytest.mark.parametrize(("solver", "tile_columns"), FORMS)
def test_parts_of_the_features_have_rigidities_of_their_own(
    data: Path, solver: str, tile_columns: int
) -> None:
    """Every row set to 0 outside the part, against the full Hessian (FD24 sec. 5)."""
    wide = {**TINY, "cutoff": {**TINY["cutoff"], "radius": 4.5}}
    parts = {"long": {"soap": wide}, "short": {"soap": dict(TINY)}}
    found = done(
        data,
        f"parts-{solver}-{tile_columns}",
        descriptor={"parts": parts},
        model={"linear": {**LINEAR, "baseline": {"composition": {"regularizer": 0.1}}}},
        solver=solver,
        numerics={"tile_columns": tile_columns},
    )
    constant = np.sqrt(MU / 0.1)

    def phi(frames: list[Atoms]) -> Array:
        number = np.concatenate([atoms.numbers for atoms in frames])
        long, short = (full_features(frames, SPECIES, hypers) for hypers in (wide, TINY))
        one = np.hstack([long, short, np.full((len(long), 1), constant)])
        return np.hstack([one * (number == z)[:, None] for z in SPECIES])

    def mean(frames: list[Atoms], rows: Array) -> Array:
        edges = np.cumsum([0, *map(len, frames)])
        return np.array([rows[a:b].mean(axis=0) for a, b in pairwise(edges)])

    train, test = load(data, "train"), load(data, "test")
    rows = mean(train, phi(train))
    n = rows.shape[1]
    triangle = qr(np.vstack([rows, np.sqrt(MU) * np.eye(n)]), mode="r")[0][:n]
    width = (n // 2 - 1) // 2
    for name, start in (("long", 0), ("short", width)):
        own = np.arange(n) % (n // 2)
        masked = phi(test) * ((own >= start) & (own < start + width))
        for array, part in (
            (f"environment_lpr_{name}", masked),
            (f"structure_pr_{name}", mean(test, masked)),
        ):
            expected = 1 / np.square(solve_triangular(triangle, part.T, trans="T")).sum(axis=0)
            np.testing.assert_allclose(found.sets["test"][array], expected, rtol=1e-7)


def test_labels_that_nobody_has_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.xyz", crystals(("Ga", "As"), 4))
    with pytest.raises(InputError, match="the loss has forces, but no structure"):
        run(make_job(tmp_path, hypers=TINY, loss={"forces": 1.0}))


def test_references_beyond_the_training_set_are_refused(data: Path) -> None:
    model = {"kernel": {"regularizer": MU, "references": {"indices": [100000]}}}
    with pytest.raises(InputError, match="indices has 100000; the training set has"):
        done(data, "beyond", model=model)


def test_a_baseline_needs_a_regularizer_of_the_model(data: Path) -> None:
    linear = {"regularizer": 0.0, "baseline": {"composition": {"regularizer": 0.1}}}
    with pytest.raises(JobError, match="baseline"):
        check_job(make_job(data, model={"linear": linear}))


@pytest.mark.parametrize(
    "linear", [{"rows": "sum"}, {"baseline": {"isolated": {"Ga": -9.0, "As": 2.0}}}], ids=str
)
def test_what_no_factor_knows_of_changes_results_all_the_same(
    data: Path, linear: dict[str, Any]
) -> None:
    """Of forces alone the factor is the same, whatever the rows of structures are."""
    settings = {"loss": {"energy": 0.0, "forces": 1.0}, "solver": "cholesky"}
    done(data, f"stale-{len(str(linear))}", model={"linear": LINEAR}, **settings)
    model = {"linear": {**LINEAR, **linear}}
    again = done(data, f"stale-{len(str(linear))}", model=model, **settings)
    fresh = done(data, f"fresh-{len(str(linear))}", model=model, **settings)
    assert_same_bits(again.output, fresh.output)


def test_eigh_beyond_the_columns_of_a_tile(data: Path) -> None:
    numerics = {"tile_columns": 5}
    found = done(data, "eigh", model={"linear": LINEAR}, solver="eigh", numerics=numerics)
    Plain(None).check(found, data, {}, rtol=1e-6)


@pytest.mark.parametrize("tile_columns", [3, 4096])
def test_a_species_without_references_is_unknown(data: Path, tile_columns: int) -> None:
    kernel = {"regularizer": MU, "references": {"indices": [0, 1, 2, 3, 4, 5, 6, 7]}}
    frames = load(data, "train")
    number = np.concatenate([atoms.numbers for atoms in frames])
    gallium = np.flatnonzero(number == 31)[:5].tolist()
    kernel["references"] = {"indices": gallium}
    numerics, output = {"tile_columns": tile_columns}, f"one-{tile_columns}"
    found = done(data, output, model={"kernel": kernel}, numerics=numerics, solver="cholesky").sets[
        "train"
    ]
    arsenic = number == 33
    assert (found["environment_lpr"][arsenic] == 0.0).all()
    assert (found["environment_unseen"][arsenic] & 4 > 0).all()
    assert (found["environment_residual"][arsenic] == 1.0).all()
    assert (found["environment_lpr"][~arsenic] > 0.0).all()
    assert np.isfinite(found["structure_pr"]).all()


def refused(data: Path, error: type[Exception], match: str, **settings: Any) -> None:
    with pytest.raises(error, match=match):
        done(data, "refused", **settings)


def test_what_the_training_set_has_not_is_refused(data: Path) -> None:
    def kernel(**references: Any) -> dict[str, Any]:
        return {"kernel": {"regularizer": MU, "references": references}}

    refused(data, JobError, "count has Si", model=kernel(count={"Si": 3, "Ga": 2, "As": 1}))
    refused(data, JobError, "count lacks As", model=kernel(count={"Ga": 2}))
    isolated = {"linear": {**LINEAR, "baseline": {"isolated": {"Ga": 1.0}}}}
    refused(data, JobError, "isolated lacks As", model=isolated)
    refused(data, JobError, "loss.groups has 'strange'.*even, odd", loss={"groups": {"strange": 2}})
    refused(data, JobError, "dual needs no more rows", solver="dual", loss={"forces": 1.0})


def test_references_from_files_are_read_as_the_training_set(tmp_path: Path) -> None:
    """In bohr, as the job says of the training set: the same environments, the same kernels."""
    frames = crystals(("Ga", "As"), 6)
    write(tmp_path / "train.xyz", frames)
    for atoms in frames:
        atoms.set_cell(atoms.cell.array / 0.529177210903, scale_atoms=True)
    write(tmp_path / "bohr.xyz", frames)
    found = []
    for name, units in (("train.xyz", {}), ("bohr.xyz", {"units": {"length": "bohr"}})):
        model = {"kernel": {"regularizer": MU, "references": {"file": name}}}
        train = {"files": name, **units}
        found.append(run(make_job(tmp_path, train, hypers=TINY, model=model, output=f"o-{name}")))
    one, other = (each.sets["train"]["environment_lpr"] for each in found)
    np.testing.assert_allclose(one, other, rtol=1e-3)
