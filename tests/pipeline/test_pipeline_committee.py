"""Committees through whole runs: members are fits of their own structures, bits are one plan's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from models_cases import FORMS, KERNEL, LINEAR, MU, Array, Plain, chosen, data, done, load
from pipeline_cases import TINY, Outcome, assert_same_bits, crystals, make_job, run
from scipy.linalg import lstsq
from scipy.stats import spearmanr
from test_pipeline_plans import Shuffled

import dlpr
from dlpr.clusters.local import LocalStarter
from dlpr.core.blas import blas_kernel
from dlpr.core.committee import subsample
from dlpr.engine.executors import WorkExecutor
from dlpr.engine.output import write_job
from dlpr.engine.promise import task_nbytes
from dlpr.errors import InputError, JobError, ResourceError
from dlpr.stages import fold as fold_stage
from dlpr.stages import ingest as ingest_stage
from dlpr.stages.committee import open_members
from dlpr.store.folder import StageFolder

__all__ = ["data"]

N_MEMBERS, FRACTION, SEED = 5, 0.6, 3
DRAWN = {"members": N_MEMBERS, "fraction": FRACTION, "seed": SEED}
SUBSAMPLE = {"subsample": DRAWN}
POSTERIOR = {"posterior": {"members": N_MEMBERS, "seed": SEED}}
COMMITTEES = {"subsample": SUBSAMPLE, "posterior": POSTERIOR}
WHOLE = [form for form in FORMS if form != ("cholesky", 12)]
VARIANCES = ("environment_committee_variance", "structure_committee_variance")
FROM_COMMITTEE = {"committee", "rigidity of train", "rigidity of test", "result"}


def plain_members(plain: Plain, data: Path, loss: dict[str, Any], mu: float) -> Array:
    """Weights (n_members, n_columns) of ridge regressions on each member's own structures."""
    frames = load(data, "train")
    members = []
    for member in range(N_MEMBERS):
        own = subsample(SEED, member, FRACTION, len(frames))
        assert 0 < own.sum() < len(frames)
        rows, y = plain.loss_rows([frames[k] for k in np.flatnonzero(own)], loss)
        n = rows.shape[1]
        stacked = np.vstack([rows, np.sqrt(mu) * np.eye(n)])
        members.append(lstsq(stacked, np.append(y, np.zeros(n)))[0])
    return np.array(members)


def check_members(
    found: Outcome, plain: Plain, data: Path, loss: dict[str, Any], rtol: float, mu: float = MU
) -> None:
    """Variances of both sets are those of plain fits, in eV^2."""
    members = plain_members(plain, data, loss, mu)
    for name in ("train", "test"):
        frames = load(data, name)
        energy = plain.phi(frames) @ members.T
        edges = np.cumsum([0, *map(len, frames)])
        total = np.array([energy[a:b].sum(axis=0) for a, b in pairwise(edges)])
        for array, predicted in zip(VARIANCES, (energy, total), strict=True):
            expected = np.var(predicted, axis=1, ddof=1)
            np.testing.assert_allclose(found.sets[name][array], expected, rtol=rtol, err_msg=array)


@pytest.mark.parametrize(("solver", "tile_columns"), [*WHOLE, ("eigh", 4096)])
@pytest.mark.parametrize("baseline", ["none", "isolated", "composition"])
def test_members_are_fits_of_their_own_structures(
    data: Path, solver: str, tile_columns: int, baseline: str
) -> None:
    given: dict[str, Any] = {
        "none": {},
        "isolated": {"baseline": {"isolated": {"Ga": -3.0, "As": 2.0}}},
        "composition": {"baseline": {"composition": {"regularizer": 0.1}}},
    }[baseline]
    output, numerics = f"{solver}-{baseline}", {"tile_columns": tile_columns}
    model = {"linear": {**LINEAR, **given}}
    found = done(data, output, model=model, solver=solver, numerics=numerics, committee=SUBSAMPLE)
    assert found.tasks["committee"] == N_MEMBERS
    if baseline == "isolated":  # a shift of the labels
        members = open_members(found.used["committee"])
        check_isolated(members, data, given["baseline"]["isolated"])
    else:
        constant = np.sqrt(MU / 0.1) if baseline == "composition" else 0.0
        check_members(found, Plain(None, constant), data, {}, rtol=1e-6)


def check_isolated(members: Array, data: Path, isolated: dict[str, float]) -> None:
    plain, frames = Plain(None), load(data, "train")
    for member, weights in enumerate(members):
        own = [frames[k] for k in np.flatnonzero(subsample(SEED, member, FRACTION, len(frames)))]
        rows, y = plain.loss_rows(own, {})
        y -= [np.mean([isolated[s] for s in atoms.symbols]) for atoms in own]
        n = rows.shape[1]
        expected = lstsq(np.vstack([rows, np.sqrt(MU) * np.eye(n)]), np.append(y, np.zeros(n)))[0]
        # featomic's full layout has columns twice; what counts is what a fit says
        assert np.linalg.norm(weights) == pytest.approx(np.linalg.norm(expected), rel=1e-7)


@pytest.mark.parametrize("kind", ["linear", "kernel"])
def test_forces_and_stresses_follow_their_structure(data: Path, kind: str) -> None:
    """With groups that weigh differently, and structures that lack some label."""
    loss = {"energy": 1.0, "forces": 0.3, "stress": 0.5, "groups": {"odd": 4.0}}
    model = {kind: KERNEL if kind == "kernel" else LINEAR}
    found = done(data, f"all-{kind}", model=model, loss=loss, committee=SUBSAMPLE)
    plain = Plain(chosen(found, data) if kind == "kernel" else None)
    check_members(found, plain, data, {**loss, **loss["groups"]}, rtol=1e-3)


def test_many_partials_are_one_fold(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"model": {"linear": LINEAR}, "solver": "qr", "committee": SUBSAMPLE}
    monkeypatch.setattr(fold_stage, "TASK_FLOPS", 1.0)
    monkeypatch.setattr(fold_stage, "FEWEST_ROWS", 0.05)
    numerics = {"task_environments": 8, "block_environments": 4, "fold_block_rows": 2}
    found = done(data, "partials", numerics=numerics, **settings)
    assert found.tasks["triangle of the committee"] > 2 * N_MEMBERS
    check_members(found, Plain(None), data, {}, rtol=1e-6)
    before = set(found.used["triangle of the committee"]._keys())
    shutil.copy(data / "train.xyz", data / "train.kept")
    with (data / "train.xyz").open("a") as file:
        file.write((data / "test.xyz").read_text())
    try:
        again = done(data, "partials", numerics=numerics, **settings)
        check_members(again, Plain(None), data, {}, rtol=1e-6)
        fresh = done(data, "fresh", numerics=numerics, **settings)
    finally:
        (data / "train.kept").replace(data / "train.xyz")
    assert_same_bits(again.output, fresh.output)
    folder = again.used["triangle of the committee"]
    kept = len(before & set(folder._keys()))
    assert 0 < kept == folder.n_tasks - again.tasks["triangle of the committee"]


@pytest.mark.parametrize(("solver", "tile_columns"), FORMS)
def test_the_posterior_spreads_as_the_rigidity_says(
    data: Path, solver: str, tile_columns: int
) -> None:
    """Many members have a variance of a^2/R, of environments and, in eV, of structures."""
    n, a = 2000, 0.5
    found = done(
        data,
        f"posterior-{solver}-{tile_columns}",
        model={"linear": {**LINEAR, "baseline": {"composition": {"regularizer": 0.1}}}},
        solver=solver,
        numerics={"tile_columns": tile_columns},
        committee={"posterior": {"members": n, "scale": a, "seed": 1}},
    )
    assert found.tasks["committee"] == 1
    close: dict[str, Any] = {"rtol": 5 * np.sqrt(2 / n)}
    for arrays in found.sets.values():
        environments, structures = (arrays[name] for name in VARIANCES)
        np.testing.assert_allclose(environments, a**2 / arrays["environment_lpr"], **close)
        n_atoms = np.diff(arrays["structure_offset"])
        np.testing.assert_allclose(structures, a**2 * n_atoms**2 / arrays["structure_pr"], **close)


def test_attributes_and_summary_say_what_it_is(data: Path) -> None:
    found = done(data, "said", model={"linear": LINEAR}, committee=SUBSAMPLE)
    group: Any = zarr.open_group(str(found.output / "rigidity.zarr"), mode="r")["test"]
    about, arrays = group.attrs["committee"], found.sets["test"]
    assert {name: about[name] for name in DRAWN} == DRAWN
    assert (about["kind"], about["ddof"], about["units"]) == ("subsample", 1, "eV^2")
    sizes = [int(subsample(SEED, k, FRACTION, 9).sum()) for k in range(N_MEMBERS)]
    assert about["n_structures"] == sizes
    assert [group[name].attrs["units"] for name in VARIANCES] == ["eV^2", "eV^2"]
    assert dlpr.Result(found.output).committee("test") == about
    lpr, variance = arrays["environment_lpr"], arrays[VARIANCES[0]]
    close = {"abs": 0.01}  # values that a sketch has in one bin count as equal
    expected = spearmanr(lpr, variance).statistic
    assert about["rank_correlation"] == pytest.approx(expected, **close)
    structure = np.repeat(arrays["structure_group"], np.diff(arrays["structure_offset"]))
    for row in group.attrs["summary"]:
        names = group["structure_group"].attrs["names"]
        own = (structure == names.index(row["group"])) & (
            arrays["environment_species"] == row["species"]
        )
        expected = spearmanr(lpr[own], variance[own]).statistic
        assert row["rank_correlation"] == pytest.approx(expected, **close)
        assert row["committee_variance"][0] == variance[own].min()
        assert row["committee_variance"][-1] == variance[own].max()


# one plan ----------------------------------------------------------------------------------------

N_COLUMNS = 40
NUMERICS = {"block_environments": 16, "task_environments": 32, "fold_block_rows": 3}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("committee")
    from ase.io import write

    write(folder / "train.xyz", crystals(("Ga", "As"), 14), format="extxyz")
    write(folder / "test.xyz", crystals(("Ga", "As"), 4, seed=3), format="extxyz")
    return folder


def job_in(bench: Path, output: str, committee: Any = SUBSAMPLE, **given: Any) -> dlpr.Job:
    sets = {"train": "train", "test": {"files": "test.xyz"}}
    plan = {"numerics": NUMERICS, "solver": "qr", "hypers": TINY, "committee": committee}
    return make_job(bench, test=sets, output=output, **{**plan, **given})


@pytest.fixture
def copy(bench: Path) -> Iterator[Path]:
    """A finished run to go on with."""
    run(job_in(bench, "copy"))
    yield bench
    for name in ("copy", "fresh"):
        shutil.rmtree(bench / name, ignore_errors=True)


@pytest.mark.parametrize("kind", COMMITTEES)
def test_order_and_repetition_change_no_bit(bench: Path, kind: str) -> None:
    one = run(job_in(bench, f"one-{kind}", COMMITTEES[kind]))
    other = run(job_in(bench, f"other-{kind}", COMMITTEES[kind]), executor=Shuffled(1))
    assert_same_bits(one.output, other.output)


@pytest.mark.parametrize("kind", COMMITTEES)
def test_another_seed_concerns_the_committee_alone(copy: Path, kind: str) -> None:
    committee = COMMITTEES[kind]
    run(job_in(copy, "copy", committee))
    ((_, spec),) = committee.items()
    other = {kind: {**spec, "seed": SEED + 1}}
    found = run(job_in(copy, "copy", other))
    folds = {"triangle of the committee"} if kind == "subsample" else set()
    assert set(found.tasks) == FROM_COMMITTEE | folds
    fresh = run(job_in(copy, "fresh", other))
    assert_same_bits(found.output, fresh.output)
    before = {name: arrays.copy() for name, arrays in found.sets.items()}
    again = run(job_in(copy, "copy", committee))
    assert set(again.tasks) <= {"result"}
    for name, arrays in again.sets.items():
        for array in VARIANCES:
            assert (arrays[array] != before[name][array]).all()
        for array in ("environment_lpr", "environment_energy", "structure_pr"):
            np.testing.assert_array_equal(arrays[array], before[name][array])


def test_another_regularizer_folds_no_member_anew(copy: Path) -> None:
    linear = {"regularizer": 1e-3}
    found = run(job_in(copy, "copy", linear=linear))
    assert set(found.tasks) == FROM_COMMITTEE | {"factor of the triangle"}
    assert_same_bits(found.output, run(job_in(copy, "fresh", linear=linear)).output)


def test_structures_whose_number_changes_are_drawn_anew(
    bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file put before others leaves their rows as they are, and not whose they are."""
    monkeypatch.setattr(ingest_stage, "TASK_ATOMS", 8)
    monkeypatch.setattr(fold_stage, "TASK_FLOPS", 1.0)
    monkeypatch.setattr(fold_stage, "FEWEST_ROWS", 0.05)
    run(job_in(bench, "moved"))
    files = {"files": ["test.xyz", "train.xyz"]}
    found = run(job_in(bench, "moved", train=files))
    assert found.tasks["triangle"] < found.used["triangle"].n_tasks  # of all: adopted
    assert_same_bits(found.output, run(job_in(bench, "unmoved", train=files)).output)


def test_without_a_committee_the_rest_is_the_same(copy: Path) -> None:
    """The same folders up to the factor, and the same bits of all that both have."""
    found, bare = run(job_in(copy, "copy")), run(job_in(copy, "fresh", None))
    shared = {"rows", "triangle", "factor of the triangle", "structures of test"}
    assert {found.used[role].name for role in shared} == {bare.used[role].name for role in shared}
    assert not any("committee" in role for role in bare.used)
    for name, arrays in bare.sets.items():
        assert arrays.keys() == found.sets[name].keys() - set(VARIANCES)
        for array, values in arrays.items():
            np.testing.assert_array_equal(values, found.sets[name][array])
    plan = bare.used["result"].plan
    assert "committee" not in plan["settings"]["attributes"]["job"]
    assert "committee" not in bare.used["rigidity of test"].plan["inputs"]


def test_a_member_that_is_lost_is_made_again(copy: Path) -> None:
    before = run(job_in(copy, "copy"))
    members = before.used["committee"]
    (members.path / "parts/000002.npz").unlink()
    assert run(job_in(copy, "copy")).tasks == {"committee": 1}
    fold = before.used["triangle of the committee"]
    fold.withdraw(1)
    members.withdraw(0)
    assert run(job_in(copy, "copy")).tasks == {"triangle of the committee": 1, "committee": 1}
    assert_same_bits(before.output, run(job_in(copy, "fresh")).output)


def test_dask_workers_and_processes_give_the_same_bits(bench: Path) -> None:
    base = run(job_in(bench, "base"))
    running = LocalStarter(2, 1, 2**31, bench / "scratch").start(blas_kernel())
    try:
        result = dlpr.run(job_in(bench, "dask"), client=running.client)
        assert_same_bits(base.output, result.output)
    finally:
        running.close()
    job = job_in(bench, "work")
    write_job(job.path(job.output), job)
    assert_same_bits(base.output, dlpr.work(job.path(job.output), rank=3).output)
    for role, folder in base.used.items():
        if role in ("committee", "triangle of the committee", "rigidity of test"):
            assert task_nbytes(folder) > 0


# what cannot be ----------------------------------------------------------------------------------


class Idle(WorkExecutor):
    """Notes what is computed."""

    def __init__(self) -> None:
        super().__init__(0)
        self.stages: set[str] = set()

    def run(self, folder: StageFolder, *arguments: Any, **options: Any) -> Any:
        self.stages.add(folder.stage)
        return super().run(folder, *arguments, **options)


def test_sub_samples_of_tiles_are_refused_before_anything_is_computed(bench: Path) -> None:
    executor = Idle()
    job = job_in(bench, "tiles", solver="cholesky", numerics={**NUMERICS, "tile_columns": 7})
    with pytest.raises(
        JobError, match=rf"{N_COLUMNS} columns.*tile_columns is 7.*to {N_COLUMNS} .*posterior"
    ):
        run(job, executor=executor)
    assert executor.stages == {"index", "structures"}


def test_members_without_a_label_are_named(bench: Path) -> None:
    rare = {"subsample": {"members": 3, "fraction": 0.01, "seed": 0}}
    assert not subsample(0, 0, 0.01, 14).any()
    for solver in ("qr", "dual"):
        with pytest.raises(InputError, match=r"member 0 .* 0 of 14 structures.*from 0\.01"):
            run(job_in(bench, f"rare-{solver}", rare, solver=solver))


def test_partials_of_all_members_stay_within_their_budget(bench: Path) -> None:
    enough = N_MEMBERS * 8 * (N_COLUMNS + 2 + 1) ** 2  # energies of atoms, and the target
    numerics = {**NUMERICS, "partials_budget": f"{enough}B"}
    found = run(job_in(bench, "budget", numerics=numerics))
    assert found.used["triangle of the committee"].n_tasks == N_MEMBERS
    numerics = {**NUMERICS, "partials_budget": f"{enough - 1}B"}
    with pytest.raises(ResourceError, match=rf"{N_MEMBERS} members.*fewer members"):
        run(job_in(bench, "budget", numerics=numerics))


def test_a_training_set_without_energies_has_no_committee(bench: Path) -> None:
    from ase.io import read, write

    frames = read(bench / "train.xyz", ":")
    for atoms in frames:
        atoms.calc = None
        atoms.info.clear()
    write(bench / "bare.xyz", frames, format="extxyz")
    job = job_in(bench, "bare", train="bare.xyz")
    with pytest.raises(InputError, match=r"committee, and 0 of 14 structures.*train\.keys"):
        run(job)
