"""What to label next, against refits for every candidate and against 500-bit arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from core_oracle import Array, exact_rigidity, steep_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import dlpr.core.candidates as candidates_module
from dlpr.core.candidates import Candidates
from dlpr.core.factor import EPS
from dlpr.core.factorize import factorize
from dlpr.core.folds import Gram, Triangle
from dlpr.core.proposal import OBJECTIVES, Proposal, propose
from dlpr.errors import InputError, JobError, NumericsError

seeds = st.integers(0, 2**31)
MERIT = {
    "mean_variance": lambda v: -v.mean(),
    "mean_log_rigidity": lambda v: -np.log(v).mean(),
    "mean_rigidity": lambda v: (1.0 / v).mean(),
    "min_rigidity": lambda v: 1.0 / v.max(),
}
"""What refits compare, the larger the better"""


def variances(hessian: Array, targets: Array) -> Array:
    return np.einsum("ij,ji->i", targets, np.linalg.solve(hessian, targets.T))


def refit(
    hessian: Array, targets: Array, pool: Sequence[Array], n_picks: int, objective: str
) -> tuple[list[int], Array]:
    """Picks and rigidities by one factorization for every candidate and pick."""
    picks: list[int] = []
    found = [1.0 / variances(hessian, targets)]
    for _ in range(n_picks):
        merits = np.full(len(pool), -np.inf)
        for k, rows in enumerate(pool):
            if k not in picks:
                updated = hessian + rows.T @ rows
                if objective == "d_optimal":
                    merits[k] = np.linalg.slogdet(updated)[1] - np.linalg.slogdet(hessian)[1]
                else:
                    merits[k] = MERIT[objective](variances(updated, targets))
        best = merits.max()
        picks.append(int(np.argmax(merits >= best - 1e-11 * abs(best))))
        hessian = hessian + pool[picks[-1]].T @ pool[picks[-1]]
        found.append(1.0 / variances(hessian, targets))
    return picks, np.array(found)


def chunked(pool: Sequence[Array], cuts: Sequence[int] = ()) -> list[Candidates]:
    """The candidates in chunks that begin at ``cuts``."""
    edges = [0, *sorted(cuts), len(pool)]
    chunks = []
    for start, stop in pairwise(edges):
        own = list(pool[start:stop])
        offset = np.cumsum([0, *(len(rows) for rows in own)])
        width = pool[0].shape[1]
        chunks.append(Candidates(np.concatenate([np.empty((0, width)), *own]), offset))
    return chunks


def make_pool(n: int, n_columns: int, most: int, seed: int) -> list[Array]:
    """Candidates of 1 to ``most`` rows each, the last two equal to the first two."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most + 1, n - 2)
    pool = [0.5 * rng.normal(size=(count, n_columns)) for count in counts]
    return [*pool, pool[0].copy(), pool[1].copy()]


@pytest.mark.parametrize("objective", [*OBJECTIVES, "d_optimal"])
@settings(max_examples=12, deadline=None)
@given(seed=seeds, most=st.integers(1, 4), data=st.data())
def test_picks_are_those_of_refits(
    objective: str, seed: int, most: int, data: st.DataObject
) -> None:
    """Whatever the chunks: same structures in the same order, same rigidities."""
    rng = np.random.default_rng(seed)
    rows, targets = rng.normal(size=(20, 9)), rng.normal(size=(6, 9))
    pool = make_pool(12, 9, most, seed)
    expected, rigidity = refit(rows.T @ rows + 0.1 * np.eye(9), targets, pool, 8, objective)
    gram = Gram.zeros(9)
    gram.update(rows)
    factor, _ = factorize(gram, 0.1, 20, "cholesky")
    cuts = data.draw(st.lists(st.integers(0, 12), max_size=4))
    chunks = chunked([factor.whiten(own) for own in pool], cuts)
    rule = "d_optimal" if objective == "d_optimal" else "greedy"
    measure = "mean_variance" if objective == "d_optimal" else objective
    found = propose(factor.whiten(targets), chunks, 8, measure, rule)
    assert found.picks.tolist() == expected
    assert len(set(expected)) == 8
    np.testing.assert_allclose(found.rigidity, rigidity, rtol=1e-10)
    assert (found.rigidity[1:] >= found.rigidity[:-1] * (1 - 1e-12)).all()
    curve = [abs(MERIT[measure](1.0 / one)) for one in rigidity]
    np.testing.assert_allclose(np.abs(found.curve), curve, rtol=1e-9, atol=1e-9)


def test_fewer_rows_than_columns() -> None:
    """A basis of the few directions of the data; energies with forces, picks outside its span."""
    rng = np.random.default_rng(1)
    rows, targets = steep_rows(10, 40, 2.0, seed=1), rng.normal(size=(5, 40))
    pool = [rng.normal(size=(13, 40)) for _ in range(9)]
    hessian = rows.T @ rows + 1e-2 * np.eye(40)
    expected, rigidity = refit(hessian, targets, pool, 5, "mean_variance")
    fold = Triangle.zeros(40)
    fold.update(rows)
    factor, _ = factorize(fold, 1e-2, 10, "eigh")
    found = propose(factor.whiten(targets), chunked([factor.whiten(p) for p in pool]), 5)
    assert found.picks.tolist() == expected
    np.testing.assert_allclose(found.rigidity, rigidity, rtol=1e-8)


def hard_case(decades: float) -> tuple[Array, list[Array]]:
    """Targets of variances up to 10^decades, and candidates along them, many nearly alike."""
    rng = np.random.default_rng(7)
    spread = np.logspace(decades / 2, -1, 30)
    kinds = rng.normal(size=(12, 30)) * spread
    near = np.repeat(kinds, 5, axis=0) * (1.0 + 1e-4 * rng.normal(size=(60, 30)))
    targets = kinds[:8] + 1e-3 * rng.normal(size=(8, 30)) * spread
    return targets, [near[k : k + 1 + k % 3] for k in range(58)]


def worst_error(found: Proposal, targets: Array, pool: list[Array]) -> float:
    """Of all rigidities after all picks, against 500 bits."""
    rows = np.concatenate([pool[k] for k in found.picks])
    exact = exact_rigidity(rows, 1.0, targets)
    return float(np.abs(found.rigidity[-1] / exact - 1.0).max())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("decades", [0, 4, 8, 14])
def test_digits_are_kept_over_many_picks(decades: int, objective: str) -> None:
    """An error of eps times the fall of variances, up to `LOSS`, or times the root of it."""
    targets, pool = hard_case(decades)
    found = propose(targets, chunked(pool, [20, 41]), 40, objective)
    assert len(found.picks) == 40
    fall = (found.rigidity[-1] / found.rigidity[0]).max()
    assert fall > 0.1 * 10**decades
    factor = max(min(fall, candidates_module.LOSS), np.sqrt(fall))
    assert worst_error(found, targets, pool) < 5 * EPS * factor + 500 * EPS


def test_downdates_alone_lose_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, pool = hard_case(10)
    assert worst_error(propose(targets, chunked(pool), 40), targets, pool) < 1e-10
    monkeypatch.setattr(candidates_module, "LOSS", np.inf)
    assert worst_error(propose(targets, chunked(pool), 40), targets, pool) > 1e-8


def test_all_is_computed_anew_where_targets_alone_have_fallen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many labels of one direction: what each says falls by a factor of 200, the target's more."""
    computed: list[int] = []
    compute = candidates_module.Pool._compute

    def counted(self: candidates_module.Pool) -> None:
        computed.append(len(self._picked))
        compute(self)

    monkeypatch.setattr(candidates_module.Pool, "_compute", counted)
    monkeypatch.setattr(candidates_module, "LOSS", 1000.0)
    direction = np.eye(1, 5)
    found = propose(direction, chunked([np.sqrt(200.0) * direction] * 12), 12)
    assert computed == [0, 5]
    np.testing.assert_allclose(found.rigidity[:, 0], 1.0 + 200.0 * np.arange(13), rtol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_was_free_is_pinned(objective: str) -> None:
    """A variance falls by more than double precision can show as a difference."""
    rng = np.random.default_rng(10)
    row = 1e10 * rng.normal(size=(1, 6))
    pool = [rng.normal(size=(1, 6)), row, rng.normal(size=(1, 6))]
    scale = np.linspace(1.0, 2.0, 30)
    found = propose(row * scale[:, None], chunked(pool), 1, objective)
    assert found.picks.tolist() == [1]
    np.testing.assert_allclose(found.rigidity[1], 1.0 / scale**2, rtol=1e-4)


def test_a_label_adds_its_weight_to_its_own_rigidity() -> None:
    """FD24 app. B, and as much again where the same structure is there again."""
    rng = np.random.default_rng(2)
    row = rng.normal(size=(1, 7))
    found = propose(row / np.sqrt(2.5), chunked([row] * 3), 9)
    assert found.picks.tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.diff(found.rigidity[:, 0]), 2.5, rtol=1e-13)
    rows = rng.normal(size=(4, 7))
    pool = [rows[:2], rows[2:]]
    mixed = [np.linalg.qr(rng.normal(size=(2, 2)))[0] @ own for own in pool]
    own, other = (propose(row, chunked(p), 2) for p in (pool, mixed))
    np.testing.assert_array_equal(own.picks, other.picks)
    np.testing.assert_allclose(own.rigidity, other.rigidity, rtol=1e-13)


def test_no_structure_is_picked_twice() -> None:
    rng = np.random.default_rng(3)
    pool = [rng.normal(size=(1, 5)) for _ in range(4)]
    for rule in ("greedy", "d_optimal", "random"):
        found = propose(pool[1], chunked(pool), 100, rule=rule)
        assert sorted(found.picks.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("rule", ["greedy", "d_optimal"])
def test_equal_structures_go_to_the_lowest_index(rule: str) -> None:
    """In any chunk, beside candidates of any number of rows, up to rounding."""
    rng = np.random.default_rng(4)
    best = 3.0 * rng.normal(size=(2, 6))
    others = [0.1 * rng.normal(size=(1 + k % 3, 6)) for k in range(40)]
    for place in (7, 23, 38):
        pool = list(others)
        for k in (place, 39):
            turn = np.linalg.qr(rng.normal(size=(2, 2)))[0]
            pool[k] = turn @ best
        for cuts in ((), (15, 16), (30,)):
            found = propose(best, chunked(pool, cuts), 2, rule=rule)
            assert found.picks.tolist() == [place, 39]


def test_nothing_helps() -> None:
    """Candidates that share no direction with the targets, and none at all."""
    rng = np.random.default_rng(5)
    targets, pool = np.zeros((2, 6)), np.zeros((5, 6))
    targets[:, :3], pool[:, 3:] = rng.normal(size=(2, 3)), rng.normal(size=(5, 3))
    chunks = [Candidates(pool, np.arange(6))]
    for objective in OBJECTIVES:
        found = propose(targets, chunks, 3, objective)
        assert (len(found.picks), found.rigidity.shape, found.curve.shape) == (0, (1, 2), (1,))
    assert len(propose(targets, chunks, 3, rule="d_optimal").picks) == 3
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    turned = [Candidates(pool @ turn, np.arange(6))]
    assert len(propose(targets @ turn, turned, 3).picks) == 0
    assert len(propose(targets, [], 3).picks) == 0


def test_rows_of_zeros_are_apart() -> None:
    rng = np.random.default_rng(6)
    targets, pool = rng.normal(size=(4, 5)), [rng.normal(size=(1, 5)) for _ in range(6)]
    pool.insert(2, np.zeros((1, 5)))
    expected = propose(targets, chunked(pool), 7)
    assert sorted(expected.picks) == [0, 1, 3, 4, 5, 6]
    with_zero = np.insert(targets, 1, 0.0, axis=0)
    for objective in OBJECTIVES:
        found = propose(with_zero, chunked(pool), 3, objective)
        same = propose(targets, chunked(pool), 3, objective)
        np.testing.assert_array_equal(found.picks, same.picks)
        np.testing.assert_array_equal(found.curve, same.curve)
        np.testing.assert_array_equal(found.rigidity[:, 1], np.inf)
        np.testing.assert_array_equal(np.delete(found.rigidity, 1, axis=1), same.rigidity)
    with pytest.raises(InputError, match="all 2 targets are rows of zeros"):
        propose(np.zeros((2, 5)), chunked(pool), 1)


def test_random_picks_follow_the_seed_alone() -> None:
    rng = np.random.default_rng(8)
    targets, pool = rng.normal(size=(3, 6)), [rng.normal(size=(1, 6)) for _ in range(12)]

    def picks(seed: int, cuts: Sequence[int] = (), of: Array = targets) -> NDArray[np.int64]:
        return propose(of, chunked(pool, cuts), 3, rule="random", seed=seed).picks

    np.testing.assert_array_equal(picks(1), picks(1, [4, 9], targets[:1]))
    every = np.array([picks(seed) for seed in range(120)])
    assert np.mean(every[1:, 0] == every[:-1, 1]) < 0.3
    assert all(len(set(one)) == 3 for one in every.tolist())
    for column in every.T:
        counts = np.bincount(column, minlength=12)
        assert np.abs(counts - 10).max() < 4 * np.sqrt(10)


def test_rows_may_be_a_mapped_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(9)
    rows, targets = rng.normal(size=(20, 6)), rng.normal(size=(3, 6))
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, rows)
    offset = np.array([0, 2, 3, 9, 20])
    found = propose(targets, [Candidates(np.load(path, mmap_mode="r"), offset)], 3)
    same = propose(targets, [Candidates(rows, offset)], 3)
    np.testing.assert_array_equal(found.picks, same.picks)
    np.testing.assert_array_equal(found.rigidity, same.rigidity)


def test_refusals() -> None:
    targets, pool = np.ones((1, 3)), chunked([np.ones((2, 3)) for _ in range(4)], [3])
    with pytest.raises(JobError, match="'best'; choose one of mean_variance, mean_log"):
        propose(targets, pool, 1, "best")
    with pytest.raises(JobError, match="'clever'; choose one of greedy, d_optimal, random"):
        propose(targets, pool, 1, rule="clever")
    with pytest.raises(JobError, match=r"0 structures .* at least 1"):
        propose(targets, pool, 0)
    alike = 1e9 * np.array([[1.0, 2.0, 3.0]] * 3)
    with pytest.raises(NumericsError, match=r"variance of up to 4.2e.19.*larger regularizer"):
        propose(targets, chunked([alike]), 1)
    for value in (np.nan, np.inf):
        pool[1].rows[1, 2] = value
        with pytest.raises(InputError, match="candidate 3 has rows that are not finite"):
            propose(targets, pool, 1)
