"""The way of the data: each step plans a stage and has it finished."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from importlib.metadata import version
from typing import TypeVar

from dlpr.core.blas import blas_kernel
from dlpr.descriptors import descriptor
from dlpr.engine import memory
from dlpr.engine.workspace import Workspace
from dlpr.errors import CorruptPartError, JobError, NumericsError
from dlpr.job import Job, SetSpec
from dlpr.stages import cholesky as cholesky_stage
from dlpr.stages import factor as factor_stage
from dlpr.stages import features as features_stage
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages import result as result_stage
from dlpr.stages import rigidity as rigidity_stage
from dlpr.stages import rows as rows_stage
from dlpr.stages.features import open_descriptor
from dlpr.stages.model import open_model
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.structures.files import expand
from dlpr.structures.selection import Where

BLOCK_NBYTES = 1 << 24
"""Bytes of features in one block, where the job does not say."""
TASK_BLOCKS = 2
"""Blocks in one task, where the job does not say."""
FEWEST_ENVIRONMENTS = 4096
"""Environments in one task at least."""
MENDINGS = 5
"""Damaged parts that one run replaces before it gives up."""

Step = TypeVar("Step")


class Pipeline:
    """The steps of one job in one workspace; each returns a finished stage.

    Parameters
    ----------
    job : Job
    workspace : Workspace
    kernel : str, optional
        BLAS library, version and kernel of the plan; by default those of this process.
    """

    def __init__(self, job: Job, workspace: Workspace, kernel: str | None = None) -> None:
        self.job, self.workspace = job, workspace
        self.kernel = kernel or blas_kernel()
        self._finished: dict[tuple[str, str], StageFolder] = {}

    def ingest(self, name: str) -> StageFolder:
        """Structures of a set: "train", or one of the job's test sets."""

        def make() -> StageFolder:
            index, selection = self.index(name), self.selection(name)
            plan = ingest_stage.plan(self.workspace.work, index, selection)
            structures = self.workspace.finish(f"structures of {name}", plan)
            ingest_stage.drop_scratch(index)
            ingest_stage.check_selection(structures, name)
            return structures

        return self._once("ingest", self.set_spec(name).model_dump_json(), make)

    def index(self, name: str) -> StageFolder:
        """Where the frames of a set's files are."""
        spec = self.set_spec(name)

        def make() -> StageFolder:
            work, full = self.workspace.work, spec.fingerprint == "full"
            plan = ingest_stage.plan_index(work, list(spec.files), self.job.base, full)
            return self.workspace.finish(f"index of {name}", plan)

        return self._once("index", spec.model_dump_json(), make)

    def selection(self, name: str) -> Json:
        """Which frames of a set to take, and how to read them."""
        spec = self.set_spec(name)
        return spec.model_dump(mode="json", exclude={"files", "fingerprint"})

    def _once(self, step: str, of: str, make: Callable[[], StageFolder]) -> StageFolder:
        """A step's stage, finished once per pipeline."""
        if (step, of) not in self._finished:
            self._finished[step, of] = make()
        return self._finished[step, of]

    def set_spec(self, name: str) -> SetSpec:
        """What the job says about a set; a test set of any name may be the training set."""
        spec = self.job.test.get(name, self.job.train)
        return spec if isinstance(spec, SetSpec) else self.job.train

    def set_names(self) -> list[str]:
        """The training set, and the test sets that have structures of their own."""
        return ["train", *(n for n, s in self.job.test.items() if isinstance(s, SetSpec))]

    def species(self) -> list[int]:
        """All species of the job: they fix the columns."""
        found: set[int] = set()
        for name in self.set_names():
            found |= set(open_structures(self.ingest(name)).species)
        return sorted(found)

    def feature_settings(self, name: str) -> Json:
        """Descriptor, storage and block sizes for a set."""
        calculator = descriptor(self.job.descriptor.model_dump(mode="json"), self.species())
        numerics = self.job.numerics
        block = numerics.block_environments or default_block(calculator.n_features)
        task = numerics.task_environments or default_task(block)
        return {
            "descriptor": calculator.settings(),
            "dtype": self.job.storage.dtype,
            "block_environments": block,
            "task_environments": -(-task // block) * block,
        }

    def featurize(self, name: str) -> StageFolder:
        """The feature store of a set."""
        work = self.workspace.work

        def make() -> StageFolder:
            settings = self.feature_settings(name)
            plan = features_stage.plan(work, self.ingest(name), settings)
            return self.workspace.finish(f"features of {name}", plan)

        return self._once("featurize", name, make)

    def rows(self) -> StageFolder:
        """The summed features of every training structure."""

        def make() -> StageFolder:
            if self.job.store_train_features:
                self.featurize("train")
            settings = self.feature_settings("train")
            plan = rows_stage.plan(self.workspace.work, self.ingest("train"), settings)
            return self.workspace.finish("rows", plan)

        return self._once("rows", "train", make)

    def fold(self, stage: str) -> StageFolder:
        """The partial Hessians ("hessian") or triangles ("triangle")."""
        model = self.model()
        of_rows = {name: model[name] for name in ("kind", "rows", "centre_species")}

        def make() -> StageFolder:
            work, numerics = self.workspace.work, self.numerics()
            plan = fold_stage.plan(work, stage, self.rows(), of_rows, numerics)
            return self.workspace.finish(stage, plan)

        return self._once("fold", stage, make)

    def factor(self) -> StageFolder:
        """The factored Hessian, by the job's solver or by the one that is accurate enough."""
        solver, model = self.job.solver, self.model()
        work, numerics = self.workspace.work, self.numerics()

        def by(of: StageFolder, solver: str) -> StageFolder:
            plan = factor_stage.plan(work, of, model, solver, numerics)
            return self.workspace.finish(f"factor of the {of.stage}", plan)

        def by_tiles() -> StageFolder:
            plan = cholesky_stage.plan(work, self.fold("hessian"), model, solver, numerics)
            return self.workspace.finish("factor of the tiles", plan)

        def make() -> StageFolder:
            form = self.form()
            self._require_memory(form)
            if form == "rows":
                return by(self.rows(), "dual")
            if solver != "qr" and (solver != "auto" or model["regularizer"] > 0.0):
                with suppress(NumericsError) if solver == "auto" else nullcontext():
                    found = by_tiles() if form == "tiles" else by(self.fold("hessian"), solver)
                    if not factor_stage.factor_facts(found)["refused"]:
                        return found
                self._require_memory("whole")
            return by(self.fold("triangle"), "qr")

        return self._once("factor", solver, make)

    def model(self) -> Json:
        """The job's model: its kind, and what the job says of it."""
        model: Json = self.job.model.spec.model_dump(mode="json")
        return {"kind": self.job.model.kind, **model}

    def form(self) -> str:
        """What the factor is made of: rows, a whole Hessian or tiles."""
        n_rows = open_structures(self.ingest("train")).n_structures
        n_columns = open_model(self.feature_settings("train"), self.model()).layout.n_columns
        regularizer, tile_columns = self.model()["regularizer"], self.job.numerics.tile_columns
        return fold_stage.form_of(self.job.solver, regularizer, n_rows, n_columns, tile_columns)

    def _require_memory(self, form: str) -> None:
        """Refuse, before anything is computed, what no worker could hold at the end."""
        features, numerics = self.feature_settings("train"), self.job.numerics
        calculator = open_descriptor(features["descriptor"])
        layout = open_model(features, self.model()).layout
        n_rows = open_structures(self.ingest("train")).n_structures
        size = memory.FactorSize(form, layout, n_rows, numerics.tile_columns)
        needs = [size.factorize_nbytes]
        if form != "rows":
            width = numerics.tile_columns if form == "tiles" else layout.n_columns
            needs.append(memory.fold_nbytes(layout.n_columns, width, numerics.fold_block_rows))
        for name in self.set_names():
            crowd = memory.crowd_of(self.ingest(name))
            block, task = features["block_environments"], features["task_environments"]
            needs.append(memory.rigidity_nbytes(calculator, size, block, task, crowd))
            needs.append(memory.result_nbytes(size, crowd.largest_frame, crowd.n_structures))
        self.workspace.executor.require(max(needs))

    def rigidity(self, name: str) -> StageFolder:
        """The rigidities of one set, in stored order."""
        structures, factor = self.ingest(name), self.factor()
        if self.job.store_test_features and isinstance(self.job.test[name], SetSpec):
            self.featurize(name)
        settings, numerics = self.feature_settings(name), self.numerics()
        plan = rigidity_stage.plan(self.workspace.work, structures, factor, settings, numerics)
        return self.workspace.finish(f"rigidity of {name}", plan)

    def result(self) -> StageFolder:
        """The result of every test set, published under the output folder.

        What is published is read back first, so that a damaged result is not taken for a whole one.
        """
        for name in self.set_names():  # a missing file shows before anything is computed
            expand(list(self.set_spec(name).files), self.job.base)
        sets = {name: self.rigidity(name) for name in sorted(self.job.test)}
        attributes = {"job": self.job.settings(), "versions": versions()}
        plan = result_stage.plan(self.workspace.work, sets, attributes)
        folder = self.workspace.finish("result", plan)
        result_stage.check(folder)
        result_stage.publish(folder, self.workspace.output)
        self.workspace.settle()
        return folder

    def notes(self) -> list[str]:
        """What a reader of the result should know about its input."""
        notes = []
        for name in self.set_names():
            structures = self.ingest(name)
            store = open_structures(structures)
            if store.n_repeats:
                notes.append(
                    f"{name}: {store.n_repeats} of {store.n_structures} structures repeat an "
                    f"earlier one exactly"
                )
            labelled = sum(r.facts["labels"]["energy"] for r in structures.receipts())
            if name == "train" and 0 < labelled < store.n_structures:
                notes.append(
                    f"train: {store.n_structures - labelled} of {store.n_structures} structures "
                    f"have no energy; all count as rows of the Hessian (where: has('...') selects)"
                )
        return notes

    def numerics(self) -> Json:
        """The numerical plan: what decides bits beside job and data."""
        numerics = self.job.numerics
        return {
            "threads": numerics.blas_threads,
            "factor_threads": numerics.factor_threads,
            "fold_block_rows": numerics.fold_block_rows,
            "tile_columns": numerics.tile_columns,
            "partials_nbytes": numerics.partials_budget,
            "kernel": self.kernel,
        }

    def mended(self, step: Callable[[], Step]) -> Step:
        """Do a step; where it meets a damaged part, have that part's task done again."""
        for _ in range(MENDINGS):
            try:
                return step()
            except CorruptPartError as error:
                self.workspace.mend(error)
                self._finished.clear()
        return step()


def check_job(job: Job) -> None:
    """Refuse, before anything is read or written, what a stage would refuse much later.

    Raises
    ------
    JobError
        For hyperparameters, a condition, a type map or a solver that cannot be used.
    """
    descriptor(job.descriptor.model_dump(mode="json"), [1])
    for name, spec in {"train": job.train, **job.test}.items():
        if not isinstance(spec, SetSpec):
            continue
        try:
            ingest_stage.reading_of(spec.model_dump(mode="json"))
            if spec.where:
                Where(spec.where)
        except JobError as error:
            place = "train" if spec is job.train else f"test.{name}"
            raise JobError(f"{place}.{error}") from None
    if job.solver == "cholesky" and job.model.spec.regularizer == 0.0:
        raise JobError(
            "solver: cholesky needs a regularizer above 0, model.linear.regularizer is 0. Correct "
            "one of them in the job file; solver: auto, qr and eigh work with 0."
        )


def default_block(n_features: int) -> int:
    """Environments in a block of about `BLOCK_NBYTES`: a power of two from 64 to 8192."""
    rows = max(64, min(8192, BLOCK_NBYTES // (8 * n_features)))
    return 1 << (rows.bit_length() - 1)


def default_task(block: int) -> int:
    """Environments in a task. Not a function of the set, which may grow."""
    return max(TASK_BLOCKS * block, FEWEST_ENVIRONMENTS)


def versions() -> Mapping[str, str]:
    """Versions of what computes the result."""
    packages = ("dlpr", "numpy", "scipy", "featomic", "ase", "zarr", "dask", "distributed")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
