"""The fold of rows of forces beside `dsyrk`: stored rows of derivatives, of any number of columns.

What the rows hold is chance, written where featomic's gradients would be: to compute them would
take an hour, and a fold does not ask what it adds up.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from dlpr.bench.fabricate import again, fabricated_job, warm_pipeline, write_atoms
from dlpr.bench.measure import Bench, Row, in_turn, ratio
from dlpr.bench.passes import FRAME_ATOMS, rows_in_memory
from dlpr.bench.peers import fold_in_memory
from dlpr.engine.pipeline import Pipeline
from dlpr.job import Job
from dlpr.job.cluster import n_cores
from dlpr.stages import derivatives as derivatives_stage
from dlpr.stages.structures import open_structures


def measure(bench: Bench) -> Iterator[Row]:
    """The Hessian of forces alone, for every D."""
    return (_fold(bench, d) for d in bench.sizes.columns)


def _fold(bench: Bench, d: int) -> Row:
    folder = bench.scratch / f"D{d}"
    folder.mkdir()
    n_frames = -(-bench.sizes.n_rows(d) // (3 * FRAME_ATOMS))
    write_atoms(folder / "train.xyz", n_frames, FRAME_ATOMS, seed=1, forces=True)
    write_atoms(folder / "test.xyz", 1, FRAME_ATOMS, seed=2)
    with warm_pipeline(fabricated_job(folder, d, store_train_features=False)) as steps:
        loss = {"loss": {"energy": 0.0, "forces": 1.0}}
        job = Job.from_dict({**steps.job.resolved(), **loss}, base=steps.job.base)
        of_forces = Pipeline(job, steps.workspace, steps.kernel)
        write_derivatives(of_forces)
        partials, rows = of_forces.fold("hessian"), rows_in_memory(of_forces)
        matrix = np.zeros((d, d), order="F")
        peers = {"dsyrk": partial(fold_in_memory, rows, matrix)}
        samples = in_turn(partial(again, of_forces, partials), peers, bench.sizes.repeats)
    size = {"columns": d, "rows": len(rows), "workers": n_cores()}
    name, against = "fold of stored rows of forces", "dsyrk in memory, all cores"
    return Row(name, ratio(samples), "", size, against, 1.0, samples=samples)


def write_derivatives(steps: Pipeline) -> None:
    """Finish the stage of derivatives with rows of chance, as its tasks would leave theirs."""
    structures = open_structures(steps.ingest("train"))
    folder = derivatives_stage.plan(steps.workspace.work, steps.planned_rows(), ["forces"])
    group = structures.group_names[0]
    width = sum(steps.layout().widths) - 1
    for task, n_atoms in enumerate(np.diff(folder.settings["edges"]).tolist()):
        rng = np.random.default_rng(task)
        n = 3 * n_atoms
        arrays = {"rows_0": rng.standard_normal((n, width)), "y_0": rng.standard_normal(n)}
        arrays["structure_0"] = np.repeat(np.arange(n_atoms // FRAME_ATOMS), 3 * FRAME_ATOMS)
        files = folder.write_part(task, arrays)
        folder.write_receipt(task, files, {"groups": {"forces": {group: n}}}, {})
