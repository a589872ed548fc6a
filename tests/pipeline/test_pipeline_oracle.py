"""Whole runs against featomic's full layout and a plain NumPy and SciPy evaluation in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pipeline_cases import (
    HYPERS,
    SPECIES,
    TINY,
    Oracle,
    check_against,
    crystals,
    gas,
    load,
    make_job,
    run,
    shapes,
    store,
)

from dlpr.core.factorize import EPS
from dlpr.errors import JobError
from dlpr.stages import result as result_stage

BLOCKS = {"block_environments": 16, "task_environments": 32}
"""Small enough that structures straddle blocks and tasks."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs reuse each other's features."""
    folder = tmp_path_factory.mktemp("oracle")
    for n, symbols in SPECIES.items():
        store(folder / f"train{n}.xyz", crystals(symbols, 12))
        store(folder / f"test{n}.xyz", crystals(symbols, 4, seed=3, big=3) + shapes(symbols))
    return folder


@pytest.mark.parametrize(
    ("n_species", "centre_species", "rows", "scale", "solver"),
    [
        (1, "separate", "mean", "rms", "auto"),
        (1, "shared", "sum", "none", "cholesky"),
        (1, "separate", "sqrt", "rms", "qr"),
        (1, "shared", "mean", "none", "eigh"),
        (2, "separate", "mean", "rms", "cholesky"),
        (2, "separate", "sum", "none", "auto"),
        (2, "shared", "sqrt", "rms", "auto"),
        (2, "separate", "sqrt", "none", "qr"),
        (2, "shared", "sum", "rms", "qr"),
        (2, "separate", "mean", "none", "eigh"),
        (3, "separate", "sum", "rms", "eigh"),
        (3, "separate", "mean", "none", "qr"),
        (3, "shared", "mean", "rms", "cholesky"),
        (3, "separate", "sqrt", "rms", "auto"),
        (3, "shared", "sum", "none", "eigh"),
        (2, "shared", "mean", "rms", "dual"),
        (3, "separate", "sqrt", "none", "dual"),
    ],
)
def test_whole_runs_equal_the_serial_evaluation(
    bench: Path, n_species: int, centre_species: str, rows: str, scale: str, solver: str
) -> None:
    linear = {"rows": rows, "scale": scale, "centre_species": centre_species}
    linear["regularizer"] = {"mean": 1e-4, "sqrt": 1e-3, "sum": 1e-2}[rows]  # cond(H) < 1e6
    job = make_job(
        bench,
        f"train{n_species}.xyz",
        {"train": "train", "test": {"files": f"test{n_species}.xyz"}},
        linear,
        solver=solver,
        numerics=BLOCKS,
        output=f"out{n_species}",
    )
    found = run(job)
    train, test = (load(bench / f"{name}{n_species}.xyz") for name in ("train", "test"))
    oracle = Oracle(train, [test], **linear)
    check_against(found.sets["train"], oracle, train)
    check_against(found.sets["test"], oracle, test)
    conditioning = found.facts["conditioning"]
    few = 2 * len(train) <= conditioning["n_columns"]
    automatic = "dual" if few else "cholesky"
    assert conditioning["solver"] == (automatic if solver == "auto" else solver)
    np.testing.assert_allclose(found.facts["mu"], oracle.mu, rtol=1e-12)
    sigma = np.linalg.norm(oracle.rows, 2)
    np.testing.assert_allclose(conditioning["sigma_max"], sigma, rtol=1e-3)
    assert 0.3 < conditioning["condition"] * oracle.mu / (sigma**2 + oracle.mu) <= 1.0 + 1e-9


@pytest.mark.parametrize(
    ("regularizer", "rows", "solver"),
    [(1e-13, "mean", "auto"), (1e-13, "mean", "qr"), (1e-10, "sum", "qr")],
)
def test_steep_jobs_agree_within_the_accuracy_that_they_state(
    bench: Path, regularizer: float, rows: str, solver: str
) -> None:
    linear = {"regularizer": regularizer, "rows": rows, "centre_species": "shared"}
    test = {"test": {"files": "test2.xyz"}}
    found = run(make_job(bench, "train2.xyz", test, linear, solver=solver, output="out2"))
    assert found.facts["conditioning"]["solver"] == ("dual" if solver == "auto" else solver)
    assert found.facts["conditioning"]["condition"] > 1e11
    assert found.accuracy < 1e-7
    train, test = load(bench / "train2.xyz"), load(bench / "test2.xyz")
    check_against(found.sets["test"], Oracle(train, [test], **linear), test, 4 * found.accuracy)


@pytest.mark.parametrize("solver", ["auto", "qr", "eigh"])
@pytest.mark.parametrize("centre_species", ["separate", "shared"])
def test_without_a_regularizer_what_nothing_constrains_has_rigidity_0(
    bench: Path, solver: str, centre_species: str
) -> None:
    linear = {"regularizer": 0.0, "centre_species": centre_species}
    train = [*crystals(("Ga", "As"), 6), *shapes(("Ga",))[-2:]]
    train = store(bench / "few.xyz", train)
    job = make_job(
        bench,
        "few.xyz",
        {"train": "train", "test": {"files": "test2.xyz"}},
        linear,
        solver=solver,
        numerics=BLOCKS,
        output="out_few",
    )
    found, test = run(job), load(bench / "test2.xyz")
    oracle = Oracle(train, [test], **linear)
    rtol = 1e-9 if solver != "eigh" else 1e-5
    for name, frames in (("train", train), ("test", test)):
        check_against(found.sets[name], oracle, frames, rtol)
        lpr, ratio = (found.sets[name][f"environment_{k}"] for k in ("lpr", "prior_ratio"))
        np.testing.assert_array_equal(ratio, np.where(lpr > 0.0, np.inf, 1.0))
    lpr = found.sets["train"]["environment_lpr"]
    assert np.count_nonzero(lpr == 0.0) > 10
    assert (lpr[-2:] >= 1.0 - 1e-9).all()  # one atom: the environment is the row
    assert (found.sets["train"]["structure_pr"] > 0.9).all()
    assert found.facts["conditioning"]["rank"] == len(train)
    automatic = (
        "dual" if solver == "auto" else "eigh"
    )  # also what QR takes where nothing regularizes
    assert found.facts["conditioning"]["solver"] == automatic


@pytest.mark.parametrize("scale", ["rms", "none"])
def test_without_a_regularizer_data_that_span_the_columns_constrain_all(
    tmp_path: Path, scale: str
) -> None:
    linear = {"regularizer": 0.0, "scale": scale, "rows": "sqrt"}
    train = store(tmp_path / "train.xyz", crystals(("Si",), 20, big=3))
    test = store(tmp_path / "test.xyz", shapes(("Si",)))
    sets = {"test": {"files": "test.xyz"}}
    found = run(make_job(tmp_path, test=sets, linear=linear, hypers=TINY))
    assert found.facts["conditioning"]["rank"] == found.facts["conditioning"]["n_columns"]
    check_against(found.sets["test"], Oracle(train, [test], TINY, **linear), test, 1e-8)
    assert (found.sets["test"]["environment_lpr"] > 0.0).all()


def test_cholesky_without_a_regularizer_is_refused(bench: Path) -> None:
    linear = {"regularizer": 0.0}
    job = make_job(bench, "train1.xyz", linear=linear, solver="cholesky", output="out1")
    with pytest.raises(JobError, match="qr"):
        run(job)


@pytest.mark.parametrize("solver", ["cholesky", "qr", "eigh", "dual"])
def test_the_prior_ratio_is_1_where_the_data_say_nothing(tmp_path: Path, solver: str) -> None:
    store(tmp_path / "train.xyz", crystals(("C", "H"), 8))
    test = store(tmp_path / "test.xyz", crystals(("C", "H", "O"), 6, seed=5))
    sets = {"train": "train", "test": {"files": "test.xyz"}}
    found = run(make_job(tmp_path, test=sets, solver=solver, numerics=BLOCKS))
    here, numbers = found.sets["test"], np.concatenate([atoms.numbers for atoms in test])
    ratio = here["environment_prior_ratio"]
    oxygen = numbers == 8
    exact = 8 * EPS if solver != "eigh" else found.accuracy
    np.testing.assert_allclose(ratio[oxygen], 1.0, rtol=exact)
    assert (ratio[~oxygen] >= 1.0 - exact).all()
    assert (ratio[~oxygen] > 1.1).any()
    np.testing.assert_array_equal(here["environment_unseen"] & 1, oxygen.astype(int))
    near = np.concatenate(
        [
            ((atoms.get_all_distances(mic=True) < 3.0) & (atoms.numbers == 8)).any(1)
            for atoms in test
        ]
    )
    assert (here["environment_unseen"][near] & 2).all()
    assert not found.sets["train"]["environment_unseen"].any()
    assert (found.sets["train"]["environment_prior_ratio"] > 1.0).all()


@pytest.mark.parametrize("centre_species", ["separate", "shared"])
def test_float32_storage_stays_within_the_loss_that_it_states(
    bench: Path, centre_species: str
) -> None:
    linear = {"centre_species": centre_species, "regularizer": 1e-6}
    sets = {"train": "train", "test": {"files": "test2.xyz"}}
    settings = {"numerics": BLOCKS, "storage": {"dtype": "float32"}, "solver": "qr"}
    job = make_job(bench, "train2.xyz", sets, linear, output="out_single", **settings)
    found = run(job)
    train, test = load(bench / "train2.xyz"), load(bench / "test2.xyz")
    oracle = Oracle(train, [test], **linear)
    worst = 0.0
    for name, frames in (("train", train), ("test", test)):
        for array, expected in oracle.expect(frames).items():
            worst = max(worst, float(np.max(np.abs(found.sets[name][array] / expected - 1.0))))
    assert 1e-9 < worst < found.accuracy < 3e-2
    stored = found.used["features of train"].path / "parts/000000.zarr/environment_feature/c.0.0"
    n_features = found.facts["conditioning"]["n_columns"] // (1 + (centre_species == "separate"))
    assert stored.stat().st_size == 4 * 16 * n_features + 4


@pytest.mark.parametrize("stored", [False, True])
def test_frames_cut_by_space_equal_whole_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    monkeypatch.setattr(result_stage, "CHUNK_ROWS", 1000)  # frames are cut by chunks of results
    train = store(tmp_path / "train.xyz", crystals(("Ga", "As"), 12))
    large = [gas(4500, ("Ga", "As"), 1), gas(4200, ("Ga", "As"), 2, (True, True, False))]
    small = crystals(("Ga", "As"), 3, seed=7, big=3)
    test = store(tmp_path / "test.xyz", [small[0], large[0], small[1], large[1], small[2]])
    sets = {"test": {"files": "test.xyz"}}
    numerics = {"block_environments": 192, "task_environments": 576}
    job = make_job(tmp_path, test=sets, numerics=numerics, store_test_features=stored)
    found = run(job)
    assert found.tasks["rigidity of test"] > 15
    check_against(found.sets["test"], Oracle(train, [test]), test)


def test_a_large_frame_can_be_trained_on(tmp_path: Path) -> None:
    train = [*crystals(("Si",), 4), gas(4100, ("Si",), 3), *crystals(("Si",), 3, seed=4)]
    train = store(tmp_path / "train.xyz", train)
    numerics = {"block_environments": 256, "task_environments": 1024}
    found = run(make_job(tmp_path, numerics=numerics))
    assert found.tasks["rows"] > 3
    check_against(found.sets["train"], Oracle(train, []), train)


def test_groups_keep_structures_where_they_were(tmp_path: Path) -> None:
    train = store(tmp_path / "train.xyz", crystals(("Ga", "As"), 12))
    grouped = {"files": "train.xyz", "group_by": "config_type"}
    found = run(make_job(tmp_path, grouped, numerics=BLOCKS, solver="cholesky"))
    oracle, partials = Oracle(train, []), found.used["hessian"]
    check_against(found.sets["train"], oracle, train)
    assert partials.n_tasks == 2
    for task, name in enumerate(("even", "odd")):  # none crosses a group
        assert partials.receipts()[task].facts["group"] == name
        square = np.diagonal(partials.read_part(task)["matrix"])
        width = len(square) // 2 - 1  # of two blocks, an energy per atom behind each, the target
        own = np.r_[:width, width + 1 : 2 * width + 1]
        expected = np.sum(oracle.rows[task::2] ** 2)
        np.testing.assert_allclose(np.sum(square[own]), expected, rtol=1e-12)
    np.testing.assert_array_equal(found.sets["train"]["structure_group"], np.arange(12) % 2)


def test_only_the_training_set_may_be_called_train(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="the set train is the training set"):
        make_job(tmp_path, test={"train": {"files": "other.xyz"}})


def test_features_that_are_all_0_have_no_scale(tmp_path: Path) -> None:
    hypers = {**HYPERS, "density": {**HYPERS["density"], "center_atom_weight": 0.0}}
    store(tmp_path / "train.xyz", shapes(("Si",))[-2:-1])
    with pytest.raises(Exception, match="features of the training set are 0"):
        run(make_job(tmp_path, hypers=hypers))


def test_environments_without_features_are_infinitely_rigid(tmp_path: Path) -> None:
    hypers = {**HYPERS, "density": {**HYPERS["density"], "center_atom_weight": 0.0}}
    store(tmp_path / "train.xyz", [*crystals(("Si",), 4), *shapes(("Si",))[-2:-1]])
    for solver in ("dual", "cholesky", "qr", "eigh"):
        found = run(make_job(tmp_path, hypers=hypers, solver=solver)).sets["train"]
        assert found["environment_lpr"][-1] == found["structure_pr"][-1] == np.inf
        assert found["environment_prior_ratio"][-1] == 1.0
        assert np.isfinite(found["environment_lpr"][:-1]).all()
