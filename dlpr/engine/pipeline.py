"""The way of the data: each step plans a stage and has it finished."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import TypeVar

from dlpr.core.blas import blas_kernel
from dlpr.core.kernel import CUT
from dlpr.core.rows import Layout
from dlpr.descriptors import Descriptor, check_sets, descriptor
from dlpr.engine import memory
from dlpr.engine.blocks import default_block, default_task
from dlpr.engine.check import check_training_set
from dlpr.engine.events import Event
from dlpr.engine.probe import versions
from dlpr.engine.workspace import Workspace
from dlpr.errors import CorruptPartError, JobError, NumericsError, ResourceError
from dlpr.job import Job, Keys, SetSpec
from dlpr.stages import cholesky as cholesky_stage
from dlpr.stages import derivatives as derivatives_stage
from dlpr.stages import factor as factor_stage
from dlpr.stages import features as features_stage
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages import references as references_stage
from dlpr.stages import result as result_stage
from dlpr.stages import rigidity as rigidity_stage
from dlpr.stages import rows as rows_stage
from dlpr.stages.features import open_descriptor
from dlpr.stages.model import open_map, open_model
from dlpr.stages.sources import kinds_of
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder
from dlpr.structures.files import expand

REFERENCES = "references of the kernel"
"""Name of the set of structures that a kernel's references come from; no set of a job has it."""
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
        spec = self.set_spec(name)
        return spec.model_dump(mode="json", exclude={"files", "fingerprint"})

    def _once(self, step: str, of: str, make: Callable[[], StageFolder]) -> StageFolder:
        """A step's stage, finished once per pipeline."""
        if (step, of) not in self._finished:
            self._finished[step, of] = make()
        return self._finished[step, of]

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
        found: set[int] = set()
        for name in self.set_names():
            found |= set(open_structures(self.ingest(name)).species)
        return sorted(found)

    def feature_settings(self, name: str) -> Json:
        """Descriptor, storage and block sizes for a set."""
        calculator = descriptor(self.job.descriptor_of(name), self.species())
        self._check_features(name, calculator)
        numerics = self.job.numerics
        block = numerics.block_environments or default_block(calculator.n_features)
        task = numerics.task_environments or default_task(block, calculator.n_features)
        return {
            "descriptor": calculator.settings(),
            "dtype": self.job.storage.dtype,
            "block_environments": block,
            "task_environments": -(-task // block) * block,
        }

    def _check_features(self, name: str, calculator: Descriptor) -> None:
        """Hold users' features against the set, and against those of the training set."""
        found = {name: calculator}
        if name != "train":
            train = descriptor(self.job.descriptor_of("train"), self.species())
            found = {"train": train, **found}
        counts = {known: open_structures(self.ingest(known)).n_environments for known in found}
        check_sets(found, counts)

    def featurize(self, name: str) -> StageFolder:
        """The feature store of a set."""
        work = self.workspace.work

        def make() -> StageFolder:
            settings = self.feature_settings(name)
            plan = features_stage.plan(work, self.ingest(name), settings)
            return self.workspace.finish(f"features of {name}", plan)

        return self._once("featurize", name, make)

    def planned_rows(self) -> StageFolder:
        """The rows of the training set's energies as planned: they say what the columns are."""

        def make() -> StageFolder:
            work, settings = self.workspace.work, self.feature_settings("train")
            mapping = {"kind": self.job.model.kind, **self.job.model.spec.mapping()}
            structures, numerics = self.ingest("train"), self.numerics()
            if not self.job.model.kernel:
                return rows_stage.plan(work, structures, settings, mapping)
            references = self.references()
            return rows_stage.plan(work, structures, settings, mapping, references, numerics)

        return self._once("plan of rows", "train", make)

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

    def rows(self) -> StageFolder:
        """The summed features of every training structure."""

        def make() -> StageFolder:
            if self.job.store_train_features:
                self.featurize("train")
            return self.workspace.finish("rows", self.planned_rows())

        return self._once("rows", "train", make)

    def targets(self) -> dict[str, StageFolder]:
        """The rows of all that the loss has, by the names that `dlpr.stages.sources` knows."""
        kinds = [kind for kind in self.kinds() if kind != "energy"]

        def make() -> StageFolder:
            plan = derivatives_stage.plan(self.workspace.work, self.planned_rows(), kinds)
            return self.workspace.finish(f"rows of {' and '.join(kinds)}", plan)

        found = {"rows": self.rows()}
        if kinds:
            found["derivatives"] = self._once("derivatives", "train", make)
        return found

    def kinds(self) -> list[str]:
        """Kinds of targets in the loss."""
        return kinds_of(self.job.loss.model_dump(mode="json"))

    def fold(self, stage: str) -> StageFolder:
        """The partial Hessians ("hessian") or triangles ("triangle")."""
        model = self.model()
        of_rows = {name: model[name] for name in ("rows", "centre_species")}

        def make() -> StageFolder:
            work, numerics = self.workspace.work, self.numerics()
            if self.form() != "tiles":
                numerics["tile_columns"] = self.layout().n_columns + 1
            plan = fold_stage.plan(work, stage, self.targets(), self.kinds(), of_rows, numerics)
            return self.workspace.finish(stage, plan)

        return self._once("fold", stage, make)

    def factor(self) -> StageFolder:
        """The factored Hessian, by the job's solver or by the one that is accurate enough.

        Where no worker could hold it whole, as QR needs it, tiles by Cholesky are kept with the
        accuracy that they state.
        """
        solver, model = self.job.solver, self.model()
        work, loss = self.workspace.work, self.job.loss.model_dump(mode="json")

        def settings(solver: str) -> Json:
            return {"model": model, "loss": loss, "solver": solver, "numerics": self.numerics()}

        def by(of: StageFolder | None, solver: str) -> StageFolder:
            plan = factor_stage.plan(work, of, self.targets(), settings(solver))
            return self.workspace.finish(f"factor of the {of.stage if of else 'rows'}", plan)

        def by_tiles() -> StageFolder:
            fold = self.fold("hessian")
            plan = cholesky_stage.plan(work, fold, self.targets(), settings(solver))
            return self.workspace.finish("factor of the tiles", plan)

        def make() -> StageFolder:
            form = self.form()
            self._require_memory(form)
            if form == "rows":
                return by(None, "dual")
            if solver != "qr" and (solver != "auto" or model["regularizer"] > 0.0):
                found, refused = None, None
                with suppress(NumericsError) if solver == "auto" else nullcontext():
                    found = by_tiles() if form == "tiles" else by(self.fold("hessian"), solver)
                    if not (refused := factor_stage.factor_facts(found)["refused"]):
                        return found
                try:
                    self._require_memory("whole")
                except ResourceError as error:
                    if found is None:
                        raise
                    text = f"{refused}. It is kept all the same: for QR, {error}"
                    self.workspace.tell(Event("note", "factor of the tiles", text=text))
                    return found
            return by(self.fold("triangle"), "qr")

        return self._once("factor", solver, make)

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
        regularizer, tile_columns = self.model()["regularizer"], self.job.numerics.tile_columns
        form = fold_stage.form_of(
            self.job.solver, regularizer, self.n_rows(), self.n_columns(), tile_columns
        )
        if form == "rows" and self.n_rows() > self.n_columns():
            raise JobError(
                f"solver: dual needs no more rows than columns; this job has {self.n_rows()} rows "
                f"and {self.n_columns()} columns. Use solver: auto."
            )
        return form

    def n_rows(self) -> int:
        """Rows of the loss, at most."""
        store, kinds = open_structures(self.ingest("train")), self.kinds()
        n_rows = {"forces": 3 * store.n_environments, "stress": 6 * store.n_structures}
        return sum(n_rows.get(kind, store.n_structures) for kind in kinds)

    def _require_memory(self, form: str) -> None:
        """Refuse, before anything is computed, what no worker could hold at the end."""
        features, numerics = self.feature_settings("train"), self.job.numerics
        calculator = open_descriptor(features["descriptor"])
        layout = self.layout()
        feature_map = open_map(self.planned_rows())
        n_rows, n_components = self.n_rows(), len(feature_map.components)
        is_singular = self.model()["regularizer"] == 0.0
        size = memory.FactorSize(
            form, layout, n_rows, numerics.tile_columns, n_components, is_singular
        )
        mapping = memory.MapSize.of(feature_map)
        needs = [size.factorize_nbytes]
        if form != "rows":
            width = numerics.tile_columns if form == "tiles" else layout.n_columns
            needs.append(memory.fold_nbytes(layout.n_columns, width, numerics.fold_block_rows))
        for name in self.set_names():
            crowd = memory.crowd_of(self.ingest(name))
            block, task = features["block_environments"], features["task_environments"]
            needs.append(memory.rigidity_nbytes(calculator, size, mapping, block, task, crowd))
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
        if self.job.model.kernel is not None:
            facts = self.references().receipts()[-1].facts["references"]
            notes += [
                f"kernel of {symbol}: {own['count']} references, rank {own['rank']} of K_MM "
                f"({own['cut']} eigenvalues below {CUT:.0e} of the largest are cut)"
                for symbol, own in facts.items()
            ]
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
                    f"have no energy: they are no rows of the Hessian's energies"
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
