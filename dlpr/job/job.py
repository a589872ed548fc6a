"""The job: what to read, which descriptor and model, where to compute."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

from dlpr.errors import JobError
from dlpr.job.cluster import Cluster, Local
from dlpr.job.committee import Committee
from dlpr.job.loss import Loss
from dlpr.job.model import Model
from dlpr.job.presets import PRESETS
from dlpr.job.sections import (
    Bytes,
    Choice,
    Count,
    CountOrNone,
    Files,
    Label,
    Number,
    Plain,
    Positive,
    Section,
    Text,
    TypeMap,
)
from dlpr.job.text import explain, read_mapping

_WITHOUT_INFLUENCE = frozenset({"output", "cluster"})


def _check_set_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not name.strip("."):
        raise ValueError("a set's name needs letters, digits and _ . - only (a group of a store)")
    if name.startswith("__") or name == "zarr.json":
        raise ValueError("this name is reserved by Zarr; rename the set")
    return name


SetName = Annotated[str, AfterValidator(_check_set_name)]


class Keys(Section):
    """Names of the labels in the files; None takes what ASE's reader recognizes."""

    energy: Label = None
    forces: Label = None
    stress: Label = None
    virial: Label = None


class Units(Section):
    """Units of the files: keys of `dlpr.units.LENGTH_UNITS` and `dlpr.units.ENERGY_UNITS`."""

    length: Literal["angstrom", "nm", "bohr"] = "angstrom"
    energy: Literal["eV", "meV", "hartree", "rydberg", "kcal/mol", "kJ/mol"] = "eV"


class SetSpec(Section):
    """One set of structures."""

    files: Files = Field(description="a file, a glob such as data/*.xyz, or a list of them")
    group_by: Label = None
    where: Text | None = Field(
        default=None, description="a condition as text, such as 'density > 2.9'"
    )
    keys: Keys = Keys()
    units: Units = Units()
    type_map: TypeMap = Field(
        default={}, description="whole numbers, each followed by a symbol: {1: Si}"
    )
    fingerprint: Literal["quick", "full"] = "quick"
    minimum_distance: Number = Field(default=0.1, description="a distance >= 0 in Å")


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


class Part(Choice):
    """One descriptor; who computes it validates its hyperparameters."""

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
            return {"features": {"file": str(base / Path(self.features[name]).expanduser())}}
        section = self.model_dump(mode="json")
        if self.python is not None:
            section["python"]["folder"] = str(base)
        return section


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

    def check_sets(self, names: list[str]) -> None:
        """Refuse users' features that have not one file for each set that has structures."""
        parts: dict[str, Part] = {"descriptor": self}
        parts |= {f"descriptor.parts.{key}": part for key, part in (self.parts or {}).items()}
        for place, part in parts.items():
            if part.features is not None and sorted(part.features) != sorted(names):
                raise ValueError(
                    f"{place}.features: found files for {', '.join(part.features)}; needs one for"
                    f" each set that has structures: {', '.join(names)}"
                )


class Numerics(Section):
    """All that can change a bit of a result; a function of the job alone, never of the machine."""

    blas_threads: Count = 1
    factor_threads: Count = 2
    fold_block_rows: Count = 256
    block_environments: CountOrNone = None
    task_environments: CountOrNone = None
    tile_columns: Count = 4096
    partials_budget: Bytes = 8 * 2**30


class Storage(Section):
    """Features on disk."""

    dtype: Literal["float64", "float32"] = "float64"


def _tag_set(value: object) -> str:
    return "<word>" if isinstance(value, str) else "<set>"


TestSet = Annotated[
    Annotated[SetSpec, pydantic.Tag("<set>")] | Annotated[Literal["train"], pydantic.Tag("<word>")],
    pydantic.Discriminator(_tag_set),
]


class Job(Section):
    """A whole job. Make one with `load_job` or `Job.from_dict`, whose errors are for users."""

    output: Text = "results"
    train: SetSpec
    test: dict[SetName, TestSet] = Field(
        min_length=1,
        description="a set under each name: a mapping with files, or the word train",
    )
    descriptor: Descriptor = Field(
        description="a mapping with one of: soap, radial, lode, features, python, parts"
    )
    model: Model = Field(description="a mapping with one of: linear, kernel")
    loss: Loss = Loss()
    solver: Literal["auto", "cholesky", "qr", "eigh", "dual"] = "auto"
    committee: Committee | None = Field(
        default=None, description="nothing, or a mapping with one of: subsample, posterior"
    )
    store_train_features: bool = True
    store_test_features: bool = False
    test_forces: bool = False
    storage: Storage = Storage()
    cluster: Cluster = Field(
        default_factory=lambda: Cluster(local=Local()), description="a mapping with one of: local"
    )
    numerics: Numerics = Numerics()

    _base: Path = pydantic.PrivateAttr(default_factory=Path.cwd)

    @pydantic.field_validator("test")
    @classmethod
    def _keep_train(cls, sets: dict[str, SetSpec | str]) -> dict[str, SetSpec | str]:
        if isinstance(sets.get("train"), SetSpec):
            raise ValueError("the set train is the training set; give these files another name")
        return sets

    @pydantic.model_validator(mode="after")
    def _features_for_all(self) -> Job:
        sets = [name for name, spec in self.test.items() if isinstance(spec, SetSpec)]
        self.descriptor.check_sets(["train", *sets])
        return self

    @pydantic.model_validator(mode="after")
    def _rows_of_preset(self) -> Job:
        preset, model = self.loss.preset, self.model.spec
        if preset is None or not {"energy", "virial"} & set(self.loss.kinds):
            return self
        if model.rows != preset.rows:
            name = next(name for name in PRESETS if getattr(self.loss, name) is not None)
            raise ValueError(
                f"loss.{name} is a loss of energies with rows: {preset.rows} (see README), and "
                f"model.{self.model.kind}.rows is {model.rows}; needs {preset.rows}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _validation_set(self) -> Job:
        scan = self.model.spec.scan
        if scan and self.loss.is_reweighted:
            raise ValueError(
                f"model.{self.model.kind}.regularizer: a scan fits squared residuals, and loss has "
                f"another shape for {' and '.join(self.loss.reweighted)}; needs a number, or the "
                f"squared loss"
            )
        found = self.test.get(scan.on) if scan else None
        if scan and (not isinstance(found, SetSpec) or found == self.train):
            known = [
                name
                for name, spec in self.test.items()
                if isinstance(spec, SetSpec) and spec != self.train
            ]
            trained = "the training set, whose errors always want the smallest regularizer"
            what = trained if scan.on == "train" or found else "no set of this job"
            raise ValueError(
                f"model.{self.model.kind}.regularizer.on: {scan.on!r} is {what}; needs a test set "
                f"that takes no part in the fit. This job has: {', '.join(known) or 'none'}"
            )
        return self

    @property
    def base(self) -> Path:
        """Absolute folder that relative paths of the job start from."""
        return self._base

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], base: str | os.PathLike[str] = ".") -> Job:
        """Validate ``data``, in the shape of a job file whose folder is ``base``.

        Raises
        ------
        JobError
            One message with every problem, a line each.
        """
        try:
            job = cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise JobError("\n  ".join(["the job cannot be used:", *explain(cls, error)])) from None
        job._base = Path(base).absolute()
        return job

    def path(self, text: str) -> Path:
        """A path of the job (output, scratch, a file pattern), made absolute."""
        return self._base / Path(text).expanduser()

    def descriptor_of(self, name: str) -> dict[str, Any]:
        """The section ``descriptor`` of one set: the training set, or a test set with files."""
        return self.descriptor.of_set(name, self._base)

    def resolved(self) -> dict[str, Any]:
        """The job with every default filled in, ready for JSON; `from_dict` takes it back."""
        return self.model_dump(mode="json")

    def settings(self) -> dict[str, Any]:
        """`resolved` without output, cluster and what is not asked for: all that may influence a
        result."""
        found = self.resolved().items()
        return {k: v for k, v in found if k not in _WITHOUT_INFLUENCE and v is not None}


def load_job(path: str | os.PathLike[str]) -> Job:
    """Read a job file.

    Raises
    ------
    JobError
        If there is no such file, or it is not YAML, or anything in it cannot be used.
    """
    data = read_mapping(path)
    try:
        return Job.from_dict(data, base=Path(path).parent)
    except JobError as error:
        raise JobError(f"{path}: {error}") from None
