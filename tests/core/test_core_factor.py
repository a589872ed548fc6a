import numpy as np
import pytest
from core_oracle import Array, exact_rigidity, steep_rows, telling_tests
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.core.factor import EPS, RESIDUAL_RTOL, HeldFactor, SpectralFactor, load_factor
from dlpr.core.factorize import Conditioning, factorize, refusal
from dlpr.core.folds import Gram, Triangle
from dlpr.errors import JobError, NumericsError

ROUTES = {
    "cholesky": (Gram, "cholesky"),
    "qr": (Triangle, "qr"),
    "eigh of Gram": (Gram, "eigh"),
    "eigh of triangle": (Triangle, "eigh"),
}
seeds = st.integers(0, 2**31)


def solve(rows: Array, mu: float, route: str) -> tuple[HeldFactor, Conditioning]:
    kind, solver = ROUTES[route]
    fold = kind.zeros(rows.shape[1])
    for part in np.array_split(rows, 3):
        fold.update(part)
    return factorize(fold, mu, len(rows), solver)


@pytest.mark.parametrize("decades", [4, 6, 8, 10, 12, 14, 16, 18])
@pytest.mark.parametrize("shape", [(60, 24), (30, 50)])
@pytest.mark.parametrize("route", ROUTES)
def test_accuracy_is_as_stated(route: str, shape: tuple[int, int], decades: int) -> None:
    """cond(H) = 10^decades, against 500 bits."""
    rows, mu = steep_rows(*shape, decades / 2 + 1, seed=decades), 10.0**-decades
    if decades >= 16 and route in ("cholesky", "eigh of Gram"):
        with pytest.raises(NumericsError, match="qr"):
            solve(rows, mu, route)
        return
    tests = telling_tests(rows, seed=decades)
    factor, stated = solve(rows, mu, route)
    exact = exact_rigidity(rows, mu, tests)
    error = np.abs(factor.rigidity(tests) / exact - 1.0).max()
    assert error <= stated.accuracy
    assert stated.condition == pytest.approx(1 / mu, rel=0.5)
    assert stated.sigma_max == pytest.approx(1.0, rel=0.1)
    through_gram = ROUTES[route][0] is Gram
    limit = 10 * EPS / mu if through_gram else 5 * EPS / np.sqrt(mu)
    in_part_of_the_space = isinstance(factor, SpectralFactor) and shape[0] < shape[1]
    residual = RESIDUAL_RTOL if in_part_of_the_space else 0.0
    assert stated.accuracy == pytest.approx(limit + residual, rel=0.5)
    assert (refusal(stated) is not None) == (decades >= 8)


def test_gram_matrix_loses_what_the_triangle_keeps() -> None:
    rows, mu = steep_rows(60, 24, 7.0, seed=0), 1e-13
    tests = telling_tests(rows, seed=0)
    exact = exact_rigidity(rows, mu, tests)
    error = {r: np.abs(solve(rows, mu, r)[0].rigidity(tests) / exact - 1).max() for r in ROUTES}
    assert error["cholesky"] > 1e-6
    assert error["eigh of Gram"] > 1e-6
    assert error["qr"] < 1e-9
    assert error["eigh of triangle"] < 1e-9


@pytest.mark.parametrize("shape", [(90, 24), (15, 40)])
@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=10, deadline=None)
@given(seed=seeds, start=st.integers(0, 24), stop=st.integers(0, 24))
def test_block_is_masked_rows_against_full_hessian(
    route: str, shape: tuple[int, int], seed: int, start: int, stop: int
) -> None:
    start, stop = min(start, stop), max(start, stop)
    rows = steep_rows(*shape, 3.0, seed)
    factor, stated = solve(rows, 1e-6, route)
    masked = np.zeros((5, shape[1]))
    masked[:, start:stop] = np.random.default_rng(seed).normal(size=(5, stop - start))
    block = factor.block(slice(start, stop))
    expected = factor.rigidity(masked)
    found = block.rigidity(masked[:, start:stop])
    np.testing.assert_allclose(found, expected, rtol=2 * stated.accuracy)
    reloaded = load_factor(block.to_arrays())
    np.testing.assert_array_equal(reloaded.rigidity(masked[:, start:stop]), found)


@pytest.mark.parametrize("shape", [(90, 24), (15, 40)])
@pytest.mark.parametrize("route", ROUTES)
def test_products_of_whitened_rows(route: str, shape: tuple[int, int]) -> None:
    """``z.z' = g^T H^-1 g'``, by the root that `root_solve` applies; of a block as well."""
    rows = steep_rows(*shape, 3.0, seed=1)
    tests = telling_tests(rows, seed=1)
    tests.flags.writeable = False
    factor, _ = solve(rows, 1e-4, route)
    hessian = rows.T @ rows + 1e-4 * np.eye(shape[1])
    own = slice(5, 12)
    masked = np.zeros_like(tests)
    masked[:, own] = tests[:, own]
    for whitened, whole in (
        (factor.whiten(tests), tests),
        (factor.block(own).whiten(tests[:, own]), masked),
        (factor.whiten(tests[:0]), tests[:0]),
    ):
        expected = whole @ np.linalg.solve(hessian, whole.T)
        lengths = np.sqrt(np.diagonal(expected))
        off = np.abs(whitened @ whitened.T - expected)
        assert np.all(off <= 1e-11 * np.outer(lengths, lengths))
    root = factor.root_solve(np.eye(shape[1], order="F"))
    off = np.linalg.norm(factor.whiten(tests) - tests @ root, axis=1)
    assert np.all(off <= 1e-11 * np.linalg.norm(tests @ root, axis=1))


def test_nothing_is_whitened_that_nothing_bounds() -> None:
    factor, _ = solve(np.eye(3, 5), 0.0, "qr")
    with pytest.raises(NumericsError, match=r"5 columns and rank 3.*regularizer above 0"):
        factor.whiten(np.ones((1, 5)))


@pytest.mark.parametrize("shape", [(90, 24), (15, 40)])
def test_all_routes_agree_and_reload(shape: tuple[int, int]) -> None:
    rows = steep_rows(*shape, 2.0, seed=3)
    tests = telling_tests(rows, seed=3)
    expected = exact_rigidity(rows, 1e-3, tests)
    spectrum = np.concatenate([np.linalg.svd(rows)[1] ** 2, np.zeros(40)])[: shape[1]] + 1e-3
    for route in ROUTES:
        factor, stated = solve(rows, 1e-3, route)
        np.testing.assert_allclose(factor.rigidity(tests), expected, rtol=1e-11)
        np.testing.assert_allclose(factor.eigenvalues(), spectrum, rtol=1e-11)
        assert (stated.rank, stated.n_rows, stated.n_columns) == (min(shape), *shape)
        reloaded = load_factor(factor.to_arrays())
        assert type(reloaded) is type(factor)
        np.testing.assert_array_equal(reloaded.rigidity(tests), factor.rigidity(tests))


@pytest.mark.parametrize("route", ROUTES)
def test_zero_rows_and_bits(route: str) -> None:
    factor, _ = solve(steep_rows(30, 12, 2.0, seed=0), 1e-4, route)
    rows = np.random.default_rng(0).normal(size=(6, 12))
    rows[2] = 0.0
    kept = rows.copy()
    rigidity = factor.rigidity(rows)
    np.testing.assert_array_equal(rows, kept)
    assert rigidity[2] == np.inf
    assert np.isfinite(np.delete(rigidity, 2)).all()
    np.testing.assert_array_equal(factor.rigidity(np.asfortranarray(rows)), rigidity)
    np.testing.assert_array_equal(factor.rigidity(np.hstack([rows, rows])[:, :12]), rigidity)
    rows.flags.writeable = False
    np.testing.assert_array_equal(factor.rigidity(rows), rigidity)
    assert factor.rigidity(rows[:0]).shape == (0,)
    assert (factor.block(slice(5, 5)).rigidity(rows[:, 5:5]) == np.inf).all()


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, weight=st.floats(1e-2, 1e2), n_more=st.integers(0, 2))
def test_a_row_in_the_data_adds_its_weight(
    route: str, seed: int, weight: float, n_more: int
) -> None:
    """FD24 app. B: R(g) rises by exactly the weight, by at least that with further rows."""
    rng = np.random.default_rng(seed)
    rows, tests = rng.normal(size=(12, 9)), rng.normal(size=(6, 9))
    more = rng.normal(size=(n_more, 9))
    before = solve(rows, 0.1, route)[0].rigidity(tests)
    added = np.vstack([rows, np.sqrt(weight) * tests[:1], more])
    after = solve(added, 0.1, route)[0].rigidity(tests)
    assert (after >= before * (1 - 1e-11)).all()
    assert after[0] >= (before[0] + weight) * (1 - 1e-11)
    if n_more == 0:
        assert after[0] == pytest.approx(before[0] + weight, rel=1e-11)


@pytest.mark.parametrize(("power", "gain"), [(-1.0, 1.0), (-0.5, 5.0), (0.0, 25.0)])
def test_equal_environments_reach_the_weight_of_their_structure(power: float, gain: float) -> None:
    """Property 2: 5 equal environments in training have LPR >= lambda times 1, N or N^2."""
    rng = np.random.default_rng(4)
    environment = rng.normal(size=(1, 8))
    weight = 2.5
    row = np.sqrt(weight) * 5.0**power * 5 * environment
    rows = np.vstack([rng.normal(size=(10, 8)), row])
    without = solve(rows[:-1], 1e-2, "cholesky")[0].rigidity(environment)[0]
    rigidity = solve(rows, 1e-2, "cholesky")[0].rigidity(environment)[0]
    assert rigidity == pytest.approx(without + weight * gain, rel=1e-12)


@pytest.mark.parametrize("route", ROUTES)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
@settings(max_examples=10, deadline=None)
def test_rigidity_falls_with_the_square_of_a_row(route: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    factor, _ = solve(rng.normal(size=(5, 9)), 0.1, route)
    tests = rng.normal(size=(4, 9))
    np.testing.assert_allclose(
        factor.rigidity(scale * tests), factor.rigidity(tests) / scale**2, rtol=1e-12
    )


def test_lagrangian_definition() -> None:
    """JCTC23 eq. 7-11: hold y_k off by eps, minimize again, and the loss rises by R eps^2/2."""
    rng = np.random.default_rng(5)
    rows, target, g, mu = rng.normal(size=(15, 6)), rng.normal(size=15), rng.normal(size=6), 0.3
    design = np.vstack([rows, np.sqrt(mu) * np.eye(6)])
    goal = np.concatenate([target, np.zeros(6)])

    def loss(w: Array) -> float:
        return 0.5 * float(np.sum((goal - design @ w) ** 2))

    best = np.linalg.lstsq(design, goal)[0]
    allowed = np.linalg.svd(g[None])[2][1:].T
    offset = best + 0.7 * g / (g @ g)
    free = np.linalg.lstsq(design @ allowed, goal - design @ offset)[0]
    rise = loss(offset + allowed @ free) - loss(best)
    for route in ROUTES:
        rigidity = solve(rows, mu, route)[0].rigidity(g[None])[0]
        assert rise == pytest.approx(0.5 * rigidity * 0.7**2, rel=1e-10)


@pytest.mark.parametrize("route", ["qr", "eigh of Gram", "eigh of triangle"])
def test_without_regularizer(route: str) -> None:
    """Rank 7 of 12: R is that of the span's coordinates inside it and 0 outside."""
    rng = np.random.default_rng(6)
    span = np.linalg.qr(rng.normal(size=(12, 7)))[0].T
    coordinates = rng.normal(size=(40, 7))
    factor, stated = solve(coordinates @ span, 0.0, route)
    assert isinstance(factor, SpectralFactor)
    assert (stated.solver, stated.rank, stated.mu) == ("eigh", 7, 0.0)
    sigma = np.linalg.svd(coordinates)[1]
    assert stated.condition == pytest.approx((sigma[0] / sigma[-1]) ** 2, rel=1e-10)
    assert stated.sigma_max == pytest.approx(sigma[0], rel=1e-12)
    inside = rng.normal(size=(4, 7))
    expected = 1 / np.einsum(
        "ij,ij->i", inside, np.linalg.solve(coordinates.T @ coordinates, inside.T).T
    )
    np.testing.assert_allclose(factor.rigidity(inside @ span), expected, rtol=1e-10)
    outside = np.linalg.svd(span)[2][7:]
    tests = inside @ span + 1e-6 * outside[:4]
    np.testing.assert_array_equal(factor.rigidity(tests), 0.0)
    np.testing.assert_allclose(
        factor.rigidity(inside @ span + 1e-9 * outside[:4]), expected, rtol=1e-6
    )
    assert factor.rigidity(np.zeros((1, 12)))[0] == np.inf
    masked = np.zeros((1, 12))
    masked[0, 3:6] = inside[0, :3]
    assert factor.block(slice(3, 6)).rigidity(masked[:, 3:6])[0] == factor.rigidity(masked)[0] == 0


def test_full_rank_without_regularizer() -> None:
    rows = np.random.default_rng(7).normal(size=(40, 9))
    factor, stated = solve(rows, 0.0, "qr")
    assert stated.rank == 9
    np.testing.assert_allclose(
        factor.rigidity(rows), exact_rigidity(rows, 0.0, rows), rtol=stated.accuracy
    )


@pytest.mark.parametrize("route", ROUTES)
def test_without_data(route: str) -> None:
    """H = mu 1, so R = mu/|g|^2; with mu = 0 nothing is constrained."""
    tests = np.random.default_rng(8).normal(size=(3, 5))
    factor, stated = solve(np.empty((0, 5)), 0.2, route)
    np.testing.assert_allclose(factor.rigidity(tests), 0.2 / (tests**2).sum(axis=1), rtol=1e-14)
    assert stated.condition == pytest.approx(1.0)
    assert stated.sigma_max < 1e-7
    if route != "cholesky":
        factor, stated = solve(np.empty((0, 5)), 0.0, route)
        np.testing.assert_array_equal(factor.rigidity(tests), 0.0)
        assert (stated.rank, stated.condition, stated.sigma_max) == (0, 1.0, 0.0)


def test_rank_report_with_regularizer() -> None:
    """The rank is that of the data; fewer directions outweigh the regularizer."""
    rows = steep_rows(30, 20, 3.0, seed=9)[:, :15] @ np.eye(15, 20)
    data = np.linalg.svd(rows)[1] ** 2
    for mu in (1e-29, 1e-20, 1e-4):
        _, stated = solve(rows, mu, "qr")
        assert stated.rank == 15
        assert stated.rank_rtol == 30 * EPS
        assert stated.n_determined == np.count_nonzero(data[:15] > mu)
    assert stated.n_determined < 15


@pytest.mark.parametrize("mu", [1e-34, 1e-100, 1e-320])
@pytest.mark.parametrize("route", ROUTES)
def test_no_digit_is_no_answer(route: str, mu: float) -> None:
    rows = steep_rows(10, 20, 3.0, seed=9)
    with pytest.raises(NumericsError, match=r"mu|qr"):
        solve(rows, mu, route)


def test_refusals() -> None:
    gram, triangle = Gram.zeros(3), Triangle.zeros(3)
    for mu in (-1e-9, np.nan, np.inf):
        with pytest.raises(JobError, match="regularizer mu is"):
            factorize(gram, mu, 0, "cholesky")
    with pytest.raises(JobError, match="choose one of cholesky, qr, eigh"):
        factorize(gram, 1.0, 0, "lu")
    with pytest.raises(JobError, match="'qr' cannot use a Gram matrix"):
        factorize(gram, 1.0, 0, "qr")
    with pytest.raises(JobError, match="'cholesky' cannot use a triangle"):
        factorize(triangle, 1.0, 0, "cholesky")
    with pytest.raises(JobError, match="mu = 0"):
        factorize(gram, 0.0, 0, "cholesky")
    gram.update(np.array([[1.0, np.nan, 0.0]]))
    with pytest.raises(NumericsError, match="NaN"):
        factorize(gram, 1.0, 1, "cholesky")
    indefinite = Gram(np.asfortranarray(np.diag([1.0, -1.0, 1.0])))
    with pytest.raises(NumericsError, match=r"column 2 of 3.*use solver: qr"):
        factorize(indefinite, 1e-3, 3, "cholesky")
