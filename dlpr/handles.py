"""Small objects that stand for stores on disk and open them."""

from __future__ import annotations

import html
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.errors import StoreError
from dlpr.stages.cross_validation import STORE as VALIDATION
from dlpr.stages.factor import Factors, factor_facts, open_factors
from dlpr.stages.features import ARRAY
from dlpr.stages.result import STORE
from dlpr.stages.structures import StructureStore, open_structures, part_name
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder, check_format
from dlpr.tables import TextTable, cross_validation_table, rigidity_table


class Handle:
    """A finished stage.

    Attributes
    ----------
    path : Path
        Its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def folder(self) -> StageFolder:
        """The stage: its plan and its receipts."""
        return StageFolder(self.path)

    def facts(self) -> dict[str, Any]:
        """What there is to say about it, by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self.facts().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(str(value))}</td></tr>"
            for name, value in self.facts().items()
        )
        return f"<table><caption>dlpr.{type(self).__name__}</caption>{rows}</table>"


class Structures(Handle):
    """Structures of one set, checked and stored."""

    def open(self) -> StructureStore:
        """The store: positions, species, cells and labels by runs of environments."""
        return open_structures(self.folder)

    def facts(self) -> dict[str, Any]:
        store = self.open()
        return {
            "structures": store.n_structures,
            "environments": store.n_environments,
            "species": store.symbols,
            "groups": ", ".join(store.group_names),
            "labels": self.labels,
            "exact repeats": store.n_repeats,
            "path": self.path,
        }

    @property
    def labels(self) -> dict[str, int]:
        """Structures that have an energy, forces, a stress."""
        receipts = self.folder.receipts()
        names = receipts[0].facts["labels"]
        return {name: sum(r.facts["labels"][name] for r in receipts) for name in names}


class Features(Handle):
    """Features of one set, (n_environments, n_features), a Zarr array for every task."""

    def open(self) -> list[zarr.Array[Any]]:
        """The arrays of features, in the structure store's order of environments."""
        parts = [self.path / part_name(task) for task in range(self.folder.n_tasks)]
        return [zarr.open_array(str(part / ARRAY), mode="r") for part in parts]

    def facts(self) -> dict[str, Any]:
        parts = self.open()
        return {
            "environments": sum(part.shape[0] for part in parts),
            "features": parts[0].shape[1],
            "dtype": parts[0].dtype,
            "path": self.path / "parts",
        }


class Hessian(Handle):
    """The factored Hessian of a training set."""

    def open(self) -> Factors:
        """Its factors: of the whole, and of each block of columns."""
        return open_factors(self.folder)

    @property
    def conditioning(self) -> Json:
        """Solver, rank, condition, accuracy to expect."""
        found: Json = factor_facts(self.folder)["conditioning"]
        return found

    def facts(self) -> dict[str, Any]:
        facts = factor_facts(self.folder)
        found = self.conditioning
        return {
            "solver": found["solver"],
            "rows": found["n_rows"],
            "columns": found["n_columns"],
            "rank": "unknown" if found["rank"] is None else found["rank"],
            "condition": f"{found['condition']:.3g}",
            "relative error to expect": f"{found['accuracy']:.1e}",
            "mu": facts["mu"],
            "path": self.path,
        }


class Rigidities(Handle):
    """Rigidities of one set as its tasks wrote them; `dlpr.run` publishes them in source order."""

    def open(self) -> dict[str, NDArray[Any]]:
        """Arrays over the environments, in the structure store's order."""
        names = ("environment_lpr", "environment_prior_ratio", "environment_unseen")
        folder = self.folder
        parts = [folder.read_part(task, names) for task in range(folder.n_tasks)]
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def facts(self) -> dict[str, Any]:
        receipts = self.folder.receipts()
        return {
            "environments": sum(r.facts["n_environments"] for r in receipts),
            "tasks": len(receipts),
            "path": self.path,
        }


class CrossValidation(Handle):
    """What fits without them say of the structures of a training set."""

    def open(self) -> zarr.Group:
        """Arrays over the training structures in the order of the source files.

        ``structure_fold``, held-out ``structure_energy`` (eV) and ``structure_pr``, their labels,
        root mean squares of held-out errors of forces and stresses, groups, sources. The
        attributes say how it was made.
        """
        return zarr.open_group(str(self.path / VALIDATION), mode="r")

    @property
    def summary(self) -> list[Json]:
        """Errors of each quantity: of all structures, of each group, of each fold."""
        return cast("list[Json]", self.open().attrs["summary"])

    def facts(self) -> dict[str, Any]:
        about = self.open().attrs
        found = {"by": about["by"], "folds": len(cast("list[str]", about["folds"]))}
        errors = {
            f"RMSE of {row['quantity']}": f"{row['rmse']:.3g} {row['unit']}"
            for row in self.summary
            if row["fold"] is None and row["group"] is None
        }
        return {**found, **errors, "path": self.path / VALIDATION}

    def table(self) -> TextTable:
        """The summary as text."""
        return cross_validation_table(dict(self.open().attrs))

    def _repr_html_(self) -> str:
        return self.table().to_html()


class Result:
    """A published result.

    Parameters
    ----------
    output : path
        The output folder of a run.

    Attributes
    ----------
    output : Path
    path : Path
        The store ``rigidity.zarr``, a group per test set.
    """

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output).absolute()
        self.path = self.output / STORE
        if not (self.path / "zarr.json").exists():
            raise StoreError(
                f"{self.output} holds no result: there is no {STORE}. `dlpr status {output}` says "
                f"what is missing; `dlpr work {output}` does it."
            )

        check_format(self._root.attrs.get("format_version"), self.path)

    @property
    def _root(self) -> zarr.Group:
        return zarr.open_group(str(self.path), mode="r")

    @cached_property
    def summary(self) -> dict[str, list[Json]]:
        """Per set, rows per group and species: counts and quantiles."""
        names = cast("dict[str, Any]", self._root.attrs["job"])["test"]
        return {name: cast("list[Json]", self._root[name].attrs["summary"]) for name in names}

    @property
    def sets(self) -> list[str]:
        """Names of the test sets."""
        return list(self.summary)

    def open(self, name: str) -> zarr.Group:
        """The group of one test set: LPR, prior ratio, PR, offsets, species, groups, sources.

        Raises
        ------
        StoreError
            If there is no such set.
        """
        if name not in self.sets:
            raise StoreError(f"{self.path} has no set {name!r}; it has: {', '.join(self.sets)}.")
        group = self._root[name]
        assert isinstance(group, zarr.Group)
        return group

    def lpr(self, name: str) -> NDArray[np.float64]:
        """(n_environments,) LPR of one test set."""
        return np.asarray(self.open(name)["environment_lpr"][:])  # type: ignore[index]

    def committee(self, name: str) -> Json | None:
        """How the committee of a test set was made, and how its variance goes with LPR, if any.

        The variances are the arrays ``environment_committee_variance`` and
        ``structure_committee_variance`` of `open`.
        """
        return cast("Json | None", dict(self.open(name).attrs).get("committee"))

    @property
    def cross_validation(self) -> CrossValidation | None:
        """That of the training set, if the job has one."""
        link = self.output / VALIDATION
        return CrossValidation(link.resolve().parent) if link.exists() else None

    def energy_errors(self, name: str) -> NDArray[np.float64]:
        """Fitted less labelled energies of a set's structures in eV/atom, where there are both."""
        group = self.open(name)
        if "structure_energy" not in group:
            return np.empty(0)
        energy, label, offset = (
            np.asarray(group[array][:])  # type: ignore[index]
            for array in ("structure_energy", "structure_energy_label", "structure_offset")
        )
        errors: NDArray[np.float64] = (energy - label) / np.diff(offset)
        return errors[np.isfinite(errors)]

    def __repr__(self) -> str:
        counts = {n: sum(row["n_environments"] for row in rows) for n, rows in self.summary.items()}
        return f"Result({self.path}, environments={counts})"

    def _repr_html_(self) -> str:
        return rigidity_table(self.summary).to_html()
