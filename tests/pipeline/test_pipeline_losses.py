"""Losses through whole runs: weights of structures, losses that are not squared, presets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from losses_cases import (
    WEIGHTS,
    Array,
    Reference,
    Rows,
    fitted,
    huber,
    log_cosh,
    pseudo_huber,
    rows_of,
    squared,
    weighted,
    write_weighted,
)
from models_cases import KERNEL, LINEAR, done, load
from pipeline_cases import Outcome, assert_same_bits, make_job, run

from dlpr.engine.check import check_job
from dlpr.engine.events import Event
from dlpr.engine.executors import WorkExecutor
from dlpr.errors import InputError, JobError, NumericsError

__all__ = ["weighted"]

ALL = np.ones(len(WEIGHTS))
GIVEN = np.array([1.0 if w is None else w for w in WEIGHTS])
HUBER = {"weight": 2.0, "shape": {"huber": {"delta": 0.3}}}
FREE = {"regularizer": 0.0}
TIGHT = {"tolerance": 1e-8, "iterations": 1000}
PYTHON = {"call": "losses_of_users:pseudo_huber", "options": {"delta": 0.5}}


@pytest.fixture(scope="module")
def rows(weighted: Path) -> dict[str, Rows]:
    return rows_of(load(weighted, "train"))


def with_groups(weighted: Path, factor: dict[str, float], weight: Array) -> Array:
    """Weights of structures times those of their groups."""
    names = [atoms.info["config_type"] for atoms in load(weighted, "train")]
    return weight * np.array([factor.get(name, 1.0) for name in names])


# weights of structures ---------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["dual", "cholesky", "qr"])
@pytest.mark.parametrize("kinds", [("energy",), ("energy", "forces", "stress", "virial")], ids=len)
def test_all_rows_of_a_structure_have_its_weight(
    weighted: Path, rows: dict[str, Rows], solver: str, kinds: tuple[str, ...]
) -> None:
    if solver == "dual" and len(kinds) > 1:
        pytest.skip("more rows than columns")
    lambdas = {"energy": 2.0, "forces": 0.3, "stress": 0.5, "virial": 0.01}
    loss = {kind: lambdas[kind] for kind in kinds}
    settings = {"structure_weight": "w", "groups": {"odd": 4.0}}
    found = fitted(weighted, f"w-{solver}-{len(kinds)}", {**loss, **settings}, solver=solver)
    weight = with_groups(weighted, {"odd": 4.0}, GIVEN)
    terms = {kind: (lambdas[kind], squared) for kind in kinds}
    Reference(rows, terms, weight).check(found, weighted, 2e-5)
    counted = sum(int(np.count_nonzero(GIVEN[rows[kind].frame])) for kind in kinds)
    assert found.facts["n_rows"] == counted < sum(len(rows[kind].y) for kind in kinds)


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_a_structure_of_some_weight_raises_its_rigidity_by_it(
    tmp_path: Path, weighted: Path, weight: float
) -> None:
    """FD24 app. B: by exactly lambda times the weight; and no other rigidity falls."""
    pr, lpr = [], []
    for own in (0.0, weight):
        write_weighted(tmp_path, (*WEIGHTS[:5], own, *WEIGHTS[6:]))
        (tmp_path / "test.xyz").write_bytes((weighted / "test.xyz").read_bytes())
        loss = {"energy": 2.0, "structure_weight": "w"}
        found = fitted(tmp_path, "law", loss, solver="cholesky")
        pr.append(found.sets["train"]["structure_pr"])
        lpr.append(found.sets["test"]["environment_lpr"])
    assert pr[1][5] - pr[0][5] == pytest.approx(2.0 * weight, rel=1e-8)
    assert (pr[1] >= pr[0] * (1 - 1e-10)).all()
    assert (lpr[1] >= lpr[0] * (1 - 1e-10)).all()


def test_weights_are_changed_without_features_or_derivatives(tmp_path: Path) -> None:
    def found(output: str) -> Outcome:
        train = {"files": "train.xyz", "group_by": "config_type"}
        loss = {"energy": 1.0, "forces": 0.1, "structure_weight": "w"}
        settings = {"loss": loss, "solver": "cholesky", "output": output}
        return run(make_job(tmp_path, train, {"train": "train"}, LINEAR, **settings))

    write_weighted(tmp_path, WEIGHTS)
    found("out")
    write_weighted(tmp_path, (*WEIGHTS[:-1], 7.0))
    again = found("out")
    assert not {"features of train", "rows", "rows of forces"} & set(again.tasks)
    assert again.tasks["hessian"] == 2  # energies and forces of the last structure's group alone
    assert again.used["hessian"].n_tasks == 4
    assert_same_bits(again.output, found("fresh").output)


def test_weights_of_1_change_no_bit(weighted: Path, tmp_path: Path) -> None:
    for name in ("test.xyz", "train.xyz"):
        (tmp_path / name).write_bytes((weighted / name).read_bytes())
    write_weighted(tmp_path, (1.0,) * len(WEIGHTS))
    loss = {"energy": 1.0, "forces": 0.1, "stress": 0.2}
    found = [
        fitted(tmp_path, f"ones-{len(more)}", {**loss, **more}).output
        for more in ({}, {"structure_weight": "w"})
    ]
    assert_same_bits(*found)


@pytest.mark.parametrize("value", ["-1.0", "heavy", "T", '"1 2"'])
def test_a_weight_that_is_none_is_refused(weighted: Path, tmp_path: Path, value: str) -> None:
    text = (weighted / "train.xyz").read_text().replace("w=0.25", f"w={value}")
    (tmp_path / "train.xyz").write_text(text)
    with pytest.raises(InputError, match=r"train.xyz, frame 4, key 'w': .*a number >= 0, '"):
        run(make_job(tmp_path, loss={"structure_weight": "w"}))


def test_weights_that_are_not_there_are_refused(weighted: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"loss.structure_weight: .*'ww'.*w"):
        fitted(weighted, "none", {"structure_weight": "ww"})
    write_weighted(tmp_path, (0.0,) * 3)
    with pytest.raises(
        InputError, match=r"all 3 structures of the training set .* have the weight 0"
    ):
        run(make_job(tmp_path, loss={"structure_weight": "w"}))


# presets -----------------------------------------------------------------------------------------


def test_sigmas_of_gap_are_a_loss_of_energies_forces_and_virials(weighted: Path) -> None:
    section = {"energy_sigma": 0.02, "force_sigma": 0.1, "virial_sigma": 0.4}
    found = fitted(weighted, "gap", {"gap": section}, linear={"rows": "sqrt"})
    terms = {
        "energy": (1.0, squared),
        "forces": ((0.02 / 0.1) ** 2, squared),
        "virial": ((0.02 / 0.4) ** 2, squared),
    }
    every = rows_of(load(weighted, "train"), "sqrt")
    Reference(every, terms, ALL, once=True).check(found, weighted, 2e-5)


# losses that are not squared ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "cholesky", "qr", "eigh"])
def test_a_huber_loss_of_energies(weighted: Path, rows: dict[str, Rows], solver: str) -> None:
    found = fitted(weighted, f"huber-{solver}", {"energy": HUBER, **TIGHT}, solver=solver)
    reference = Reference(rows, {"energy": (2.0, huber(0.3))}, ALL)
    reference.check(found, weighted, 1e-6)
    residual = rows["energy"].g @ reference.weights - rows["energy"].y
    n_flat = int(np.count_nonzero(np.abs(residual) > 0.3))
    assert 0 < n_flat < len(residual)
    assert found.facts["fit"]["n_flat"] == n_flat
    assert found.facts["fit"]["left"] <= 1e-8


@pytest.mark.parametrize("solver", ["cholesky", "qr"])
def test_every_kind_has_a_loss_of_its_own(
    weighted: Path, rows: dict[str, Rows], solver: str
) -> None:
    """Weights of structures and groups, and components that stand twice, are outside of l."""
    loss = {
        "energy": {"weight": 2.0, "shape": {"python": PYTHON}},
        "forces": {"weight": 0.3, "shape": {"log_cosh": {"delta": 1.0}}},
        "stress": {"weight": 0.5, "shape": {"huber": {"delta": 1.2}}},
        "virial": 0.001,
        **{"structure_weight": "w", "groups": {"odd": 4.0}, **TIGHT},
    }
    found = fitted(weighted, f"every-{solver}", loss, solver=solver)
    terms = {
        "energy": (2.0, pseudo_huber(0.5)),
        "forces": (0.3, log_cosh(1.0)),
        "stress": (0.5, huber(1.2)),
        "virial": (0.001, squared),
    }
    weight = with_groups(weighted, {"odd": 4.0}, GIVEN)
    Reference(rows, terms, weight).check(found, weighted, 5e-5)
    # what is squared is folded once
    assert (
        found.tasks["hessian of fit 1" if solver == "cholesky" else "triangle of fit 1"]
        < (found.tasks["hessian of fit 0" if solver == "cholesky" else "triangle of fit 0"])
    )


def test_energies_of_atoms_are_fitted_with_the_loss(weighted: Path) -> None:
    """The loss of ``y - sum of isolated energies`` is that of labels that lack them."""
    isolated, shifts = {"isolated": {"Ga": -30.0, "As": 20.0}}, {"Ga": -30.0, "As": 20.0}
    found = fitted(weighted, "isolated", {"energy": HUBER, **TIGHT}, linear={"baseline": isolated})
    frames = load(weighted, "train")
    every = rows_of(frames)
    for k, atoms in enumerate(frames):
        every["energy"].y[k] -= np.mean([shifts[symbol] for symbol in atoms.symbols])
    reference = Reference(every, {"energy": (2.0, huber(0.3))}, ALL)
    lpr = found.sets["train"]["structure_pr"]
    np.testing.assert_allclose(lpr, reference.rigidity(every["energy"].g), rtol=1e-6)


def test_a_kernel_is_fitted_with_a_loss(weighted: Path) -> None:
    """Without outliers a wide Huber loss is the squared one, to every digit but the last."""
    wide = {"energy": {"shape": {"huber": {"delta": 1e6}}}}
    settings = {"model": {"kernel": KERNEL}, "solver": "cholesky"}
    found = [done(weighted, f"k-{k}", loss=x, **settings) for k, x in enumerate((wide, {}))]
    one, other = (outcome.sets["test"] for outcome in found)
    for name in ("environment_lpr", "environment_energy"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9, atol=1e-12)
    assert found[0].facts["fit"]["iteration"] == 1


def test_a_steep_job_is_fitted_by_triangles(weighted: Path) -> None:
    """As `solver: qr` would, to the last bit."""
    loss = {"energy": 1e8, "forces": {"weight": 0.1, "shape": {"log_cosh": {"delta": 2.0}}}}
    found = [
        fitted(weighted, f"steep-{solver}", loss, solver=solver, linear={"regularizer": 1e-12})
        for solver in ("auto", "qr")
    ]
    assert found[0].facts["conditioning"]["solver"] == "qr"
    assert {"hessian of fit 0", "triangle of fit 0", "triangle of fit 1"} <= set(found[0].used)
    assert "hessian of fit 1" not in found[0].used
    assert_same_bits(found[0].output, found[1].output)


def test_a_loss_without_a_regularizer_is_fitted_by_triangles(weighted: Path) -> None:
    found = [
        fitted(weighted, f"free-{solver}", {"energy": HUBER}, solver=solver, linear=FREE)
        for solver in ("auto", "qr")
    ]
    assert "triangle of fit 0" in found[0].used
    assert found[0].facts["mu"] == 0.0
    assert_same_bits(found[0].output, found[1].output)


class Stopped(Exception):
    """Somebody pulled the plug."""


def stop_at(role: str) -> Any:
    def listen(event: Event) -> None:
        if event.stage == role:
            raise Stopped

    return listen


def test_a_fit_goes_on_where_it_was_stopped(weighted: Path) -> None:
    def job(output: str) -> Any:
        train = {"files": "train.xyz", "group_by": "config_type"}
        sets = {"test": {"files": "test.xyz"}}
        loss = {"energy": HUBER, "forces": 0.1}
        numerics = {"fold_block_rows": 4, "task_environments": 8, "block_environments": 4}
        return make_job(weighted, train, sets, LINEAR, output=output, loss=loss, numerics=numerics)

    whole = run(job("whole"))
    with pytest.raises(Stopped):
        run(job("stopped"), stop_at("fit 3"))
    again = run(job("stopped"), executor=Backwards(0))
    assert not {"fit 2", "hessian of fit 2", "rows"} & set(again.tasks)
    assert again.tasks["fit 3"] == 1
    assert_same_bits(whole.output, again.output)


class Backwards(WorkExecutor):
    """Tasks in the order of falling numbers."""

    def run(self, folder, tasks, *arguments: Any, **options: Any) -> Any:  # type: ignore[no-untyped-def]
        return super().run(folder, list(tasks)[::-1], *arguments, **options)


def test_more_iterations_begin_where_fewer_have_ended(weighted: Path) -> None:
    said = r"after 4 iterations .* nearer than loss.tolerance, 1.0e-09. Raise loss.iter"
    with pytest.raises(NumericsError, match=said):
        fitted(weighted, "few", {"energy": HUBER, "tolerance": 1e-9, "iterations": 4})
    found = fitted(weighted, "few", {"energy": HUBER, **TIGHT})
    assert "fit 4" not in found.tasks
    assert found.tasks["fit 5"] == 1


def test_a_squared_loss_is_what_it_was(weighted: Path) -> None:
    fitted(weighted, "square", {"energy": 2.0}, solver="cholesky")
    long = {"energy": {"weight": 2.0, "shape": "squared"}, "tolerance": 0.1}
    assert not fitted(weighted, "square", long, solver="cholesky").tasks
    # and the first fit of another loss takes its fold
    found = fitted(weighted, "square", {"energy": HUBER}, solver="cholesky")
    assert "hessian of fit 0" not in found.tasks


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"solver": "dual"}, JobError, "solver: dual works on rows as they are"),
        ({"numerics": {"tile_columns": 9}}, JobError, "tile_columns = 9 columns; this job has"),
        (
            {"shape": "gone:f"},
            JobError,
            r"loss.energy.shape.python.call: gone:f cannot be imported",
        ),
        ({"shape": "losses_of_users:no_loss"}, InputError, "loss.energy: losses_of_users:no_loss"),
        ({"shape": "losses_of_users:welsch"}, InputError, r"l''\(r\) is -.* convex loss"),
    ],
    ids=["dual", "tiles", "import", "function", "not convex"],
)
def test_what_cannot_work_is_refused_before_anything_is_computed(
    weighted: Path, settings: dict[str, Any], error: type[Exception], match: str
) -> None:
    shape = settings.pop("shape", None)
    term = {"shape": {"python": {"call": shape}}} if shape else HUBER
    train = {"files": "train.xyz"}
    job = make_job(weighted, train, linear=LINEAR, output="no", loss={"energy": term}, **settings)

    def refuse() -> None:
        check_job(job)
        run(job, stop_at("rows"))

    with pytest.raises(error, match=match):
        refuse()


def test_a_loss_of_no_group_is_refused(weighted: Path, tmp_path: Path) -> None:
    groups = {"odd": 0.0, "even": 0.0}
    with pytest.raises(JobError, match=r"loss.groups has 0 for every group .* even, odd"):
        fitted(weighted, "no-group", {"groups": groups})
    assert fitted(weighted, "one-group", {"groups": {"odd": 0.0}}).tasks


def test_labels_that_a_fit_needs_are_looked_for(weighted: Path, tmp_path: Path) -> None:
    frames = load(weighted, "test")
    for atoms in frames:
        del atoms.calc.results["energy"]
    write(tmp_path / "train.xyz", frames)
    with pytest.raises(InputError, match=r"has energy, but .* one that is not squared needs a fit"):
        run(make_job(tmp_path, loss={"energy": HUBER}))
