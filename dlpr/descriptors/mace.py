"""Latent features of a MACE model: its invariant node features, or what enters a layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.digests import check_digest, file_digest
from dlpr.descriptors.pieces import atoms_of
from dlpr.descriptors.torch_kind import TorchKind, rows_of_centres
from dlpr.descriptors.torch_work import (
    computing,
    imported,
    layer_of,
    layer_rows,
    reporting,
)
from dlpr.errors import JobError
from dlpr.structures.frames import Piece

_KEY = "descriptor.mace"
_log = logging.getLogger(__name__)


class Mace(TorchKind):
    """A MACE model as its training writes it, a pickled module, in float64.

    Parameters
    ----------
    options
        ``file``: the model, absolute. ``trust``: True; loading a pickle runs code that it names.
        ``layer``: name of the layer whose input are the rows, such as "readouts.1.linear_2"; None:
        the invariant part of all layers' node features. ``nbytes_per_atom``: memory of the model
        for each atom.
    species
        Atomic numbers of all atoms of the job.
    """

    kind = "mace"
    keys = ("file", "trust", "layer", "nbytes_per_atom")
    added = (*TorchKind.added, "file_sha256")
    packages = ("torch", "mace-torch", "e3nn", "matscipy")
    process_nbytes = 384 << 20

    def __init__(self, options: Mapping[str, Any], species: Sequence[int]) -> None:
        imported("mace.data", self.kind, "mace-torch")
        super().__init__(options, species)
        self._path = Path(self._options["file"])
        if self._options["trust"] is not True:
            raise JobError(
                f"{_KEY}: {self._path} is a pickled module, and loading it runs code that it names."
                " If you trust where it comes from, say trust: true in the job file."
            )
        self._digest = file_digest(self._path, f"{_KEY}.file")
        check_digest(str(self._path), self._digest, self._planned["file_sha256"])
        if self._planned["n_features"] is None and self._options["layer"] is not None:
            layer_of(self._module, self._options["layer"], f"{_KEY}.layer")

    @property
    def _module(self) -> Any:
        return _load(self._path, self._digest)

    def _identity(self) -> dict[str, Any]:
        return {"file_sha256": self._digest}

    @property
    def cutoff(self) -> float:
        """How far messages come from in Å: the cutoff times the number of interactions."""
        return float(self._module.r_max) * int(self._module.num_interactions)

    def _rows(self, pieces: list[Piece], centres: list[NDArray[np.int64]]) -> NDArray[np.float64]:
        module, key = self._module, f"{_KEY}.layer"
        known = [int(z) for z in module.atomic_numbers]
        unknown = sorted(set(self.species) - set(known))
        if unknown:
            raise JobError(
                f"{_KEY}: the structures have the atomic number(s) {unknown}; {self._path} was made"
                f" for {known}. Use another model, or leave these structures out with `where`."
            )
        n_atoms = sum(len(piece.species) for piece in pieces)
        with computing() as torch, reporting(str(self._path)):
            graph = self._graph(pieces, known)

            def run() -> Any:
                return module(graph, compute_force=False)["node_feats"]

            if self._options["layer"] is not None:
                layer = layer_of(module, self._options["layer"], key)
                rows = layer_rows(layer, run, n_atoms, key)
            else:
                with torch.no_grad():
                    rows = run().detach().numpy()[:, _invariants(module)]
        return rows_of_centres(rows, pieces, centres)

    def _graph(self, pieces: list[Piece], known: list[int]) -> Any:
        data = imported("mace.data", self.kind, "mace-torch")
        tools = imported("mace.tools", self.kind, "mace-torch")
        table = tools.AtomicNumberTable(known)
        heads = list(getattr(self._module, "heads", None) or ["Default"])
        cutoff = float(self._module.r_max)
        graphs = [
            data.AtomicData.from_config(
                data.config_from_atoms(atoms_of(piece), head_name=heads[0]),
                z_table=table,
                cutoff=cutoff,
                heads=heads,
            )
            for piece in pieces
        ]
        return tools.torch_geometric.Batch.from_data_list(graphs).to_dict()


@lru_cache(maxsize=2)
def _load(path: Path, digest: str) -> Any:
    """Unpickle a model; ``digest`` stands for what the file holds."""
    _log.warning(
        "%s (SHA-256 %s) is a pickled module: loading it runs code that it names, as trust: true"
        " allows",
        path,
        digest[:12],
    )
    with computing() as torch, reporting(f"loading {path}"):
        module = torch.load(path, map_location="cpu", weights_only=False)
        if not hasattr(module, "r_max") or not hasattr(module, "products"):
            raise JobError(
                f"{_KEY}.file: {path} holds {type(module).__name__}; needed is a MACE model as its"
                " training writes it, not compiled. Correct the job file."
            )
        return module.to(torch.float64).eval()


def _invariants(module: Any) -> NDArray[np.int64]:
    """Columns of the node features, layers one after the other, that rotations leave alone."""
    found, start = [], 0
    for product in module.products:
        for part in product.linear.irreps_out:
            stop = start + part.dim
            if part.ir.l == 0:
                found.append(np.arange(start, stop))
            start = stop
    return np.concatenate(found)
