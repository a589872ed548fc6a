"""The descriptor of a job: featomic's, the user's own, or a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from dlpr.job.sections import (
    Bytes,
    Choice,
    CountOrNone,
    Plain,
    Positive,
    Section,
    SetName,
    Text,
)


def _absolute(base: Path, text: str) -> str:
    return str(base / Path(text).expanduser())


class PythonCall(Section):
    """A function of the user that gives features: code that is run as it is."""

    call: str = Field(pattern=r"^[\w.]+:\w+$", description="text such as module:function")
    options: Plain = Field(default={}, description="a mapping of the function's keywords")
    cutoff: Positive | None = Field(
        default=None, description="a distance > 0 in Å, or nothing: the function needs all atoms"
    )
    n_features: CountOrNone = None
    nbytes_per_atom: Bytes = Field(
        default=2**16, description="a size such as 1MiB: memory of the function for each atom"
    )


class Rows(Choice):
    """One descriptor whose rows a network may take; who computes it validates its settings."""

    soap: Plain | None = Field(default=None, description="a mapping of featomic's hyperparameters")
    radial: Plain | None = Field(
        default=None, description="a mapping of featomic's hyperparameters"
    )
    lode: Plain | None = Field(default=None, description="a mapping of featomic's hyperparameters")
    features: Annotated[dict[SetName, Text], Field(min_length=1)] | None = Field(
        default=None, description="a file for each set: {train: train.npy, film: film.npy}"
    )
    python: PythonCall | None = Field(default=None, description="a mapping with call")

    def of_set(self, name: str, base: Path) -> dict[str, Any]:
        """The section as `dlpr.descriptors.descriptor` takes it for one set, paths absolute."""
        if self.features is not None:
            return {"features": {"file": _absolute(base, self.features[name])}}
        section = self.model_dump(mode="json")
        if self.python is not None:
            section["python"]["folder"] = str(base)
        return section

    def files(self, place: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Users' files of features, by the key of the job that has them."""
        if self.features is not None:
            yield f"{place}.features", self.features


class Network(Section):
    """A torch module that a function of the user builds: code that is run as it is."""

    call: str = Field(pattern=r"^[\w.]+:\w+$", description="text such as module:function")
    options: Plain = Field(default={}, description="a mapping of the function's keywords")
    state: Text | None = Field(default=None, description="a file of weights, torch.save's")
    input: Rows | None = Field(
        default=None,
        description="a mapping with one of: soap, radial, lode, features, python; or nothing: the "
        "module takes a list of ase.Atoms",
    )
    layout: Literal["distinct", "featomic"] = "distinct"
    layer: Text | None = Field(
        default=None, description="the name of a layer, or nothing: derivatives by all weights"
    )
    cutoff: Positive | None = Field(
        default=None, description="a distance > 0 in Å, or nothing: the module needs all atoms"
    )
    nbytes_per_atom: Bytes = Field(
        default=2**20, description="a size such as 1MiB: memory of the module for each atom"
    )

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Network:
        if self.input is None and self.layer is None:
            raise ValueError(
                "needs a layer, or an input: derivatives by all weights are those of a network on "
                "rows"
            )
        if self.input is not None and self.cutoff is not None:
            raise ValueError("cutoff is of a module that takes atoms; here the input has its own")
        return self


class Metatomic(Section):
    """An output of an exported metatomic model."""

    file: Text = Field(description="the file of an exported model")
    output: Text = "mtt::aux::energy_last_layer_features"
    extensions: Text | None = Field(default=None, description="a folder of TorchScript extensions")
    nbytes_per_atom: Bytes = Field(
        default=4 * 2**20, description="a size such as 4MiB: memory of the model for each atom"
    )


class Mace(Section):
    """A MACE model, which is a pickled module."""

    file: Text = Field(description="the file of a MACE model")
    trust: Literal[True] = Field(
        description="true, if you trust the file: it is a pickle, and loading it runs code that it "
        "names"
    )
    layer: Text | None = Field(
        default=None, description="the name of a layer, or nothing: invariant node features"
    )
    nbytes_per_atom: Bytes = Field(
        default=4 * 2**20, description="a size such as 4MiB: memory of the model for each atom"
    )


class Part(Rows):
    """One descriptor, a network among them."""

    network: Network | None = Field(default=None, description="a mapping with call")
    metatomic: Metatomic | None = Field(default=None, description="a mapping with file")
    mace: Mace | None = Field(default=None, description="a mapping with file and trust")

    def of_set(self, name: str, base: Path) -> dict[str, Any]:
        """The section as `dlpr.descriptors.descriptor` takes it for one set, paths absolute."""
        section = super().of_set(name, base)
        for key in ("state", "file", "extensions"):
            for one in (section.get(kind) for kind in ("network", "metatomic", "mace")):
                if one is not None and one.get(key) is not None:
                    one[key] = _absolute(base, one[key])
        if self.network is not None:
            section["network"]["folder"] = str(base)
            if self.network.input is not None:
                section["network"]["input"] = self.network.input.of_set(name, base)
        return section

    def files(self, place: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Users' files of features, by the key of the job that has them."""
        yield from super().files(place)
        if self.network is not None and self.network.input is not None:
            yield from self.network.input.files(f"{place}.network.input")


class Descriptor(Part):
    """One descriptor, or several side by side, each a component of its own."""

    parts: Annotated[dict[SetName, Part], Field(min_length=1)] | None = Field(
        default=None, description="a mapping of a name to a descriptor for each part"
    )

    def of_set(self, name: str, base: Path) -> dict[str, Any]:
        """The section as `dlpr.descriptors.descriptor` takes it for one set, paths absolute."""
        if self.parts is None:
            return super().of_set(name, base)
        return {"parts": {key: part.of_set(name, base) for key, part in self.parts.items()}}

    def files(self, place: str) -> Iterator[tuple[str, dict[str, str]]]:
        """Users' files of features, by the key of the job that has them."""
        yield from super().files(place)
        for key, part in (self.parts or {}).items():
            yield from part.files(f"{place}.parts.{key}")

    def check_sets(self, names: list[str]) -> None:
        """Refuse users' features that have not one file for each set that has structures."""
        for place, files in self.files("descriptor"):
            if sorted(files) != sorted(names):
                raise ValueError(
                    f"{place}: found files for {', '.join(files)}; needs one for each set that has"
                    f" structures: {', '.join(names)}"
                )
