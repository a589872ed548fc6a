"""The way of the data: each step plans a stage and has it finished."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from dlpr.core.blas import blas_kernel
from dlpr.core.rows import Layout
from dlpr.descriptors import descriptor
from dlpr.engine import factorization, regularizer_choice
from dlpr.engine.blocks import planned_blocks
from dlpr.engine.check import check_columns, check_features, check_training_set
from dlpr.engine.cross_validation import publish, validated
from dlpr.engine.probe import versions
from dlpr.engine.refit import converged_fit
from dlpr.engine.verify import check_whole
from dlpr.engine.workspace import Workspace
from dlpr.errors import CorruptPartError, JobError
from dlpr.job import Job, Keys, SetSpec
from dlpr.job.loss import Loss
from dlpr.stages import derivatives as derivatives_stage
from dlpr.stages import features as features_stage
from dlpr.stages import fold as fold_stage
from dlpr.stages import forces as forces_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages import references as references_stage
from dlpr.stages import result as result_stage
from dlpr.stages import rigidity as rigidity_stage
from dlpr.stages import rows as rows_stage
from dlpr.stages.derivatives import LABEL
from dlpr.stages.model import open_model
from dlpr.stages.reweight import shapes_of
from dlpr.stages.sources import most_rows
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.structures.files import expand

REFERENCES = "references of the kernel"
"""Name of the set of structures that a kernel's references come from; no set of a job has it."""
MENDINGS = 5
"""Times that one run replaces one damaged part before it gives up."""

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
        self._known: dict[tuple[str, str], Any] = {}

    def ingest(self, name: str) -> StageFolder:
        """Structures of a set: "train", or one of the job's test sets."""

        def make() -> StageFolder:
            index, selection = self.index(name), self.selection(name)
            plan = ingest_stage.plan(self.workspace.work, index, selection)
            structures = self.workspace.finish(f"structures of {name}", plan)
            ingest_stage.drop_scratch(index)
            ingest_stage.check_selection(structures, name)
            if name == "train":
                check_training_set(self.job, structures)
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
        spec, key = self.set_spec(name), self.job.loss.structure_weight
        found: Json = spec.model_dump(mode="json", exclude={"files", "fingerprint"})
        return {**found, "weight": key} if name == "train" and key else found

    def _once(self, step: str, of: str, make: Callable[[], Step]) -> Step:
        """What a step makes, e.g. a finished stage: made once per pipeline, unless data rot."""
        if (step, of) not in self._known:
            self._known[step, of] = make()
        found: Step = self._known[step, of]
        return found

    def set_spec(self, name: str) -> SetSpec:
        """What the job says about a set; a test set of any name may be the training set."""
        if name == REFERENCES:  # read as the training set is
            files = self.job.model.spec.references.file
            other = {"files": files, "where": None, "group_by": None, "keys": Keys()}
            return self.job.train.model_copy(update=other)
        spec = self.job.test.get(name, self.job.train)
        return spec if isinstance(spec, SetSpec) else self.job.train

    def set_names(self) -> list[str]:
        """The training set, and the test sets that have structures of their own."""
        names = ["train", *(n for n, s in self.job.test.items() if isinstance(s, SetSpec))]
        kernel = self.job.model.kernel
        return [*names, REFERENCES] if kernel and kernel.references.file else names

    def species(self) -> list[int]:
        """All species of the job: they fix the columns."""

        def make() -> list[int]:
            stores = (open_structures(self.ingest(name)) for name in self.set_names())
            return sorted({number for store in stores for number in store.species})

        return self._once("species", "all sets", make)

    def feature_settings(self, name: str) -> Json:
        """Descriptor, storage and block sizes for a set."""

        def make() -> Json:
            calculator = descriptor(self.job.descriptor_of(name), self.species())
            check_features(self, name)
            block, task = planned_blocks(self.job.numerics, calculator.n_features)
            return {
                "descriptor": calculator.settings(),
                "dtype": self.job.storage.dtype,
                "block_environments": block,
                "task_environments": task,
            }

        return self._once("settings of features", name, make)

    def featurize(self, name: str) -> StageFolder:
        """The feature store of a set."""

        def make() -> StageFolder:
            settings = self.feature_settings(name)
            plan = features_stage.plan(self.workspace.work, self.ingest(name), settings)
            return self.workspace.finish(f"features of {name}", plan)

        return self._once("featurize", name, make)

    def planned_rows(self, name: str = "train") -> StageFolder:
        """The rows of a set's energies as planned: the training set's say what the columns are."""

        def make() -> StageFolder:
            work, settings = self.workspace.work, self.feature_settings(name)
            mapping = {"kind": self.job.model.kind, **self.job.model.spec.mapping()}
            structures, numerics = self.ingest(name), self.numerics()
            if not self.job.model.kernel:
                return rows_stage.plan(work, structures, settings, mapping)
            references = self.references()
            return rows_stage.plan(work, structures, settings, mapping, references, numerics)

        return self._once("plan of rows", name, make)

    def references(self) -> StageFolder:
        """The reference environments of a kernel."""
        spec = self.job.model.spec
        name = "train" if spec.references.file is None else REFERENCES

        def make() -> StageFolder:
            if spec.references.count is not None:  # to choose, features are read again and again
                self.featurize(name)
            kernel = {**spec.mapping(), "references": spec.references.model_dump(mode="json")}
            structures, features = self.ingest(name), self.feature_settings(name)
            plan = references_stage.plan(
                self.workspace.work, structures, features, kernel, self.numerics()
            )
            return self.workspace.finish("references", plan)

        return self._once("references", name, make)

    def rows(self, name: str = "train") -> StageFolder:
        """The summed features of every structure of a set."""

        def make() -> StageFolder:
            self._store_features(name)
            role = "rows" if name == "train" else f"rows of {name}"
            return self.workspace.finish(role, self.planned_rows(name))

        return self._once("rows", name, make)

    def _store_features(self, name: str) -> None:
        """Finish the feature store of a set whose features the job wants stored."""
        if name == "train":
            is_stored = self.job.store_train_features
        else:
            own = isinstance(self.job.test[name], SetSpec)
            is_stored = own and self.job.store_test_features
        if is_stored:
            self.featurize(name)

    def targets(self) -> dict[str, StageFolder]:
        """The rows of all that the loss has, by the names that `dlpr.stages.sources` knows."""
        kinds = self.derivatives()

        def make() -> StageFolder:
            plan = derivatives_stage.plan(self.workspace.work, self.planned_rows(), kinds)
            return self.workspace.finish(f"rows of {' and '.join(kinds)}", plan)

        found = {"rows": self.rows()}
        if kinds:
            found["derivatives"] = self._once("derivatives", "train", make)
        return found

    def kinds(self) -> list[str]:
        """Kinds of targets in the loss."""
        return self.job.loss.kinds

    def derivatives(self) -> list[str]:
        """Kinds of derivatives that they are made of."""
        return list(dict.fromkeys(LABEL[kind] for kind in self.kinds() if kind in LABEL))

    def loss(self) -> Loss:
        """The job's loss in lambdas."""
        store = open_structures(self.ingest("train"))
        return self.job.loss.translated(store.n_structures, store.n_environments)

    def fold(self, stage: str, subsample: Json | None = None, of: str = "") -> StageFolder:
        """The partial Hessians ("hessian") or triangles ("triangle"), rows weighed by l''; or those
        of the members of a committee, or of the folds of a cross-validation, as ``of`` says."""
        role = f"{stage} of the {of}" if of else stage

        def make() -> StageFolder:
            plan = self.planned_fold(stage, "second", self.fit(), subsample)
            return self.workspace.finish(role, plan)

        return self._once("fold", role, make)

    def planned_fold(
        self, stage: str, by: str, fit: dict[str, StageFolder], subsample: Json | None = None
    ) -> StageFolder:
        """A fold of the rows of the loss, weighed at a fit if there is one."""
        model, numerics, inputs = self.model(), self.numerics(), self.targets()
        of_rows = {name: model[name] for name in ("rows", "centre_species")}
        if self.form() != "tiles":
            numerics["tile_columns"] = self.layout().n_columns + 1
        loss, reweight = self.loss(), None
        if fit:
            shapes = shapes_of(loss.model_dump(mode="json"), str(self.job.base))
            reweight = {"by": by, "shapes": shapes}
        return fold_stage.plan(
            *(self.workspace.work, stage, {**inputs, **fit}, self.kinds(), of_rows, numerics),
            *(subsample, loss.off_diagonals, reweight),
        )

    def fit(self) -> dict[str, StageFolder]:
        """The fit of a loss that is not squared, as an input; nothing: the factor says it."""
        if not self.job.loss.is_reweighted:
            return {}
        return {"fit": self._once("fit", "train", lambda: converged_fit(self))}

    def factor(self) -> StageFolder:
        """The factored Hessian, by the job's solver or by the one that is accurate enough."""
        return self._once("factor", self.job.solver, lambda: factorization.chosen_factor(self))

    def committee(self) -> StageFolder | None:
        """The weights of the committee's members, if the job has one."""
        if self.job.committee is None:
            return None
        return self._once("committee", "train", lambda: factorization.members(self))

    def cross_validation(self) -> StageFolder | None:
        """What fits without them say of the training structures, if the job asks for it."""
        if self.job.cross_validation is None:
            return None
        return self._once("cross-validation", "train", lambda: validated(self))

    def scan(self) -> StageFolder:
        """The regularizers that are tried where the job leaves the choice to the run."""
        return self._once("scan", "train", lambda: regularizer_choice.chosen_scan(self))

    def model(self) -> Json:
        """The job's model: its kind, and what the job says of it."""
        model: Json = self.job.model.spec.model_dump(mode="json")
        return {"kind": self.job.model.kind, **model}

    def layout(self) -> Layout:
        """The columns that are folded, but for the target: the model's, and energies of atoms."""
        return open_model(self.planned_rows(), self.model()).folded

    def n_columns(self) -> int:
        """Columns of the model itself."""
        model = self.model()
        constant = float("composition" in model["baseline"])
        return open_model(self.planned_rows(), model, constant).layout.n_columns

    def form(self) -> str:
        """What the factor is made of: rows, a whole Hessian or tiles."""
        n_rows, n_columns = self.n_rows(), self.n_columns()
        if self.job.loss.is_reweighted:
            check_columns(n_columns, self.job.numerics.tile_columns)
        form = self.form_of(n_rows, n_columns)
        if form == "rows" and n_rows > n_columns:
            raise JobError(
                f"solver: dual needs no more rows than columns; this job has {n_rows} rows and "
                f"{n_columns} columns. Use solver: auto."
            )
        return form

    def form_of(self, n_rows: int, n_columns: int) -> str:
        """The form for so many rows, and columns of the model itself."""
        if self.job.loss.is_reweighted:
            return "whole"
        least, tile_columns = self.job.model.spec.least_regularizer, self.job.numerics.tile_columns
        return fold_stage.form_of(self.job.solver, least, n_rows, n_columns, tile_columns)

    def n_rows(self) -> int:
        """Rows of the loss, at most."""
        store = open_structures(self.ingest("train"))
        return most_rows(self.kinds(), store.n_structures, store.n_environments)

    def rigidity(self, name: str) -> StageFolder:
        """The rigidities of one set, in stored order."""

        def make() -> StageFolder:
            structures, factor, committee = self.ingest(name), self.factor(), self.committee()
            self._store_features(name)
            settings, numerics = self.feature_settings(name), self.numerics()
            plan = rigidity_stage.plan(
                self.workspace.work, structures, factor, settings, numerics, committee
            )
            return self.workspace.finish(f"rigidity of {name}", plan)

        return self._once("rigidity", name, make)

    def forces(self, name: str) -> StageFolder:
        """The rigidities of the forces of one set, in stored order."""
        structures, factor = self.ingest(name), self.factor()
        settings, numerics = self.feature_settings(name), self.numerics()
        plan = forces_stage.plan(self.workspace.work, structures, factor, settings, numerics)
        return self.workspace.finish(f"forces of {name}", plan)

    def result(self) -> StageFolder:
        """The result of every test set, published under the output folder.

        Every byte of what is published is held against its checksum first, also where nothing has
        changed: a damaged result is not taken for a whole one.
        """
        for name in self.set_names():  # a missing file shows before anything is computed
            expand(list(self.set_spec(name).files), self.job.base)
        sets = {name: self.rigidity(name) for name in sorted(self.job.test)}
        with_forces = sets if self.job.test_forces else ()
        forces = {name: self.forces(name) for name in with_forces}
        attributes = {
            "job": self.job.settings(),
            "versions": versions(),
            **regularizer_choice.record(self),
        }
        validation = self.cross_validation()
        plan = result_stage.plan(self.workspace.work, sets, forces, attributes)
        folder = self.workspace.finish("result", plan)
        check_whole(folder)
        result_stage.publish(folder, self.workspace.output)
        publish(validation, self.workspace.output)
        self.workspace.settle()
        return folder

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
        met: Counter[tuple[str, int]] = Counter()
        while True:
            try:
                return step()
            except CorruptPartError as error:
                met[error.folder, error.task] += 1
                if met[error.folder, error.task] > MENDINGS:
                    raise
                self.workspace.mend(error)
                self._known.clear()
