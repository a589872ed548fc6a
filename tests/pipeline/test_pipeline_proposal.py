"""What to label next through whole runs: picks and curves are those of refits by plain NumPy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from models_cases import FORMS, KERNEL, LINEAR, MU, Array, Plain, chosen, labelled, load
from pipeline_cases import TINY, Outcome, make_job
from test_pipeline_plans import Shuffled

from dlpr.engine.events import Event
from dlpr.engine.executors import Executor, WorkExecutor
from dlpr.engine.output import write_job
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.proposal import proposed
from dlpr.engine.workspace import Workspace
from dlpr.stages import whitened as whitened_stage
from dlpr.stages.proposal import open_picks
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder

N_PICKS = 4
NEW = {
    "rows of pool",
    "whitened rows of pool",
    "rigidity of test",
    "least rigid of test",
    "picks to label",
}
Found = tuple[StageFolder, Outcome]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training set, a test set, and a pool that repeats some of the first and of itself."""
    folder = tmp_path_factory.mktemp("proposal")
    write(folder / "train.xyz", labelled(9, 0), format="extxyz")
    write(folder / "test.xyz", labelled(5, 1), format="extxyz")
    train, pool = load(folder, "train"), labelled(8, 2)
    write(folder / "pool.xyz", [*train[:2], *pool, pool[3]], format="extxyz")
    return folder


def picked(
    data: Path,
    output: str,
    *,
    executor: Executor | None = None,
    pool: dict[str, Any] | None = None,
    of: str = "environments",
    n_targets: int = 1000,
    **settings: Any,
) -> Found:
    """Picks of the pool for the test set, in this process."""
    job = make_job(
        data,
        {"files": "train.xyz", "group_by": "config_type"},
        {"test": {"files": "test.xyz"}, "pool": {"files": "pool.xyz", **(pool or {})}},
        hypers=TINY,
        output=output,
        **settings,
    )
    events: list[Event] = []
    workspace = Workspace(job.path(job.output), executor or WorkExecutor(0), events.append)
    write_job(workspace.output, job)
    steps = Pipeline(job, workspace)
    wanted: dict[str, Any] = {"count": N_PICKS, "objective": "mean_variance"}
    folder = proposed(steps, "pool", ["test"], n_targets=n_targets, of=of, **wanted)
    return folder, Outcome(workspace.output, {}, events, workspace.used)


def refits(
    plain: Plain, data: Path, loss: dict[str, Any], of: str, n_targets: int
) -> tuple[list[int], list[float]]:
    """Greedy picks by a fit for every candidate, their numbers in the file, and the objective."""
    rows, _ = plain.loss_rows(load(data, "train"), loss)
    hessian = rows.T @ rows + MU * np.eye(rows.shape[1])
    frames = load(data, "test")
    targets = plain.phi(frames)
    if of == "structures":
        targets = np.array([plain.total(atoms) / len(atoms) for atoms in frames])

    def variances(hessian: Array) -> Array:
        return np.einsum("ij,ji->i", targets, np.linalg.solve(hessian, targets.T))

    targets = targets[np.argsort(-variances(hessian))[:n_targets]]
    energy = {"energy": loss.get("energy", 1.0), **loss.get("groups", {})}
    pool = load(data, "pool")
    left = list(range(2, 10))  # without those that repeat others
    picks, curve = [], [float(variances(hessian).mean())]
    for _ in range(N_PICKS):
        updated = {}
        for k in left:
            row = plain.loss_rows([pool[k]], energy)[0]
            updated[k] = hessian + row.T @ row
        means = {k: float(variances(one).mean()) for k, one in updated.items()}
        best = min(left, key=means.__getitem__)
        hessian = updated[best]
        left.remove(best)
        picks.append(best)
        curve.append(means[best])
    return picks, curve


def check(
    found: Found,
    plain: Plain,
    data: Path,
    loss: dict[str, Any] | None = None,
    of: str = "environments",
    n_targets: int = 1000,
    rtol: float = 1e-6,
) -> None:
    folder, _ = found
    frame = open_structures(folder.input("pool")).over_structures("source_frame")
    structure, curve = open_picks(folder)["greedy"]
    picks, expected = refits(plain, data, loss or {}, of, n_targets)
    assert frame[structure].tolist() == picks
    np.testing.assert_allclose(curve, expected, rtol=rtol)


@pytest.mark.parametrize(
    ("solver", "tile_columns", "of"),
    [*((*form, "environments") for form in FORMS), ("cholesky", 4096, "structures")],
)
def test_picks_are_those_of_refits(data: Path, solver: str, tile_columns: int, of: str) -> None:
    """Whatever the Hessian is made of, with a block of weights for each central species."""
    numerics = {"tile_columns": tile_columns}
    settings = {"model": {"linear": LINEAR}, "solver": solver, "numerics": numerics}
    found = picked(data, f"{solver}-{tile_columns}-{of}", of=of, n_targets=3, **settings)
    check(found, Plain(None), data, of=of, n_targets=3)
    facts = found[0].facts(0)
    assert (facts["n_targets"], facts["n_candidates"]) == (3, 8)


@pytest.mark.parametrize("kind", ["linear", "kernel"])
def test_the_loss_weighs_candidates_as_it_weighs_the_training_set(data: Path, kind: str) -> None:
    """By the energies alone, where it has forces too; a group of the same name has its weight."""
    loss: dict[str, Any] = {"energy": 2.5, "forces": 0.3, "groups": {"odd": 4.0}}
    model = {kind: KERNEL if kind == "kernel" else LINEAR}
    pool = {"group_by": "config_type"}
    found = picked(data, f"loss-{kind}", model=model, loss=loss, pool=pool)
    plain = Plain(chosen(found[1], data) if kind == "kernel" else None)
    check(found, plain, data, {**loss, **loss["groups"]}, rtol=1e-3)


def test_energies_of_atoms_have_columns_too(data: Path) -> None:
    linear = {**LINEAR, "baseline": {"composition": {"regularizer": 0.1}}}
    found = picked(data, "composition", model={"linear": linear})
    check(found, Plain(None, np.sqrt(MU / 0.1)), data)


def test_a_pool_without_labels_has_the_same_candidates(data: Path) -> None:
    """A label is what is asked for: where some have one, the others are still candidates."""
    frames = load(data, "pool")
    for atoms in frames[1::2]:
        atoms.calc = None
    kept = data / "labelled.xyz"
    shutil.copy(data / "pool.xyz", kept)
    try:
        write(data / "pool.xyz", frames, format="extxyz")
        found = picked(data, "unlabelled", model={"linear": LINEAR})
    finally:
        kept.replace(data / "pool.xyz")
    check(found, Plain(None), data)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A job whose stages have several tasks, structures cut between them."""
    monkeypatch.setattr(whitened_stage, "RUN_NBYTES", 3 * 8 * 40)
    numerics = {"block_environments": 4, "task_environments": 8}
    return {"model": {"linear": LINEAR}, "numerics": numerics}


def test_order_and_repetition_change_no_bit(data: Path, pieces: dict[str, Any]) -> None:
    base, outcome = picked(data, "serial", **pieces)
    check((base, outcome), Plain(None), data)
    assert outcome.used["whitened rows of pool"].n_tasks > 2
    shuffled, _ = picked(data, "shuffled", executor=Shuffled(2), **pieces)
    assert shuffled.output_digest() == base.output_digest()


def test_what_is_there_is_not_computed_again(data: Path, pieces: dict[str, Any]) -> None:
    first, outcome = picked(data, "again", **pieces)
    assert outcome.tasks.keys() >= NEW
    again, outcome = picked(data, "again", **pieces)
    assert not outcome.tasks
    assert again.path == first.path
    outcome.used["whitened rows of pool"].withdraw(1)
    first.withdraw(2)
    again, outcome = picked(data, "again", **pieces)
    assert outcome.tasks == {"whitened rows of pool": 1, "picks to label": 1}
    fresh, _ = picked(data, "fresh", **pieces)
    assert again.output_digest() == fresh.output_digest()


@pytest.mark.parametrize("name", ["a_pool", "pool_b"])
def test_a_pool_that_grows_has_its_new_rows_whitened(
    data: Path, pieces: dict[str, Any], name: str
) -> None:
    """Behind what was there; before it, numbers of structures change. 16 atoms are two tasks."""
    pool = {"files": "*pool*.xyz"}
    before, _ = picked(data, f"grown-{name}", pool=pool, **pieces)
    more = data / f"{name}.xyz"
    write(more, labelled(2, 5)[1:], format="extxyz")
    try:
        after, outcome = picked(data, f"grown-{name}", pool=pool, **pieces)
        n_tasks = outcome.used["whitened rows of pool"].n_tasks
        n_new = outcome.tasks["whitened rows of pool"]
        assert 0 < n_new < n_tasks if name == "pool_b" else n_new == n_tasks
        assert outcome.tasks["picks to label"] == after.n_tasks
        assert "rigidity of test" not in outcome.tasks
        fresh, _ = picked(data, f"fresh-{name}", pool=pool, **pieces)
    finally:
        more.unlink()
    assert after.facts(0)["n_candidates"] == before.facts(0)["n_candidates"] + 1
    assert after.output_digest() == fresh.output_digest()
