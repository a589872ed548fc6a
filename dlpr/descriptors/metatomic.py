"""Latent features that an exported metatomic model gives out under a documented name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.digests import check_digest, file_digest, folder_digest
from dlpr.descriptors.pieces import atoms_of
from dlpr.descriptors.torch_kind import TorchKind, rows_of_centres
from dlpr.descriptors.torch_work import (
    computing,
    imported,
    reporting,
)
from dlpr.errors import JobError
from dlpr.structures.frames import Piece

_KEY = "descriptor.metatomic"


class Metatomic(TorchKind):
    """An output of a model that metatrain or another engine of metatomic has exported.

    Parameters
    ----------
    options
        ``file``: the exported model, absolute. ``output``: which of its outputs are the rows, such
        as "mtt::aux::energy_last_layer_features" or "feature". ``extensions``: folder of its
        TorchScript extensions, or None. ``nbytes_per_atom``: memory of the model for each atom.
    species
        Atomic numbers of all atoms of the job.
    """

    kind = "metatomic"
    keys = ("file", "output", "extensions", "nbytes_per_atom")
    added = (*TorchKind.added, "file_sha256", "dtype")
    packages = ("torch", "metatomic-torch", "metatensor-torch", "vesin")
    process_nbytes = 256 << 20

    def __init__(self, options: Mapping[str, Any], species: Sequence[int]) -> None:
        imported("metatomic.torch", self.kind, "metatomic-torch")
        imported("vesin.metatomic", self.kind, "vesin")
        super().__init__(options, species)
        self._path = Path(self._options["file"])
        self._digest = file_digest(self._path, f"{_KEY}.file")
        if self._options["extensions"] is not None:
            self._digest += folder_digest(Path(self._options["extensions"]), f"{_KEY}.extensions")
        check_digest(str(self._path), self._digest, self._planned["file_sha256"])
        if self._planned["n_features"] is None:
            self._look_at_output()

    @property
    def _module(self) -> Any:
        return _load(self._path, self._options["extensions"], self._digest)

    def _look_at_output(self) -> None:
        outputs = self._module.capabilities().outputs
        name = self._options["output"]
        if name not in outputs:
            raise JobError(
                f"{_KEY}.output is {name!r}; {self._path} has {', '.join(sorted(outputs))}."
                " Correct the job file."
            )

    def _identity(self) -> dict[str, Any]:
        return {"file_sha256": self._digest, "dtype": self._module.capabilities().dtype}

    @property
    def cutoff(self) -> float:
        """The model's interaction range in Å."""
        return float(self._module.capabilities().engine_interaction_range("angstrom"))

    def _rows(self, pieces: list[Piece], centres: list[NDArray[np.int64]]) -> NDArray[np.float64]:
        metatomic = imported("metatomic.torch", self.kind, "metatomic-torch")
        vesin = imported("vesin.metatomic", self.kind, "vesin")
        name = self._options["output"]
        capabilities = self._module.capabilities()
        unknown = sorted(set(self.species) - set(capabilities.atomic_types))
        if unknown:
            raise JobError(
                f"{_KEY}: the structures have the atomic number(s) {unknown}; {self._path} was made"
                f" for {sorted(capabilities.atomic_types)}. Use another model, or leave these"
                " structures out with `where`."
            )
        with computing() as torch, reporting(str(self._path)):
            dtype = getattr(torch, capabilities.dtype)
            systems = metatomic.systems_to_torch([atoms_of(p) for p in pieces], dtype=dtype)
            # Without a skin: lists are made anew, so that bits do not follow from earlier calls.
            for lists in vesin.neighbor_lists_for_model("angstrom", self._module, skin=0.0):
                lists.add_neighbor_list(systems)
            asked = {name: metatomic.ModelOutput(sample_kind="atom")}
            options = metatomic.ModelEvaluationOptions(length_unit="angstrom", outputs=asked)
            with torch.no_grad():
                found = self._module(systems, options, check_consistency=False)[name]
            if len(found) != 1 or found.block().values.ndim != 2:
                raise JobError(
                    f"{_KEY}.output: {name!r} of {self._path} has {len(found)} block(s) with the"
                    f" components {list(found.component_names)}; needed is one of invariants"
                    " alone. Take another output."
                )
            block = found.block()
            number = np.array(block.samples.column("system"))
            atom = np.array(block.samples.column("atom"))
            values = block.values.to(torch.float64).numpy()[np.lexsort((atom, number))]
        n_atoms = sum(len(piece.species) for piece in pieces)
        if len(values) != n_atoms:
            raise JobError(
                f"{_KEY}.output: {name!r} of {self._path} has {len(values)} rows for"
                f" {n_atoms} atoms; needed is one for each. Take an output of atoms."
            )
        return rows_of_centres(values, pieces, centres)


@lru_cache(maxsize=2)
def _load(path: Path, extensions: str | None, digest: str) -> Any:
    """Load a model and its extensions; ``digest`` stands for what the files hold."""
    metatomic = imported("metatomic.torch", Metatomic.kind, "metatomic-torch")
    with computing(), reporting(f"loading {path}"):
        return metatomic.load_atomistic_model(path, extensions)
