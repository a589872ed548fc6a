"""Fitted models as calculators of ASE: molecular dynamics, relaxations, and files for OVITO."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from dlpr.descriptors import gradient_refusal
from dlpr.errors import JobError
from dlpr.fitted import FittedModel, load_model


class RigidityCalculator(Calculator):
    """Energies, forces and stresses of a fitted model, and how rigid they are.

    Beside ASE's own, ``calc.results`` has per atom ``lpr``, ``prior_ratio`` and ``uncertainty``
    (standard deviation of the atomic energy, eV), and ``energy_uncertainty`` and ``structure_pr``;
    of a model with a committee ``committee_variance`` (of the atomic energy, eV²) and
    ``structure_committee_variance``; of one whose descriptor has parts ``lpr_NAME`` and
    ``structure_pr_NAME``. ASE writes none but its own to files: `annotate` stores them with the
    atoms.

    Parameters
    ----------
    model : path or FittedModel
        A folder that ``dlpr save`` wrote, or the model itself.
    **options
        Of ASE's `Calculator`, such as ``atoms``.

    Raises
    ------
    DlprError
        If the model cannot be opened; in a calculation, if a structure cannot be predicted, such as
        for a species that the model does not know.
    """

    implemented_properties = [  # noqa: RUF012 (as ASE declares it)
        *("energy", "free_energy", "energies", "forces", "stress"),
    ]

    def __init__(self, model: str | PathLike[str] | FittedModel, **options: Any) -> None:
        self.model = model if isinstance(model, FittedModel) else load_model(model)
        own = (*self.model.of_atoms, *self.model.of_structure)
        self.implemented_properties = [*type(self).implemented_properties, *own]
        base: Any = super()
        base.__init__(**options)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute what is wanted and not yet known of these atoms; energies and LPR always."""
        base: Any = super()
        base.calculate(atoms, properties, system_changes)
        own: Any = self.atoms
        wanted = [name for name in ("forces", "stress") if name in properties]
        for name in wanted:
            refusal = gradient_refusal(self.model.descriptor, name)
            if refusal is not None:
                raise PropertyNotImplementedError(f"{name}: there must be {refusal}")
        if "stress" in wanted and not own.pbc.all():
            raise PropertyNotImplementedError(
                f"a stress needs 3 periodic directions; the atoms have {own.pbc.sum()}"
            )
        if system_changes or "lpr" not in self.results:
            found = self.model.predict(own)
            self.results = {
                "energy": found.energy,
                "free_energy": found.energy,
                "energies": found.energies,
                **found.of_atoms,
                **found.of_structure,
            }
        if wanted:
            # who asks for a stress asks for forces next, and both together cost less
            forces, stress = self.model.derivatives(
                own, forces="forces" not in self.results, stress="stress" in wanted
            )
            for name, value in (("forces", forces), ("stress", stress)):
                if value is not None:
                    self.results[name] = value


def annotate(atoms: Atoms) -> None:
    """Store with atoms what their calculator says of how firm their energies are.

    LPR and all else of atoms become their arrays, what is of the structure entries of their
    ``info``, so that `ase.io.write` puts them into extended xyz (OVITO shows them as particle
    properties), with 8 decimals; ASE's own .traj files hold no such arrays. In molecular dynamics
    call it before a frame is written: ``dyn.attach(lambda: annotate(atoms))``.

    Parameters
    ----------
    atoms : ase.Atoms
        With a `RigidityCalculator`; computed if they have moved.

    Raises
    ------
    JobError
        If their calculator is another one.
    """
    calculator: Any = atoms.calc
    if not isinstance(calculator, RigidityCalculator):
        raise JobError(
            f"the atoms have the calculator {type(calculator).__name__}; LPR comes from a "
            "RigidityCalculator: atoms.calc = RigidityCalculator(folder)."
        )
    results: Any = calculator
    for name in calculator.model.of_atoms:
        atoms.arrays[name] = results.get_property(name, atoms).copy()
    for name in calculator.model.of_structure:
        atoms.info[name] = results.get_property(name, atoms)
