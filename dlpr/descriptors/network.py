"""Latent features, or derivatives by all weights, of the user's own torch module."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlpr.descriptors.digests import check_digest, file_digest
from dlpr.descriptors.neighbours import DENSITY
from dlpr.descriptors.pieces import atoms_of
from dlpr.descriptors.soap import Soap
from dlpr.descriptors.torch_kind import TorchKind, rows_of_centres
from dlpr.descriptors.torch_work import (
    CHUNK_NBYTES,
    CHUNK_ROWS,
    computing,
    layer_of,
    layer_rows,
    reporting,
    trainable,
    weight_rows,
    weights_digest,
)
from dlpr.descriptors.user_code import check_source, imported, source_digest
from dlpr.errors import JobError
from dlpr.structures.frames import Piece

if TYPE_CHECKING:
    from dlpr.descriptors import Descriptor

_LAYER = "descriptor.network.layer"
_OF_ALL = ("species", "featomic")
"""Settings that stand once, above all descriptors."""


class Network(TorchKind):
    """A ``torch.nn.Module`` that a function of the user builds, in float64 and evaluation mode.

    Parameters
    ----------
    options
        ``call``: "module:function", which returns the module, called with float64 as torch's
        default; ``options``: its keywords, see `dlpr.descriptors.user_code.source_digest`;
        ``folder``: where its Python module is, if not among the installed ones. ``state``: a file
        of weights, loaded with ``weights_only=True``, or None: the function has set them.
        ``input``: the descriptor whose rows the module takes, ``{kind: hyperparameters}``, or
        None: it takes a list of ``ase.Atoms``, and gives a row for each atom, in order.
        ``layout``: "distinct" columns of a descriptor, or all of "featomic"'s. ``layer``: name of
        the layer whose input are the rows (FD24 eq. 7-8), or None: derivatives dy_i/dw by all
        trainable weights (JCTC23 sec. 6). ``cutoff``: of what takes atoms, in Å; None: it needs
        whole structures. ``nbytes_per_atom``: memory of the module for each atom.
    species
        Atomic numbers of all atoms of the job.
    make
        Makes the descriptor of the input.
    """

    kind = "network"
    keys = (
        *("call", "options", "state", "input", "layout", "layer"),
        *("cutoff", "nbytes_per_atom", "folder"),
    )
    added = (*TorchKind.added, "source_sha256", "weights_sha256")
    process_nbytes = 64 << 20

    def __init__(
        self,
        options: Mapping[str, Any],
        species: Sequence[int],
        make: Callable[[Mapping[str, Any], Sequence[int]], Descriptor],
    ) -> None:
        super().__init__(options, species)
        given = self._options["input"]
        self.input = None if given is None else make(given, self.species)
        if self._options["layout"] == "featomic" and not isinstance(self.input, Soap):
            raise JobError(
                "descriptor.network.layout: featomic needs an input of soap, which alone has"
                " columns that are left out. Correct the job file."
            )
        if self.input is None and self._options["layer"] is None:
            raise JobError(
                "descriptor.network needs a layer, or an input: derivatives by all weights are"
                " those of a network on rows. Correct the job file."
            )
        named = (self._options["options"], self._options["folder"])
        self._source = source_digest(self._function, *named)
        check_source(
            self._options["call"], self._source, self._planned["source_sha256"], "features"
        )
        if self._planned["n_features"] is None:
            self._look_at_layer()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the module: who unpickles loads it."""
        return {name: value for name, value in self.__dict__.items() if name != "_module"}

    @property
    def _function(self) -> Callable[..., Any]:
        place = "descriptor.network.call"
        return imported(str(self._options["call"]), self._options["folder"], place)

    @cached_property
    def _module(self) -> Any:
        call, state = self._options["call"], self._options["state"]
        with computing() as torch, reporting(call):
            module = self._function(**self._options["options"] or {})
            if not isinstance(module, torch.nn.Module):
                raise JobError(
                    f"{call} returned {type(module).__name__}; needed is a torch.nn.Module. Correct"
                    " the function."
                )
            module = module.to(torch.float64).eval()
            if state is not None:
                _load_state(torch, module, Path(state))
        check_digest(
            f"the network of {call}", weights_digest(module), self._planned["weights_sha256"]
        )
        return module

    def _look_at_layer(self) -> None:
        """Refuse a layer or weights that are not there, before anything is read."""
        if self._options["layer"] is not None:
            layer_of(self._module, self._options["layer"], _LAYER)
        elif not trainable(self._module):
            raise JobError(
                f"the network of {self._options['call']} has no weights that require a gradient."
                " Correct the function, or name a layer."
            )

    def _identity(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "source_sha256": self._source,
            "weights_sha256": weights_digest(self._module),
        }
        if self.input is not None:
            settings = self.input.settings()
            found["input"] = {k: v for k, v in settings.items() if k not in _OF_ALL}
        return found

    def settings(self) -> dict[str, Any]:
        """Return the section, and what the network and torch are, as JSON can hold it."""
        found = super().settings()
        if self.input is not None and "featomic" in self.input.settings():
            found["featomic"] = self.input.settings()["featomic"]
        return found

    @property
    def cutoff(self) -> float:
        """Å; of the input, or what the job says of a module that takes atoms."""
        if self.input is not None:
            return self.input.cutoff
        given = self._options["cutoff"]
        return math.inf if given is None else float(given)

    @property
    def reads_rows(self) -> bool:
        """Whether the input is the user's rows."""
        return self.input is not None and self.input.reads_rows

    @cached_property
    def n_features(self) -> int:
        """Number of columns: latent features, or weights."""
        if self._planned["n_features"] is not None or self.input is None:
            return super().n_features
        if self._options["layer"] is None:
            return sum(weight.numel() for weight in trainable(self._module).values())
        with computing():
            return int(self._of_inputs(np.zeros((1, self._n_inputs))).shape[1])

    @property
    def _n_inputs(self) -> int:
        assert self.input is not None
        if self._options["layout"] == "featomic":
            assert isinstance(self.input, Soap)
            return len(self.input.full_columns["column"])
        return self.input.n_features

    def _rows(self, pieces: list[Piece], centres: list[NDArray[np.int64]]) -> NDArray[np.float64]:
        if self.input is not None:
            inputs = self.input.compute(pieces)
            if self._options["layout"] == "featomic":
                assert isinstance(self.input, Soap)
                inputs = self.input.expand(inputs)
            return self._of_inputs(inputs)
        atoms = [atoms_of(piece) for piece in pieces]
        n_atoms = sum(map(len, atoms))
        layer = layer_of(self._module, self._options["layer"], _LAYER)
        with reporting(f"the network of {self._options['call']}"):
            rows = layer_rows(layer, lambda: self._module(atoms), n_atoms, _LAYER)
        return rows_of_centres(rows, pieces, centres)

    def _of_inputs(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        with computing() as torch, reporting(f"the network of {self._options['call']}"):
            if self._options["layer"] is None:
                return weight_rows(self._module, inputs)
            layer = layer_of(self._module, self._options["layer"], _LAYER)
            rows = []
            for start in range(0, len(inputs), CHUNK_ROWS):
                x = torch.from_numpy(np.ascontiguousarray(inputs[start : start + CHUNK_ROWS]))
                rows.append(layer_rows(layer, partial(self._module, x), len(x), _LAYER))
            return np.concatenate(rows)

    def compute_nbytes(
        self,
        n_environments: int,
        n_atoms: int | None = None,
        density: float = DENSITY,
        volume: float | None = None,
    ) -> int:
        """Bound the memory of a call of `compute`, see `dlpr.descriptors.Descriptor`."""
        if self.input is None:
            return super().compute_nbytes(n_environments, n_atoms, density, volume)
        read = self.input.compute_nbytes(n_environments, n_atoms, density, volume)
        rows = 3 * 8 * n_environments * (self.n_features + self._n_inputs)
        model = int(self._options["nbytes_per_atom"]) * min(CHUNK_ROWS, n_environments)
        return read + rows + model + 6 * CHUNK_NBYTES + self.process_nbytes


def _load_state(torch: Any, module: Any, path: Path) -> None:
    """Load weights into a module without running code of the file."""
    key = "descriptor.network.state"
    file_digest(path, key)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise JobError(
            f"{key}: {path} is no file of weights alone: it does not load with weights_only=True,"
            f" and nothing else is loaded ({type(error).__name__}). Write one with"
            " torch.save(module.state_dict(), path)."
        ) from error
    try:
        module.load_state_dict(state)
    except Exception as error:
        text = " ".join(str(error).split())
        raise JobError(
            f"{key}: {path} does not fit the module of descriptor.network.call: {text[:400]}."
            " Correct one of them."
        ) from error
