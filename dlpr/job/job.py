"""The job: what to read, which descriptor and model, where to compute."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field

from dlpr.errors import JobError
from dlpr.job.cluster import Cluster, Local
from dlpr.job.committee import Committee
from dlpr.job.cross_validation import CrossValidation
from dlpr.job.descriptor import Descriptor
from dlpr.job.loss import Loss
from dlpr.job.model import Model
from dlpr.job.presets import PRESETS
from dlpr.job.sections import (
    Bytes,
    Count,
    CountOrNone,
    Files,
    Label,
    Number,
    Section,
    SetName,
    Text,
    TypeMap,
)
from dlpr.job.text import explain, read_mapping

_WITHOUT_INFLUENCE = frozenset({"output", "cluster", "cross_validation"})


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


class Computation(Section):
    """What is computed: all that a job says, but for where its result goes."""

    train: SetSpec
    test: dict[SetName, TestSet] = Field(
        min_length=1,
        description="a set under each name: a mapping with files, or the word train",
    )
    descriptor: Descriptor = Field(
        description="a mapping with one of: soap, radial, lode, features, python, network, "
        "metatomic, mace, parts"
    )
    model: Model = Field(description="a mapping with one of: linear, kernel")
    loss: Loss = Loss()
    solver: Literal["auto", "cholesky", "qr", "eigh", "dual"] = "auto"
    committee: Committee | None = Field(
        default=None, description="nothing, or a mapping with one of: subsample, posterior"
    )
    cross_validation: CrossValidation | None = Field(
        default=None, description="nothing, or a mapping such as {folds: 5, by: structure}"
    )
    store_train_features: bool = True
    store_test_features: bool = False
    test_forces: bool = False
    storage: Storage = Storage()
    cluster: Cluster = Field(
        default_factory=lambda: Cluster(local=Local()), description="a mapping with one of: local"
    )
    numerics: Numerics = Numerics()

    kind_of_file: ClassVar[str] = "job"
    _base: Path = pydantic.PrivateAttr(default_factory=Path.cwd)

    @pydantic.field_validator("test")
    @classmethod
    def _keep_train(cls, sets: dict[str, SetSpec | str]) -> dict[str, SetSpec | str]:
        if isinstance(sets.get("train"), SetSpec):
            raise ValueError("the set train is the training set; give these files another name")
        return sets

    @pydantic.model_validator(mode="after")
    def _features_for_all(self) -> Self:
        sets = [name for name, spec in self.test.items() if isinstance(spec, SetSpec)]
        self.descriptor.check_sets(["train", *sets])
        return self

    @pydantic.model_validator(mode="after")
    def _rows_of_preset(self) -> Self:
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
    def _validation_set(self) -> Self:
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
    def from_dict(cls, data: Mapping[str, Any], base: str | os.PathLike[str] = ".") -> Self:
        """Validate ``data``, in the shape of a file whose folder is ``base``.

        Raises
        ------
        JobError
            One message with every problem, a line each.
        """
        try:
            found = cls.model_validate(data)
        except pydantic.ValidationError as error:
            title = f"the {cls.kind_of_file} cannot be used:"
            raise JobError("\n  ".join([title, *explain(cls, error)])) from None
        found._base = Path(base).absolute()
        return found

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises
        ------
        JobError
            If there is no such file, or it is not YAML, or anything in it cannot be used.
        """
        data = read_mapping(path)
        try:
            return cls.from_dict(data, base=Path(path).parent)
        except JobError as error:
            raise JobError(f"{path}: {error}") from None

    def path(self, text: str) -> Path:
        """A path of the job (output, scratch, a file pattern), made absolute."""
        return self._base / Path(text).expanduser()

    def descriptor_of(self, name: str) -> dict[str, Any]:
        """The section ``descriptor`` of one set: the training set, or a test set with files."""
        return self.descriptor.of_set(name, self._base)

    def resolved(self) -> dict[str, Any]:
        """The job with every default filled in, ready for JSON; `from_dict` takes it back."""
        return self.model_dump(mode="json")


class Job(Computation):
    """A whole job. Make one with `load_job` or `Job.from_dict`, whose errors are for users."""

    output: Text = "results"

    def settings(self) -> dict[str, Any]:
        """`resolved` without output, cluster, cross-validation and what is not asked for: all that
        may influence a rigidity."""
        found = self.resolved().items()
        return {k: v for k, v in found if k not in _WITHOUT_INFLUENCE and v is not None}


def load_job(path: str | os.PathLike[str]) -> Job:
    """Read a job file; errors as of `Job.load`."""
    return Job.load(path)
