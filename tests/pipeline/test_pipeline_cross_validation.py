"""Cross-validation through whole runs: each fold is what a fit of all others says of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ase.io import read, write
from models_cases import KERNEL, LINEAR, MU, Array, Plain, chosen, data, done, load
from pipeline_cases import TINY, Outcome, assert_same_bits, crystals, make_job, run
from scipy.linalg import lstsq
from test_pipeline_committee import Idle
from test_pipeline_plans import Shuffled

import dlpr
from dlpr.clusters.local import LocalStarter
from dlpr.core.blas import blas_kernel
from dlpr.engine.output import write_job
from dlpr.engine.promise import task_nbytes
from dlpr.errors import InputError, JobError, ResourceError
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.cross_validation import STORE
from dlpr.store.arrays import chunk_files

__all__ = ["data"]

KINDS: dict[str, dict[str, Any]] = {
    "structure": {"folds": 3, "by": "structure", "seed": 3},
    "stratified": {"folds": 3, "by": "stratified", "seed": 1},
    "group": {"by": "group"},
}
WITH_ALL = {"energy": 1.0, "forces": 0.3, "stress": 0.5, "groups": {"odd": 4.0}}
FROM_FOLDS = {"hessian of the cross-validation", "cross-validation"}


def arrays_of(output: Path) -> dict[str, Array]:
    group: Any = zarr.open_group(str(output / STORE), mode="r")
    return {name: np.asarray(array[:]) for name, array in group.arrays()}


def summary_of(output: Path) -> list[dict[str, Any]]:
    summary: Any = zarr.open_group(str(output / STORE), mode="r").attrs["summary"]
    return list(summary)


def check_against_plain_fits(
    found: Outcome, data: Path, plain: Plain, loss: dict[str, Any], rtol: float, mu: float = MU
) -> None:
    """Held-out energies, PR and errors of derivatives are those of ridges fitted from nothing."""
    frames, arrays = load(data, "train"), arrays_of(found.output)
    fold, flat = arrays["structure_fold"], {**loss, **loss.get("groups", {})}
    everything = {"energy": 1.0, "forces": loss.get("forces"), "stress": loss.get("stress")}
    for number in np.unique(fold):
        rows, y = plain.loss_rows([frames[k] for k in np.flatnonzero(fold != number)], flat)
        stacked = np.vstack([rows, np.sqrt(mu) * np.eye(rows.shape[1])])
        weights = lstsq(stacked, np.append(y, np.zeros(rows.shape[1])))[0]
        for k in np.flatnonzero(fold == number):
            total = plain.total(frames[k])
            close: dict[str, Any] = {"rtol": rtol, "atol": rtol}
            np.testing.assert_allclose(arrays["structure_energy"][k], total @ weights, **close)
            mean = total / len(frames[k])
            spread = lstsq(stacked.T, mean)[0]
            np.testing.assert_allclose(arrays["structure_pr"][k], 1 / (spread @ spread), rtol=rtol)
            for kind, weight in everything.items():
                if kind == "energy" or not weight:
                    continue
                rmse = arrays[f"structure_{kind}_rmse"][k]
                if kind not in frames[k].calc.results:
                    assert np.isnan(rmse)
                    continue
                own = getattr(plain, kind)(frames[k])
                errors = own @ weights - frames[k].calc.results[kind].ravel()
                np.testing.assert_allclose(rmse, np.sqrt(np.mean(errors**2)), **close)


@pytest.mark.parametrize(
    ("by", "solver"),
    [*((by, "cholesky") for by in KINDS), *(("stratified", one) for one in ("qr", "eigh", "dual"))],
)
def test_folds_are_fits_of_all_others(data: Path, by: str, solver: str) -> None:
    model = {"linear": {**LINEAR, "baseline": {"composition": {"regularizer": 0.1}}}}
    name = f"{by}-{solver}"
    found = done(data, name, model=model, solver=solver, cross_validation=KINDS[by])
    n_folds = 2 if by == "group" else 3
    assert found.tasks["cross-validation"] == n_folds + 1
    check_against_plain_fits(found, data, Plain(None, np.sqrt(MU / 0.1)), {}, rtol=1e-6)
    arrays = arrays_of(found.output)
    if by == "group":
        np.testing.assert_array_equal(arrays["structure_fold"], arrays["structure_group"])
        assert not any("of the cross-validation" in role for role in found.used)


@pytest.mark.parametrize("kind", ["linear", "kernel"])
@pytest.mark.parametrize("by", ["stratified", "group"])
def test_forces_and_stresses_follow_their_structure(data: Path, kind: str, by: str) -> None:
    model = {kind: KERNEL if kind == "kernel" else LINEAR}
    settings = {"model": model, "loss": WITH_ALL, "cross_validation": KINDS[by]}
    found = done(data, f"all-{kind}-{by}", **settings)
    plain = Plain(chosen(found, data) if kind == "kernel" else None)
    check_against_plain_fits(found, data, plain, WITH_ALL, rtol=1e-3)
    of_all = {row["quantity"]: row["n"] for row in summary_of(found.output)[::-1]}
    labels = [atoms.calc.results for atoms in load(data, "train")]
    assert of_all["force component"] == sum(one["forces"].size for one in labels if "forces" in one)
    assert of_all["stress component"] == sum(6 for one in labels if "stress" in one)


def test_isolated_energies_are_taken_off_and_put_back(data: Path) -> None:
    """Of labels that are sums over atoms, and nothing else, every fold is predicted exactly."""
    isolated = {"Ga": -3.0, "As": 2.0}
    frames = load(data, "train")
    for atoms in frames:
        atoms.info["config_type"] = "one"
        atoms.calc.results = {"energy": sum(isolated[s] for s in atoms.symbols)}
    write(data / "sums.xyz", frames, format="extxyz")
    model = {"linear": {**LINEAR, "baseline": {"isolated": isolated}}}
    section = {"folds": 3, "by": "stratified"}
    job = make_job(data, "sums.xyz", hypers=TINY, model=model, cross_validation=section)
    arrays = arrays_of(run(job).output)
    np.testing.assert_allclose(
        arrays["structure_energy"], arrays["structure_energy_label"], rtol=1e-12
    )


def test_the_summary_is_of_the_arrays(data: Path) -> None:
    found = done(data, "said", model={"linear": LINEAR}, cross_validation=KINDS["structure"])
    group: Any = zarr.open_group(str(found.output / STORE), mode="r")
    about, arrays = group.attrs, arrays_of(found.output)
    names = list(group["structure_group"].attrs["names"])
    error = arrays["structure_energy"] - arrays["structure_energy_label"]
    n = arrays["structure_n_atoms"]
    of = {"energy per atom": error / n, "energy per cell": error, "energy per root of N": error}
    of["energy per root of N"] = error / np.sqrt(n)
    for row in about["summary"]:
        own = of[row["quantity"]]
        if row["fold"] is not None:
            own = own[arrays["structure_fold"] == int(row["fold"])]
        if row["group"] is not None:
            own = own[arrays["structure_group"] == names.index(row["group"])]
        assert row["n"] == len(own)
        assert row["mae"] == pytest.approx(np.abs(own).mean(), rel=1e-12)
        assert row["rmse"] == pytest.approx(np.sqrt(np.square(own).mean()), rel=1e-12)
        assert row["quantiles"][-1] == np.abs(own).max()
    folds = [row for row in about["summary"] if row["fold"] and "per atom" in row["quantity"]]
    one = next(one for one in about["spread"] if one["quantity"] == "energy per atom")
    assert one["rmse_std"] == pytest.approx(np.std([row["rmse"] for row in folds], ddof=1))
    assert about["n_structures"] == np.bincount(arrays["structure_fold"]).tolist()
    assert len(about["summary"]) == 3 * (1 + 2 + 3)
    result = dlpr.Result(found.output).cross_validation
    assert result is not None
    assert result.summary == about["summary"]
    text = "\n".join(" ".join(row) for row in result.table().rows)
    assert "energy per atom odd" in text
    assert "energy per cell odd" not in text


# one plan ----------------------------------------------------------------------------------------

NUMERICS = {"block_environments": 16, "task_environments": 32, "fold_block_rows": 3}
THREE = {"folds": 3, "by": "structure"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folds")
    write(folder / "train.xyz", crystals(("Ga", "As"), 14), format="extxyz")
    write(folder / "test.xyz", crystals(("Ga", "As"), 6, seed=3), format="extxyz")
    return folder


def job_in(bench: Path, output: str, section: Any = THREE, **given: Any) -> dlpr.Job:
    sets = {"train": "train", "test": {"files": "test.xyz"}}
    plan = {"numerics": NUMERICS, "solver": "cholesky", "hypers": TINY}
    return make_job(bench, test=sets, output=output, cross_validation=section, **{**plan, **given})


def chunks(output: Path) -> dict[str, bytes]:
    root = (output / STORE).resolve()
    return {str(file.relative_to(root)): file.read_bytes() for file in chunk_files(root)}


def test_leaving_one_out_is_the_residual_over_one_less_the_leverage(bench: Path) -> None:
    """And a structure's own PR falls by its weight in the loss, which is 1 (FD24 app. B)."""
    section = {"folds": 14, "by": "stratified"}
    found = run(job_in(bench, "one-out", section, linear={"regularizer": 1e-2}))
    arrays, train = arrays_of(found.output), found.sets["train"]
    assert sorted(arrays["structure_fold"]) == list(range(14))
    label, leverage = train["structure_energy_label"], 1 / train["structure_pr"]
    expected = (train["structure_energy"] - label) / (1 - leverage)
    np.testing.assert_allclose(arrays["structure_energy"] - label, expected, rtol=1e-9)
    np.testing.assert_allclose(arrays["structure_pr"], train["structure_pr"] - 1, rtol=1e-8)


def test_order_and_repetition_change_no_bit(bench: Path) -> None:
    one = run(job_in(bench, "one"))
    other = run(job_in(bench, "other"), executor=Shuffled(1))
    assert chunks(one.output)
    assert chunks(one.output) == chunks(other.output)
    assert summary_of(one.output) == summary_of(other.output)


def test_workers_and_processes_give_the_same_bits(bench: Path) -> None:
    base = run(job_in(bench, "base"))
    running = LocalStarter(2, 1, 2**31, bench / "scratch").start(blas_kernel())
    try:
        result = dlpr.run(job_in(bench, "dask"), client=running.client)
        assert chunks(base.output) == chunks(result.output)
    finally:
        running.close()
    job = job_in(bench, "work")
    write_job(job.path(job.output), job)
    assert chunks(base.output) == chunks(dlpr.work(job.path(job.output), rank=3).output)
    assert all(task_nbytes(base.used[role]) > 0 for role in FROM_FOLDS)


def test_another_regularizer_computes_no_features_and_no_folds(bench: Path) -> None:
    run(job_in(bench, "mu"))
    found = run(job_in(bench, "mu", linear={"regularizer": 1e-3}))
    again = {"factor of the hessian", "cross-validation", "rigidity of train", "rigidity of test"}
    assert set(found.tasks) == again | {"result"}
    fresh = run(job_in(bench, "mu-fresh", linear={"regularizer": 1e-3}))
    assert chunks(found.output) == chunks(fresh.output)


def test_rigidities_do_not_know_of_it(bench: Path) -> None:
    """It is added to a finished run, and taken away, without another bit of the result."""
    bare = run(job_in(bench, "bare", None))
    names = {role: folder.name for role, folder in bare.used.items()}
    found = run(job_in(bench, "bare"))
    assert set(found.tasks) == FROM_FOLDS
    assert names.items() <= {role: folder.name for role, folder in found.used.items()}.items()
    assert_same_bits(bare.output, found.output)
    assert (found.output / STORE).exists()
    assert run(job_in(bench, "bare", None)).tasks == {}
    assert dlpr.Result(bare.output).cross_validation is None


def test_a_task_that_is_lost_is_done_again(bench: Path) -> None:
    before = run(job_in(bench, "lost"))
    kept = chunks(before.output)
    folder = before.used["cross-validation"]
    (folder.path / "parts/000001.npz").unlink()
    assert run(job_in(bench, "lost")).tasks == {"cross-validation": 1}
    chunk_files(folder.path / STORE)[0].unlink()
    assert run(job_in(bench, "lost")).tasks == {"cross-validation": 1}
    assert chunks(before.output) == kept


@pytest.mark.parametrize(
    ("by", "files"),
    [("structure", ["test.xyz", "train.xyz"]), ("stratified", ["train.xyz", "test.xyz"])],
)
def test_data_that_come_leave_folds_and_partials(
    bench: Path, monkeypatch: pytest.MonkeyPatch, by: str, files: list[str]
) -> None:
    """Before those that are there or behind them, where folds are spread evenly over groups."""
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", 8)
    monkeypatch.setattr(fold_stage, "TASK_FLOPS", 1.0)
    monkeypatch.setattr(fold_stage, "FEWEST_ROWS", 0.02)
    section, output = {"folds": 3, "by": by}, f"grown-{by}"
    first = arrays_of(run(job_in(bench, output, section)).output)["structure_fold"]
    found = run(job_in(bench, output, section, train={"files": files}))
    arrays = arrays_of(found.output)
    source = arrays["structure_source_file"]
    np.testing.assert_array_equal(
        arrays["structure_fold"][source == files.index("train.xyz")], first
    )
    role = "hessian of the cross-validation"
    assert 0 < found.tasks[role] < found.used[role].n_tasks
    fresh = run(job_in(bench, f"{output}-fresh", section, train={"files": files}))
    assert chunks(found.output) == chunks(fresh.output)


def test_repeats_share_a_fold(bench: Path) -> None:
    frames = read(bench / "train.xyz", ":")
    write(bench / "twice.xyz", [*frames, *frames[::-1]], format="extxyz")
    for by in ("structure", "stratified"):
        found = run(job_in(bench, f"twice-{by}", {"folds": 3, "by": by}, train="twice.xyz"))
        fold = arrays_of(found.output)["structure_fold"]
        np.testing.assert_array_equal(fold[:14], fold[14:][::-1])


# what cannot be ----------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_anything_is_computed(bench: Path) -> None:
    executor = Idle()
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (JobError, "tile_columns is 7", {"numerics": {**NUMERICS, "tile_columns": 7}}),
        (InputError, r"fold \d of 14 is empty", {"section": {"folds": 14}}),
        (InputError, r"has 1 \(.*needs 2.*group_by", {"section": {"by": "group"}}),
        (ResourceError, "3 folds.*fewer folds", {"numerics": {"partials_budget": "40KiB"}}),
    ]
    for k, (error, text, given) in enumerate(cases):
        with pytest.raises(error, match=text):
            run(job_in(bench, f"refused-{k}", **given), executor=executor)
    assert executor.stages == {"index", "structures"}
    huber = {"energy": {"weight": 1.0, "shape": {"huber": {"delta": 0.01}}}}
    with pytest.raises(JobError, match=r"cross_validation.*loss of energy"):
        dlpr.run(job_in(bench, "refused", loss=huber))
    with pytest.raises(JobError, match=r"by: group .* no folds"):
        job_in(bench, "refused", {"by": "group", "folds": 3})
    with pytest.raises(JobError, match="no section cross_validation"):
        dlpr.cross_validate(job_in(bench, "one", None))


def test_a_group_that_has_all_labels_is_named(bench: Path) -> None:
    frames = read(bench / "train.xyz", ":")
    for atoms in frames:
        if atoms.info["config_type"] == "odd":
            atoms.calc = None
            atoms.info.pop("energy", None)
    write(bench / "half.xyz", frames, format="extxyz")
    train = {"files": "half.xyz", "group_by": "config_type"}
    with pytest.raises(InputError, match=r"fold 0 .* 7 of 14 structures, and none"):
        run(job_in(bench, "half", {"by": "group"}, train=train))
    shutil.rmtree(bench / "half")
