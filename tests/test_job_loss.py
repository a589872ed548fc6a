"""The section `loss` of a job: what it may say, and presets against their programs' formulas."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest

from dlpr.errors import JobError
from dlpr.job import Job
from dlpr.job.loss import Loss

rng = np.random.default_rng(3)
N_ATOMS = np.array([2, 5, 3])
VOLUME = np.array([31.0, 88.0, 47.0])
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


class Errors:
    """Errors of total energies, forces and stresses of three structures."""

    def __init__(self) -> None:
        self.energy = rng.normal(size=3)
        self.forces = rng.normal(size=(10, 3))
        stress = rng.normal(size=(3, 3, 3)) / 50.0
        self.stress = stress + stress.transpose(0, 2, 1)
        self.virial = -VOLUME[:, None, None] * self.stress


def job(loss: dict[str, Any], rows: str = "mean") -> Job:
    return Job.from_dict(
        {
            "train": {"files": "a.xyz"},
            "test": {"train": "train"},
            "descriptor": {"soap": {}},
            "model": {"linear": {"regularizer": 1e-8, "rows": rows}},
            "loss": loss,
        }
    )


def huber(r: Any, delta: float) -> Any:
    return np.where(abs(r) <= delta, r**2 / 2, delta * (abs(r) - delta / 2))


def ours(loss: Loss, rows: str, errors: Errors) -> float:
    """``sum of lambda l(r)`` over the rows that a run makes."""

    def cost(kind: str, r: Any) -> Any:
        shape = getattr(loss, kind).shape
        found = huber(r, shape.huber.delta) if shape.huber else r**2 / 2
        return getattr(loss, kind).weight * found

    factor = {"mean": 1.0 / N_ATOMS, "sqrt": N_ATOMS**-0.5, "sum": 1.0}[rows]
    total = cost("energy", errors.energy * factor).sum() + cost("forces", errors.forces).sum()
    for a, b in VOIGT:
        times = 2 if a != b and loss.off_diagonals == "twice" else 1
        total += times * cost("stress", errors.stress[:, a, b]).sum()
        total += times * cost("virial", errors.virial[:, a, b] * factor).sum()
    return float(total)


def gap(errors: Errors) -> float:
    """gap_fit: sigmas of energies and virials times sqrt(N), six components of a virial."""
    size = np.sqrt(N_ATOMS)
    total = np.square(errors.energy / (0.002 * size)).sum() + np.square(errors.forces / 0.1).sum()
    for k, m in combinations_with_replacement(range(3), 2):
        total += np.square(errors.virial[:, m, k] / (0.05 * size)).sum()
    return float(total / 2)


def pacemaker(errors: Errors) -> float:
    """(1 - kappa) and kappa times sums whose weights add up to 1."""
    energies, forces = np.full(3, 1 / 3), np.full(10, 1 / 10)
    loss = 0.7 * (energies * np.square(errors.energy / N_ATOMS)).sum()
    return float(loss + 0.3 * (forces[:, None] * np.square(errors.forces)).sum())


def mace(errors: Errors) -> float:
    """Means over structures, components of forces, components of full tensors."""
    loss = 2.0 * np.mean(np.square(errors.energy / N_ATOMS))
    loss += 30.0 * np.mean(np.square(errors.forces))
    loss += 5.0 * np.mean(np.square(errors.virial / N_ATOMS[:, None, None]))
    return float(loss + 7.0 * np.mean(np.square(errors.stress)))


def mace_huber(errors: Errors) -> float:
    """torch.nn.HuberLoss with reduction mean: it has the factor 1/2."""
    loss = np.mean(huber(errors.energy / N_ATOMS, 0.1)) + 10.0 * np.mean(huber(errors.forces, 0.1))
    return float(loss + 3.0 * np.mean(huber(errors.stress, 0.1)))


PRESETS = [
    (gap, "sqrt", {"gap": {"energy_sigma": 0.002, "force_sigma": 0.1, "virial_sigma": 0.05}}),
    (pacemaker, "mean", {"pacemaker": {"kappa": 0.3}}),
    (
        *(mace, "mean"),
        {
            "mace": {
                **{"energy_weight": 2.0, "forces_weight": 30.0},
                **{"virials_weight": 5.0, "stress_weight": 7.0},
            }
        },
    ),
    (
        *(mace_huber, "mean"),
        {"mace": {"forces_weight": 10.0, "stress_weight": 3.0, "huber_delta": 0.1}},
    ),
]


@pytest.mark.parametrize(
    ("theirs", "rows", "section"), PRESETS, ids=["gap", "pacemaker", "mace", "huber"]
)
def test_presets_are_their_programs_losses_up_to_one_factor(
    theirs: Any, rows: str, section: dict[str, Any]
) -> None:
    loss = job(section, rows).loss
    assert loss.energy == Loss().energy  # nothing is said beside the preset
    translated = loss.translated(3, 10)
    assert translated.energy.weight == 1.0
    assert translated.kinds == loss.kinds
    ratio = [ours(translated, rows, e) / theirs(e) for e in (Errors() for _ in range(5))]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-12)


def test_the_factor_of_a_preset_without_energies_is_that_of_its_first_kind() -> None:
    found = job({"mace": {"energy_weight": 0.0, "stress_weight": 9.0}}).loss.translated(2, 20)
    assert found.kinds == ["forces", "stress"]
    assert found.forces.weight == 1.0
    assert found.stress.weight == pytest.approx((9 / (9 * 2)) / (100 / (3 * 20)))
    kappa = job({"pacemaker": {"kappa": 1.0}}).loss
    assert kappa.kinds == ["forces"]
    assert kappa.translated(2, 20).forces.weight == 1.0


def test_what_else_a_loss_says_stays_with_a_preset() -> None:
    loss = {"pacemaker": {"kappa": 0.3}, "groups": {"a": 2.0}, "structure_weight": "w"}
    found = job(loss).loss.translated(3, 10)
    assert (found.groups, found.structure_weight) == ({"a": 2.0}, "w")


@pytest.mark.parametrize(
    ("loss", "rows", "match"),
    [
        ({"gap": {"energy_sigma": 1e-3}}, "mean", "loss.gap .* rows: sqrt .*rows is mean"),
        ({"mace": {}}, "sqrt", "loss.mace .* rows: mean .*rows is sqrt"),
        ({"gap": {}}, "sqrt", "loss.gap: needs one at least of: energy_sigma"),
        ({"gap": {"energy_sgima": 1e-3}}, "sqrt", "did you mean `energy_sigma`"),
        ({"gap": {"energy_sigma": 0.0}}, "sqrt", "found 0.0; needs a number > 0"),
        ({"pacemaker": {"kappa": 1.2}}, "mean", "found 1.2; needs a number from 0 to 1"),
        ({"mace": {}, "energy": 1.0}, "mean", "found mace, energy; a preset says all weights"),
        ({"mace": {}, "gap": {"force_sigma": 1.0}}, "mean", "found gap, mace"),
        ({"mace": {"huber_delta": 0.1, "virials_weight": 1.0}}, "mean", "has no virials"),
        ({"mace": {"energy_weight": 0, "forces_weight": 0}}, "mean", "all weights are 0"),
        ({"energy": 0.0}, "mean", "are all 0; needs one above 0"),
        ({"energy": {"shape": "hubber"}}, "mean", "found 'hubber'; needs squared, or a mapping"),
        ({"energy": {"shape": {"huber": {}}}}, "mean", "delta: missing; needs a number > 0"),
        ({"energy": {"shape": {"log-cosh": {"delta": 1}}}}, "mean", "did you mean `log_cosh`"),
        ({"energy": {"shape": {"python": {"call": "f"}}}}, "mean", "text such as module:function"),
        ({"energy": {"wieght": 2}}, "mean", "did you mean `weight`"),
        ({"energy": -1}, "mean", "found -1; needs a number >= 0"),
        ({"virials": 1}, "mean", "did you mean `virial`"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(loss: dict[str, Any], rows: str, match: str) -> None:
    with pytest.raises(JobError, match=match):
        job(loss, rows)


@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"energy": {"weight": 2.0, "shape": {"huber": {"delta": 0.1}}}, "forces": 0.3},
        {"stress": {"shape": {"python": {"call": "a:b", "options": {"c": 1}}}}, "tolerance": 1e-9},
        {"virial": 1.0, "off_diagonals": "once", "structure_weight": "w"},
        *(section for _, rows, section in PRESETS if rows == "mean"),
    ],
    ids=str,
)
def test_a_resolved_job_is_the_job(loss: dict[str, Any]) -> None:
    found = job(loss)
    assert Job.from_dict(found.resolved()).loss == found.loss
    assert Job.from_dict(found.resolved()).resolved() == found.resolved()


def test_a_squared_loss_in_its_long_form_is_the_short_one() -> None:
    short = {"energy": 2.0, "forces": 0.0, "stress": 0.0, "groups": {}}
    long = {"energy": {"weight": 2.0, "shape": "squared"}, "tolerance": 1e-3}
    for loss in ({"energy": 2}, {"energy": {"weight": 2.0}}, long):
        assert job(loss).resolved()["loss"] == short
