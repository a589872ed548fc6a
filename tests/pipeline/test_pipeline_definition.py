"""The definition of a rigidity (JCTC23 eq. 7-11, fig. 1; rigidity.md sec. 6.1 and 6.6).

A prediction is held at a distance eps from its fitted value while all weights adapt: the loss rises
by ``1/2 R eps^2``. NumPy minimizes it; the run says R and the fitted value, and knows nothing else.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import write
from models_cases import KERNEL, LINEAR, MU, Array, Plain, chosen, data, done, labelled, load
from pipeline_cases import TINY, Outcome, make_job, run

__all__ = ["data"]
LOSS = {"energy": 1.0, "forces": 0.3}
ISOLATED = {"Ga": -2.0, "As": 1.5}
FITTED = {"composition": {"regularizer": MU / 0.25}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "linear": ({"linear": LINEAR}, {}, 1e-6),
    "linear, forces": ({"linear": LINEAR}, LOSS, 1e-4),
    "linear, isolated atoms": (
        {"linear": {**LINEAR, "baseline": {"isolated": ISOLATED}}},
        {},
        1e-6,
    ),
    "linear, composition": ({"linear": {**LINEAR, "baseline": FITTED}}, {}, 1e-6),
    "linear, composition, forces": ({"linear": {**LINEAR, "baseline": FITTED}}, LOSS, 1e-4),
    "kernel": ({"kernel": KERNEL}, {}, 1e-6),
    "kernel, forces": ({"kernel": KERNEL}, LOSS, 1e-4),
    "kernel, composition, forces": ({"kernel": {**KERNEL, "baseline": FITTED}}, LOSS, 1e-4),
}


class Experiment:
    """The training loss ``1/2 |A w - t|^2 + 1/2 mu |w|^2``, and its minima under a constraint."""

    def __init__(self, rows: Array, targets: Array) -> None:
        n = rows.shape[1]
        self.rows = np.vstack([rows, np.sqrt(MU) * np.eye(n)])
        self.targets = np.append(targets, np.zeros(n))

    def least(self, g: Array | None = None, value: float = 0.0) -> float:
        """The least loss; of all weights with ``g w = value``."""
        if g is None:
            g, free, start = np.zeros(0), np.eye(self.rows.shape[1]), 0.0 * self.rows[0]
        else:
            start = g * value / (g @ g)
            free = np.linalg.svd(g[None])[2][1:].T  # all directions that leave g w as it is
        left = self.targets - self.rows @ start
        moved = self.rows @ free
        best = np.linalg.lstsq(moved, left, rcond=None)[0]
        return 0.5 * float(np.square(left - moved @ best).sum())

    def check(self, g: Array, value: float, rigidity: float, rtol: float) -> None:
        """The loss is least at the fitted value, and rises by ``1/2 R eps^2`` around it."""
        lowest = self.least()
        for size in (0.5, 2.0):
            eps = size / np.sqrt(rigidity)
            sides = [self.least(g, value + side * eps) - lowest for side in (-1.0, 0.0, 1.0)]
            assert abs(sides[1]) < rtol * sides[0]
            curvature = (sides[0] - 2.0 * sides[1] + sides[2]) / eps**2
            np.testing.assert_allclose(curvature, rigidity, rtol=rtol)
            # the parabola stands on the fitted value
            np.testing.assert_allclose(sides[0], sides[2], rtol=30 * rtol)


def energy_of_atoms(atoms: Atoms, model: dict[str, Any]) -> Array:
    """Energies of isolated atoms that a job takes off, by atom."""
    (spec,) = model.values()
    given = spec.get("baseline", {}).get("isolated", {})
    return np.array([given.get(symbol, 0.0) for symbol in atoms.symbols])


@pytest.mark.parametrize("case", CASES)
def test_a_constraint_costs_what_the_rigidity_says(data: Path, case: str) -> None:
    model, loss, rtol = CASES[case]
    settings: dict[str, Any] = {"loss": loss} if loss else {}
    found = done(data, case.replace(", ", "-"), model=model, test_forces=True, **settings)
    constant = 0.5 if "composition" in case else 0.0
    plain = Plain(chosen(found, data) if "kernel" in case else None, constant)
    train = load(data, "train")
    for atoms in train:
        atoms.calc.results["energy"] -= energy_of_atoms(atoms, model).sum()
    experiment = Experiment(*plain.loss_rows(train, loss))
    for name in ("train", "test"):
        arrays, frames = found.sets[name], load(data, name)
        phi = plain.phi(frames)
        isolated = np.concatenate([energy_of_atoms(atoms, model) for atoms in frames])
        local = arrays["environment_energy"] - isolated
        for k in (0, len(phi) // 2, len(phi) - 1):
            experiment.check(phi[k], local[k], arrays["environment_lpr"][k], rtol)
        edges = np.cumsum([0, *map(len, frames)])
        for s, (a, b) in list(enumerate(pairwise(edges)))[:2]:
            total = (arrays["structure_energy"][s] - isolated[a:b].sum()) / (b - a)
            experiment.check(phi[a:b].mean(axis=0), total, arrays["structure_pr"][s], rtol)
        forces = plain.forces(frames[0])
        for row in (0, len(forces) - 1):
            value, pr = (
                arrays[f"environment_{own}"].ravel()[row] for own in ("forces", "pr_forces")
            )
            experiment.check(forces[row], value, pr, 1e-4)


# one more structure ------------------------------------------------------------------------------


def grown(data: Path, model: dict[str, Any], loss: dict[str, Any]) -> list[Outcome]:
    """Runs without and with one structure more, of a group of its own; it alone is tested."""
    references, new = labelled(3, 7), labelled(2, 5)[1]
    new.info["config_type"] = "new"
    train = load(data, "train")
    for name, frames in (
        ("refs", references),
        ("new", [new]),
        ("before", train),
        ("after", [*train, new]),
    ):
        write(data / f"{name}.xyz", frames, format="extxyz")
    found = []
    for name in ("before", "after"):
        groups = {"groups": {"new": 3.0}} if name == "after" else {}
        job = make_job(
            data,
            {"files": f"{name}.xyz", "group_by": "config_type"},
            {"new": {"files": "new.xyz"}, "all": {"files": "test.xyz"}},
            hypers=TINY,
            output=f"grown-{name}-{abs(hash(str([model, loss])))}",
            model=model,
            loss={**loss, **groups},
            test_forces=True,
        )
        found.append(run(job))
    return found


MODELS: dict[str, dict[str, Any]] = {
    "linear": {"linear": LINEAR},
    "linear, composition": {"linear": {**LINEAR, "baseline": FITTED}},
    "kernel": {"kernel": {"regularizer": MU, "references": {"file": "refs.xyz"}}},
}


@pytest.mark.parametrize("case", MODELS)
def test_one_row_more_raises_its_rigidity_by_its_weight(data: Path, case: str) -> None:
    """FD24 app. B, with everything else frozen: lambda is 2 times the 3 of the group."""
    before, after = grown(data, MODELS[case], {"energy": 2.0})
    first, second = before.sets["new"], after.sets["new"]
    gain = second["structure_pr"] - first["structure_pr"]
    np.testing.assert_allclose(gain, 6.0, rtol=1e-7)
    for name in ("new", "all"):
        for array in ("environment_lpr", "structure_pr", "environment_pr_forces"):
            old, now = before.sets[name][array], after.sets[name][array]
            assert (now >= old * (1.0 - 1e-7)).all(), array
    assert (second["environment_lpr"] > first["environment_lpr"]).all()


@pytest.mark.parametrize("case", MODELS)
def test_several_rows_raise_each_by_its_weight_at_least(data: Path, case: str) -> None:
    before, after = grown(data, MODELS[case], {"energy": 2.0, "forces": 0.3})
    first, second = before.sets["new"], after.sets["new"]
    assert (second["structure_pr"] - first["structure_pr"] > 6.0).all()
    gain = second["environment_pr_forces"] - first["environment_pr_forces"]
    assert (gain > 0.9).all()
