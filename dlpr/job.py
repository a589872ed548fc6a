"""The job file: what to read, which descriptor and model, where to compute.

A field's description completes the sentence "needs ..."; without one its type does. `dlpr.job_text`
makes the messages, so that a new section or member of a choice is explained without further code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from dlpr.errors import JobError
from dlpr.job_text import explain, read_mapping, show
from dlpr.units import parse_bytes

_MEMORY_SHARE = 0.8  # of the machine, for all workers by default
_WITHOUT_INFLUENCE = frozenset({"output", "cluster"})


class _Section(BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _blank_is_default(cls, data: object) -> object:
        return {} if data is None else data


class _Choice(_Section):
    """A mapping with exactly one key, the kind; members are fields that default to None."""

    @model_validator(mode="before")
    @classmethod
    def _name_one(cls, data: object) -> object:
        data = {} if data is None else data
        if not isinstance(data, Mapping):
            return data
        if len(data) != 1 and not data.keys() - cls.model_fields.keys():
            raise ValueError(
                f"found {', '.join(map(str, data)) or 'nothing'}; "
                f"needs exactly one of: {', '.join(cls.model_fields)}"
            )
        return {kind: {} if spec is None else spec for kind, spec in data.items()}

    @pydantic.model_serializer(mode="wrap")
    def _dump_one(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {self.kind: handler(self)[self.kind]}

    @property
    def kind(self) -> str:
        """Name of the member that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def spec(self) -> Any:
        """The member that is given."""
        return getattr(self, self.kind)


def _refuse_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"found {show(value)}; needs a number")
    return value


def _check_set_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or not name.strip("."):
        raise ValueError("a set's name needs letters, digits and _ . - only (a group of a store)")
    if name.startswith("__") or name == "zarr.json":
        raise ValueError("this name is reserved by Zarr; rename the set")
    return name


def _list_one(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _check_distinct(value: object) -> object:
    if isinstance(value, Mapping):
        names = [str(key) for key in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"type {min(twice)} is given twice")
    return value


def _copy_plain(value: object) -> object:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"needs finite numbers, text, lists and mappings: {error}") from None


Text = Annotated[str, Field(min_length=1, description="text")]
Number = Annotated[float, BeforeValidator(_refuse_boolean), Field(ge=0)]
Count = Annotated[
    int, BeforeValidator(_refuse_boolean), Field(ge=1, description="a whole number >= 1")
]
CountOrNone = Annotated[Count | None, Field(description="a whole number >= 1, or nothing")]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(description="a size such as 4GiB")]
Files = Annotated[tuple[Text, ...], BeforeValidator(_list_one), Field(min_length=1)]
Symbol = Annotated[str, Field(pattern="^[A-Z][a-z]?$")]
TypeMap = Annotated[dict[Count, Symbol], BeforeValidator(_check_distinct)]
Plain = Annotated[dict[str, Any], BeforeValidator(_copy_plain)]
Label = Annotated[Text | None, Field(description="a name in the files, as text")]


class Keys(_Section):
    """Names of the labels in the files; None takes what ASE's reader recognizes."""

    energy: Label = None
    forces: Label = None
    stress: Label = None
    virial: Label = None


class Units(_Section):
    """Units of the files: keys of `dlpr.units.LENGTH_UNITS` and `dlpr.units.ENERGY_UNITS`."""

    length: Literal["angstrom", "nm", "bohr"] = "angstrom"
    energy: Literal["eV", "meV", "hartree", "rydberg", "kcal/mol", "kJ/mol"] = "eV"


class SetSpec(_Section):
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


class Descriptor(_Choice):
    """The descriptor's hyperparameters, verbatim; who computes it validates them."""

    soap: Plain | None = Field(default=None, description="a mapping of featomic's hyperparameters")


class Linear(_Section):
    """Ridge regression on the descriptor: rigidity.md sec. 2."""

    regularizer: Number = Field(description="a number >= 0, such as 1.0e-8")
    rows: Literal["mean", "sum", "sqrt"] = "mean"
    scale: Literal["rms", "none"] = "rms"
    centre_species: Literal["separate", "shared"] = "separate"


class Model(_Choice):
    """The feature map behind the descriptor."""

    linear: Linear | None = None


def _machine_cores() -> int:
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _machine_nbytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container's limit
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return physical


class Local(_Section):
    """Workers on this machine. 0 stands for a default that the machine fills in at once."""

    workers: Count = 0
    threads_per_worker: Count = 1
    memory_per_worker: Bytes = 0
    scratch: Text | None = None

    @model_validator(mode="after")
    def _fill_from_machine(self) -> Self:
        workers = self.workers or max(1, _machine_cores() // self.threads_per_worker)
        memory = self.memory_per_worker or int(_MEMORY_SHARE * _machine_nbytes()) // workers
        object.__setattr__(self, "workers", workers)
        object.__setattr__(self, "memory_per_worker", memory)
        return self


class Cluster(_Choice):
    """Where the work is done. It never changes a result."""

    local: Local | None = None


class Numerics(_Section):
    """All that can change a bit of a result; a function of the job alone, never of the machine."""

    blas_threads: Count = 1
    factor_threads: Count = 2
    fold_block_rows: Count = 256
    block_environments: CountOrNone = None
    task_environments: CountOrNone = None
    tile_columns: Count = 4096
    partials_budget: Bytes = 8 * 2**30


class Storage(_Section):
    """Features on disk."""

    dtype: Literal["float64", "float32"] = "float64"


def _tag_set(value: object) -> str:
    return "<word>" if isinstance(value, str) else "<set>"


SetName = Annotated[str, AfterValidator(_check_set_name)]
TestSet = Annotated[
    Annotated[SetSpec, pydantic.Tag("<set>")] | Annotated[Literal["train"], pydantic.Tag("<word>")],
    pydantic.Discriminator(_tag_set),
]


class Job(_Section):
    """A whole job. Make one with `load_job` or `Job.from_dict`, whose errors are for users."""

    output: Text = "results"
    train: SetSpec
    test: dict[SetName, TestSet] = Field(
        min_length=1,
        description="a set under each name: a mapping with files, or the word train",
    )
    descriptor: Descriptor = Field(description="a mapping with one of: soap")
    model: Model = Field(description="a mapping with one of: linear")
    solver: Literal["auto", "cholesky", "qr", "eigh", "dual"] = "auto"
    store_train_features: bool = True
    store_test_features: bool = False
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

    def resolved(self) -> dict[str, Any]:
        """The job with every default filled in, ready for JSON; `from_dict` takes it back."""
        return self.model_dump(mode="json")

    def settings(self) -> dict[str, Any]:
        """`resolved` without output and cluster: all that may influence a result."""
        return {k: v for k, v in self.resolved().items() if k not in _WITHOUT_INFLUENCE}


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
