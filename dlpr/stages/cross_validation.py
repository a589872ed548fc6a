"""Cross-validation from stored rows: each fold is predicted by a fit of all others (VAL23 sec. IV).

A task for each fold, and one that puts together what they found. The partials of the other folds
are added up, never taken off the whole: differences would cancel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.decomposition import Decomposition, solve_weights
from dlpr.core.factor import HeldFactor
from dlpr.core.factorize import factorize, factorize_decomposed, triangular
from dlpr.core.fit import Fit
from dlpr.core.folds import Gram
from dlpr.core.models import Model, Targets
from dlpr.core.quantiles import pack, unpack
from dlpr.core.rows import FloatArray
from dlpr.core.validation import Errors, energy_errors
from dlpr.errors import InputError
from dlpr.stages.derivatives import LABEL
from dlpr.stages.factor import factor_facts, model_rows
from dlpr.stages.loss import chosen_fold, factor_model, isolated_energies
from dlpr.stages.result import CHUNK_ROWS
from dlpr.stages.sources import folds_of, kinds_of, off_diagonals_of, sources_of
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.arrays import checksums, create_array, create_group, store_files, write_rows
from dlpr.store.files import Json, filled_folder
from dlpr.store.folder import FORMAT_VERSION, StageFolder

STORE = "cross_validation.zarr"
QUANTITIES = {
    "mean": ("energy per atom", "eV/atom"),
    "sum": ("energy per cell", "eV"),
    "sqrt": ("energy per root of N", "eV/√atom"),
    "forces": ("force component", "eV/Å"),
    "stress": ("stress component", "eV/Å³"),
}
"""Errors of held-out rows, by convention of energies and label, and their units."""
LEVELS = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Quantiles of absolute errors in the summary."""
UNITS = {
    "structure_energy": "eV, predicted by a fit without the structure's fold; NaN: not held out, "
    "for want of a label or a weight",
    "structure_energy_label": "eV",
    "structure_pr": "PR in the model's convention, against the Hessian without the fold",
    "structure_forces_rmse": "eV/Å, over the components that have labels",
    "structure_stress_rmse": "eV/Å³, over the components that have labels",
}

Place = tuple[str, int]
"""A key of `QUANTITIES`, and the number of a group."""


def plan(
    work: Path, factor: StageFolder, spec: Json, fold: StageFolder | None, numerics: Json
) -> StageFolder:
    """A task for each fold, and one behind them.

    Parameters
    ----------
    factor : StageFolder
        A finished "factor": it says what model, loss and regularizer are.
    spec : dict
        As for `dlpr.stages.sources.folds_of`.
    fold : StageFolder, optional
        Partials of each fold, or group; none: the factor was made of the rows themselves.
    numerics : dict
        ``threads`` and ``kernel``.
    """
    n = spec["members"]
    settings: Json = {
        **{name: factor.settings[name] for name in ("features", "map", "model", "loss", "solver")},
        "cross_validation": spec,
        "numerics": {name: numerics[name] for name in ("threads", "kernel")},
        "waves": [list(range(n)), [n]],
    }
    inputs = {**factor.inputs(), "factor": factor}
    if fold is not None:
        inputs["fold"] = fold
    return StageFolder.create(work, "cross_validation", settings, inputs, n + 1)


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Predict the structures of one fold; or, last, write the store of all."""
    if task == folder.n_tasks - 1:
        return _write_store(folder)
    structures = folder.input("rows").input("structures")
    store = open_structures(structures)
    held = np.equal(folds_of(structures, folder.settings["cross_validation"]), task)
    found = _HeldOut(store, _fitted(folder, task, held))
    loss = folder.settings["loss"]
    kinds = kinds_of(loss)
    for kind, source in sources_of(folder.inputs(), kinds, off_diagonals_of(loss)).items():
        if kind == "virial" and "stress" in kinds:  # the same labels once more
            continue
        for one in source.runs(1 << 62):
            for targets in source.targets(one, found.fit.model.rows, held):
                found.add(kind, targets)
    return folder.write_part(task, found.arrays()), {"n_structures": int(held.sum())}


def _fitted(folder: StageFolder, number: int, held: NDArray[np.bool_]) -> Fit:
    """The fit of all other folds, with the regularizer that the whole training set has."""
    facts = factor_facts(folder.input("factor"))
    model, mu = factor_model(folder, facts), float(facts["mu"])
    make = _of_fold if "fold" in folder.plan["inputs"] else _of_rows
    made = make(folder, model, mu, number, held)
    if made is None:
        raise InputError(
            f"fold {number} of the cross-validation has {int(held.sum())} of {len(held)} "
            f"structures, and none of the others has a label of the loss. Take more folds, another "
            f"seed, or give more structures."
        )
    factor, weights = made
    return Fit(model, mu, factor, (), weights, isolated_energies(folder))


Made = tuple[HeldFactor, FloatArray]


def _of_fold(
    folder: StageFolder, model: Model, mu: float, number: int, held: NDArray[np.bool_]
) -> Made | None:
    n = model.layout.n_columns
    names = open_structures(folder.input("rows").input("structures")).group_names

    def is_other(member: int, group: str) -> bool:
        by_group = folder.settings["cross_validation"]["by"] == "group"
        return (names.index(group) if by_group else member) != number

    fold = chosen_fold(folder, model, is_other)
    if not fold.matrix.any():
        return None
    data = type(fold)(fold.matrix[:n, :n])
    if mu == 0.0 or folder.settings["solver"] == "eigh":
        n_rows = factor_facts(folder.input("factor"))["n_rows"]
        weights = Decomposition.of_fold(fold, n, n_rows).weights(np.array([mu]))[:, 0]
        return factorize(data, mu, n_rows, "eigh")[0], weights
    factor = triangular(data, mu)
    if isinstance(fold, Gram):
        return factor, factor.solve(fold.matrix[:n, n:])[:, 0]
    return factor, solve_weights(fold, n, mu)


def _of_rows(
    folder: StageFolder, model: Model, mu: float, number: int, held: NDArray[np.bool_]
) -> Made | None:
    rows = model_rows(folder, model, ~held)
    if not len(rows):
        return None
    found = Decomposition.of_rows(rows[:, :-1], rows[:, -1], len(rows))
    return factorize_decomposed(found, mu)[0], found.weights(np.array([mu]))[:, 0]


class _HeldOut:
    """What a fit says of the rows of structures that it has not seen."""

    def __init__(self, store: StructureStore, fit: Fit) -> None:
        self.fit, self._store = fit, store
        self._n_atoms = np.diff(store.structure_offset)
        self._errors: defaultdict[Place, Errors] = defaultdict(Errors)
        self._pieces: dict[str, list[NDArray[Any]]] = {}

    def add(self, kind: str, targets: Targets) -> None:
        """Rows of one kind, of some structures of one group."""
        assert targets.structure is not None
        structure, group = targets.structure, int(self._store.group[targets.structure[0]])
        if kind == "energy":
            pr, energy, _ = self.fit.structures(targets.rows, targets.count.astype(np.int64))
            assert pr is not None
            assert energy is not None
            self._keep("energy", {"structure": structure, "energy": energy, "pr": pr})
            errors = energy_errors(energy - targets.y, self._n_atoms[structure])
            for convention, scaled in errors.items():
                self._errors[convention, group].add(scaled)
            return
        assert self.fit.weights is not None
        value = self.fit.model.chosen(targets) @ self.fit.weights / targets.factor
        errors_of_rows = value - targets.y
        own, place = np.unique(structure, return_inverse=True)
        square, count = np.bincount(place, np.square(errors_of_rows)), np.bincount(place)
        self._keep(LABEL[kind], {"structure": own, "square": square, "count": count})
        self._errors[LABEL[kind], group].add(errors_of_rows)

    def _keep(self, of: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, values in arrays.items():
            self._pieces.setdefault(f"{of}_{name}", []).append(values)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All of it, for `_read_errors` and `_over_structures`."""
        places = sorted(self._errors)
        errors = [self._errors[place] for place in places]
        found = {name: np.concatenate(pieces) for name, pieces in self._pieces.items()}
        return found | {
            "place_of": np.array([of for of, _ in places], np.str_),
            "place_group": np.array([group for _, group in places], np.int64),
            "sums": np.array([one.sums for one in errors]).reshape(-1, 3),
            **pack([one.absolute for one in errors]),
        }


def _read_errors(part: Mapping[str, NDArray[Any]]) -> Iterator[tuple[Place, Errors]]:
    """Errors of one fold, by quantity and group."""
    places = zip(part["place_of"].tolist(), part["place_group"].tolist(), strict=True)
    for place, absolute, sums in zip(places, unpack(part), part["sums"], strict=True):
        yield place, Errors(absolute, sums)


def _write_store(folder: StageFolder) -> tuple[dict[str, Any], Json]:
    structures, spec = folder.input("rows").input("structures"), folder.settings["cross_validation"]
    store = open_structures(structures)
    parts = [folder.read_part(task) for task in range(folder.n_tasks - 1)]
    fold = folds_of(structures, spec)
    names = store.group_names if spec["by"] == "group" else [str(k) for k in range(len(parts))]
    factor = folder.input("factor")
    summary = _summary(parts, list(names), list(store.group_names), spec["by"] == "group")
    attributes: Json = {
        "format_version": FORMAT_VERSION,
        "by": spec["by"],
        "seed": spec["seed"],
        "folds": list(names),
        "n_structures": np.bincount(fold, minlength=len(parts)).tolist(),
        "summary": summary,
        "spread": _spreads(summary),
        **{name: factor.settings[name] for name in ("model", "map", "loss", "features", "solver")},
        "regularizer": "mu and scale of the whole training set",
        "factor": factor_facts(factor),
        "stages": {"cross_validation": folder.name, **folder.plan["places"]},
        "inputs": folder.plan["inputs"],
        "sources": structures.input("index").settings["sources"],
    }
    source, files = store.sources()
    columns: dict[str, tuple[NDArray[Any], Json]] = {
        "structure_fold": (fold, {"names": list(names)}),
        **{name: (values, {"units": UNITS[name]}) for name, values in _arrays(store, parts)},
        "structure_n_atoms": (np.diff(store.structure_offset), {}),
        "structure_group": (store.group, {"names": list(store.group_names)}),
        "structure_source_file": (source, {"names": files}),
        "structure_source_frame": (store.over_structures("source_frame"), {}),
    }
    with filled_folder(folder.path / STORE) as partial:
        group = create_group(partial, attributes)
        for name, (values, about) in columns.items():
            array = create_array(
                group, name, values.shape, values.dtype, ("structure",), CHUNK_ROWS, about
            )
            write_rows(array, 0, values, partial)
        written = [path.relative_to(partial) for path in store_files(partial)]
    return checksums([folder.path / STORE / file for file in written], folder.path), {}


def _arrays(
    store: StructureStore, parts: list[dict[str, NDArray[Any]]]
) -> Iterator[tuple[str, FloatArray]]:
    """Arrays (n_structures,), NaN where a structure has no such row."""
    kinds = {of for part in parts for of in part["place_of"].tolist()}
    for name in ("energy", "pr") if "mean" in kinds else ():
        found = np.full(store.n_structures, np.nan)
        for part in parts:
            if "energy_structure" in part:
                found[part["energy_structure"]] = part[f"energy_{name}"]
        yield f"structure_{name}", found
    if "mean" in kinds:
        yield "structure_energy_label", store.energy
    for of in sorted(kinds & set(LABEL.values())):
        square, count = np.zeros(store.n_structures), np.zeros(store.n_structures)
        for part in parts:
            if f"{of}_structure" in part:  # a large structure is in several pieces
                np.add.at(square, part[f"{of}_structure"], part[f"{of}_square"])
                np.add.at(count, part[f"{of}_structure"], part[f"{of}_count"])
        rmse = np.full(store.n_structures, np.nan)
        np.divide(square, count, out=rmse, where=count > 0)
        yield f"structure_{of}_rmse", np.sqrt(rmse)


def _summary(
    parts: list[dict[str, NDArray[Any]]], folds: list[str], groups: list[str], by_group: bool
) -> list[Json]:
    """A row for all structures, each group and each fold, of each quantity."""
    found: defaultdict[tuple[str, str | None, str | None], Errors] = defaultdict(Errors)
    for fold, part in zip(folds, parts, strict=True):
        for (of, number), errors in _read_errors(part):
            found[of, None, None].merge(errors)
            group = groups[number]
            for place in [(fold, group)] if by_group else [(None, group), (fold, None)]:
                found[of, *place].merge(errors)
    places: list[tuple[str | None, str | None]] = [(None, None)]
    if by_group:
        places += [(group, group) for group in groups]
    else:
        places += [*((None, group) for group in groups), *((fold, None) for fold in folds)]
    order = [(of, *place) for of in QUANTITIES for place in places]
    return [
        {
            "quantity": QUANTITIES[of][0],
            "unit": QUANTITIES[of][1],
            "fold": fold,
            "group": group,
            "n": found[of, fold, group].n,
            "bias": found[of, fold, group].bias,
            "mae": found[of, fold, group].mae,
            "rmse": found[of, fold, group].rmse,
            "levels": list(LEVELS),
            "quantiles": [found[of, fold, group].absolute.quantile(q) for q in LEVELS],
        }
        for of, fold, group in order
        if (of, fold, group) in found
    ]


def _spreads(summary: list[Json]) -> list[Json]:
    """Mean and standard deviation over folds (divisor folds - 1) of the errors of each quantity."""
    found = []
    for quantity, unit in QUANTITIES.values():
        own = [row for row in summary if row["quantity"] == quantity and row["fold"] is not None]
        if len(own) > 1:
            values = {name: [row[name] for row in own] for name in ("mae", "rmse")}
            means = {f"{name}_mean": float(np.mean(x)) for name, x in values.items()}
            deviations = {f"{name}_std": float(np.std(x, ddof=1)) for name, x in values.items()}
            about = {"quantity": quantity, "unit": unit, "n_folds": len(own)}
            found.append({**about, **means, **deviations})
    return found
