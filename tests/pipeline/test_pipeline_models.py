"""Kernels, forces, stresses, baselines and weights, through whole runs, beside plain NumPy."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from models_cases import FORMS, KERNEL, LINEAR, MU, SPECIES, Array, Plain, chosen, data, done, load
from pipeline_cases import TINY, assert_same_bits, full_features, make_job, run
from scipy.linalg import qr, solve_triangular

from dlpr.engine.executors import WorkExecutor

__all__ = ["data"]


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
