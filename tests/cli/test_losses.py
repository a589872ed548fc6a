"""What `dlpr plan` and `dlpr work` say of a loss that another program or no square defines."""

from __future__ import annotations

import re

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from cli_desk import Desk, crystals

from dlpr.engine.training_costs import ITERATIONS

MACE = {"mace": {"energy_weight": 2.0, "forces_weight": 30.0}}


def label(desk: Desk) -> None:
    """Energies and forces for the training set: 4 structures of 32 atoms."""
    rng, frames = np.random.default_rng(0), crystals(4)
    for atoms in frames:
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(len(atoms), 3))}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    desk.put("train.xyz", frames)


def rows_of(table: str) -> dict[str, list[str]]:
    """Cells of a table's rows by the first."""
    found = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    return {cells[0]: cells[1:] for cells in found if cells}


def test_a_plan_says_what_a_preset_comes_to(desk: Desk) -> None:
    label(desk)
    desk.job["loss"] = MACE
    desk.save()
    said = desk.does("plan", "job.yaml")
    factor = (30.0 / (3 * 32)) / (2.0 / 4)
    assert f"4 structures of 32 atoms: energy: 1, forces: {factor:.6g} (" in said
    assert "fits" not in rows_of(said)


def test_a_plan_reckons_with_the_fits_of_a_loss_that_is_not_squared(desk: Desk) -> None:
    label(desk)
    desk.job["loss"] = {"energy": 1.0, "forces": {"shape": {"huber": {"delta": 0.5}}}}
    desk.save()
    said = desk.does("plan", "job.yaml")
    table = rows_of(said)
    once, every = (int(table[name][0]) for name in ("folds", "folds of fits"))
    assert every == (ITERATIONS + 1) * once
    assert int(table["fits"][0]) == ITERATIONS + 1
    assert re.search(rf"loss of forces: not squared, .* {ITERATIONS} fits are reckoned with", said)


def test_a_plan_of_squares_has_no_fits(desk: Desk) -> None:
    assert not {"fits", "folds of fits"} & set(rows_of(desk.does("plan", "job.yaml")))
