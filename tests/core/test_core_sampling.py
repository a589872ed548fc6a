import tracemalloc
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from core_oracle import Array, steep_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skmatter.sample_selection import FPS

import dlpr.core.sampling as sampling
from dlpr.core.factorize import factorize, spectrum
from dlpr.core.folds import Gram
from dlpr.core.sampling import (
    approach,
    draw_keys,
    farthest_points,
    find_usable,
    leverage_ridge,
    leverage_scores,
    preselect,
    take_highest,
)
from dlpr.errors import InputError, JobError

Indices = NDArray[np.int64]


class Gathered:
    """Chosen rows of blocks, such as those of one central species, copied when they are read."""

    def __init__(self, blocks: list[Array], chosen: list[Indices]) -> None:
        self.blocks, self.chosen = blocks, chosen
        self.n_passes = 0

    def __iter__(self) -> Iterator[Array]:
        self.n_passes += 1
        for block, chosen in zip(self.blocks, self.chosen, strict=True):
            yield block[chosen]


def farthest(
    blocks: Iterable[Array], m: int, first: int, normalize: bool = False
) -> tuple[Indices, Array]:
    """Farthest points among all that are usable."""
    return farthest_points(blocks, m, first, find_usable(blocks, normalize), normalize)


def hold(patch: pytest.MonkeyPatch, n_candidates: int, n_features: int, tile_rows: int) -> None:
    """Let only so many candidates be held, in tiles of so many."""
    patch.setattr(sampling, "CANDIDATES_NBYTES", 8 * n_candidates * n_features)
    patch.setattr(sampling, "TILE_ROWS", tile_rows)


def naive(points: Array, m: int, first: int, normalize: bool = False) -> tuple[Indices, Array]:
    """Farthest points by all differences, until none differs."""
    if normalize:
        norm = np.sqrt((points**2).sum(axis=1))
        points = points / np.where(norm > 0, norm, 1.0)[:, None]
    nearest = np.full(len(points), np.inf)
    picks, squares = [first], [np.inf]
    while True:
        nearest = np.minimum(nearest, ((points - points[picks[-1]]) ** 2).sum(axis=1))
        if normalize:
            nearest[~points.any(axis=1)] = 0.0
        if len(picks) == m or nearest.max() == 0.0:
            return np.array(picks), np.sqrt(squares)
        picks.append(int(nearest.argmax()))
        squares.append(nearest.max())


def clusters(n: int, n_features: int, spread: float, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, n_features))
    return centres[np.sort(rng.integers(0, 12, n))] + spread * rng.normal(size=(n, n_features))


POOLS = {
    "random": np.random.default_rng(0).normal(size=(600, 20)),
    "few columns": np.random.default_rng(1).random((600, 2)),
    "one column": np.random.default_rng(2).random((600, 1)),
    "clusters": clusters(600, 30, 0.05, 3),
    "alike": 1.0 + 1e-3 * clusters(600, 30, 0.05, 4),
    "beyond cancellation": 1e4 + 1e-3 * clusters(600, 30, 0.05, 5),
    "steep": steep_rows(600, 40, 8.0, 6),
    "lattice": np.random.default_rng(7).integers(0, 3, (600, 4)).astype(float),
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pool", POOLS)
def test_same_as_the_plain_algorithm(
    pool: str, normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit of the distances, also where ``|x|^2 + |y|^2 - 2 x.y`` has no digit left."""
    points = POOLS[pool]
    expected, distances = naive(points, 150, 17, normalize)
    for n_candidates, rows in ((600, 600), (100, 15), (7, 50)):
        hold(monkeypatch, n_candidates, points.shape[1], rows)
        found, lengths = farthest(np.array_split(points, 4), 150, 17, normalize)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(lengths, distances)


@pytest.mark.parametrize("pool", ["random", "few columns", "clusters", "alike"])
def test_same_as_scikit_matter(pool: str) -> None:
    points = POOLS[pool]
    selector = FPS(initialize=5, n_to_select=120).fit(points)
    found, distances = farthest([points], 120, 5)
    np.testing.assert_array_equal(found, selector.selected_idx_)
    np.testing.assert_allclose(
        distances**2, selector.get_select_distance(), rtol=1e-6 if pool == "alike" else 1e-10
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), lattice=st.booleans(), normalize=st.booleans())
def test_any_split_gives_the_same_picks(
    data: st.DataObject, seed: int, lattice: bool, normalize: bool
) -> None:
    """With equal distances everywhere if on a lattice."""
    rng = np.random.default_rng(seed)
    n, n_features, m = data.draw(st.tuples(*[st.integers(1, k) for k in (50, 5, 30)]))
    size = (n, n_features)
    points = rng.integers(-1, 2, size).astype(float) if lattice else rng.normal(size=size)
    first = data.draw(st.integers(0, n - 1))
    points[first, 0] = 1.0
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=6)))
    expected, distances = naive(points, m, first, normalize)
    with pytest.MonkeyPatch.context() as patch:
        n_candidates, rows, pairs = data.draw(st.tuples(*[st.integers(1, 20)] * 3))
        hold(patch, n_candidates, n_features, rows)
        patch.setattr(sampling, "PAIRS", pairs)
        found, lengths = farthest(np.split(points, cuts), m, first, normalize)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(lengths, distances)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n_features=st.integers(1, 700))
def test_an_environment_has_one_distance(seed: int, n_features: int) -> None:
    """Whatever stands beside it, and in whatever portions picks are seen."""
    rng = np.random.default_rng(seed)
    points, picks = rng.normal(size=(30, n_features)), rng.normal(size=(9, n_features))
    together = np.full(30, np.inf)
    approach(together, points, picks)
    one_by_one = np.full(30, np.inf)
    for row in range(30):
        for part in np.split(picks, [1, 2, 6]):
            approach(one_by_one[row : row + 1], points[row : row + 1], part)
    np.testing.assert_array_equal(one_by_one, together)


def test_the_pool_is_read_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plainly, it is for every pick."""
    points = np.random.default_rng(0).normal(size=(4000, 6))
    hold(monkeypatch, 400, 6, 20)
    blocks = Gathered(np.array_split(points, 40), [np.arange(100)] * 40)
    found, _ = farthest(blocks, 400, 0)
    np.testing.assert_array_equal(found, naive(points, 400, 0)[0])
    assert blocks.n_passes < 40


def test_blocks_may_gather_their_rows() -> None:
    points = POOLS["random"].astype(np.float32)
    own = np.flatnonzero(np.random.default_rng(0).random(600) < 0.4)
    blocks = Gathered([points[:350], points[350:]], [own[own < 350], own[own >= 350] - 350])
    found, distances = farthest(blocks, 40, 3)
    expected, lengths = naive(points[own].astype(float), 40, 3)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(distances, lengths)


class Drawn:
    """Blocks that are made when they are read."""

    def __init__(self, n_blocks: int, n_rows: int, n_features: int) -> None:
        self.n_blocks, self.size = n_blocks, (n_rows, n_features)

    def __iter__(self) -> Iterator[Array]:
        for seed in range(self.n_blocks):
            yield np.random.default_rng(seed).normal(size=self.size)


def test_memory_is_what_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates, 50 bytes an environment, and a block as it is made and taken from."""
    n_blocks, n_rows, n_features = 50, 1000, 60
    hold(monkeypatch, 20_000, n_features, 256)
    blocks = Drawn(n_blocks, n_rows, n_features)
    usable = find_usable(blocks, True)
    tracemalloc.start()
    farthest_points(blocks, 100, 0, usable, True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    block = 8 * n_rows * n_features
    assert peak <= sampling.CANDIDATES_NBYTES + 50 * n_blocks * n_rows + 4 * block


def test_fewer_different_environments_than_asked_for() -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(7, 5)), 4, axis=0)
    found, distances = farthest(np.array_split(points, 3), 20, 9)
    assert len(found) == 7
    assert len(np.unique(found // 4)) == 7
    assert found[0] == 9
    assert (found[1:] % 4 == 0).all(), "the lowest index of equals"
    assert distances[0] == np.inf
    assert (np.diff(distances) <= 0.0).all()
    assert (distances > 0.0).all()
    assert len(farthest([points * np.linspace(1, 2, 28)[:, None]], 20, 0)[0]) == 20
    lengths = 2.0 ** np.arange(28)[:, None]
    assert len(farthest([points * lengths], 20, 0, normalize=True)[0]) == 7


def test_zero_vectors_are_never_picked_where_they_have_no_direction() -> None:
    points = np.random.default_rng(0).normal(size=(9, 3))
    points[[2, 5]] = 0.0
    found, _ = farthest([points], 9, 0, normalize=True)
    assert sorted(found) == [0, 1, 3, 4, 6, 7, 8]
    with pytest.raises(JobError, match=r"environment 5 is .* the 7 usable ones among 0\.\.8"):
        farthest([points], 9, 5, normalize=True)
    assert len(farthest([points], 9, 5)[0]) == 8
    np.testing.assert_array_equal(preselect([points[2:]], 3, normalize=True) != 0, True)
    assert preselect([0 * points], 3, normalize=True).shape == (0,)


def test_refusals() -> None:
    blocks = [np.ones((3, 2)), np.arange(8.0).reshape(4, 2)]
    for first in (-1, 7):
        with pytest.raises(JobError, match=rf"environment {first} is .* among 0\.\.6"):
            farthest(blocks, 2, first)
    with pytest.raises(JobError, match="at least 1"):
        farthest(blocks, 0, 0)
    for value in (np.nan, np.inf):
        blocks[1][2, 1] = value
        for normalize in (False, True):
            with pytest.raises(InputError, match="environment 5 has features that are"):
                find_usable(blocks, normalize)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), n_blocks=st.integers(1, 6), per_block=st.integers(1, 60))
def test_preselection_leaves_no_environment_farther_than_it_says(
    seed: int, n_blocks: int, per_block: int
) -> None:
    points = np.random.default_rng(seed).normal(size=(50 * n_blocks, 3))
    blocks = np.split(points, n_blocks)
    chosen = [preselect([block], per_block) for block in blocks]
    union = [block[own] for block, own in zip(blocks, chosen, strict=True)]
    picks = np.vstack(union)[farthest(union, 10, 0)[0]]

    def radius(of: Array, to: Array) -> float:
        return float(np.sqrt(((of[:, None] - to) ** 2).sum(axis=2)).min(axis=1).max())

    within = max(radius(block, own) for block, own in zip(blocks, union, strict=True))
    assert radius(points, picks) <= within + radius(np.vstack(union), picks)
    if per_block >= 50:
        np.testing.assert_array_equal(picks, points[farthest(blocks, 10, 0)[0]])


@pytest.mark.parametrize(("n", "n_features", "m"), [(200, 15, 6), (40, 60, 10), (80, 5, 30)])
def test_leverage_scores(n: int, n_features: int, m: int) -> None:
    """Against a dense formula; ridge and sums as Cohen, Musco, Musco say."""
    rows = steep_rows(n, n_features, 2.0, 0)
    gram = Gram.zeros(n_features)
    gram.update(rows)
    ridge = leverage_ridge(spectrum(gram), m)
    square = np.linalg.svd(rows)[1] ** 2
    assert ridge == pytest.approx(max(square[m:].sum() / m, 1e-10), rel=1e-6)
    factor, _ = factorize(gram, ridge, n, "cholesky")
    rows = np.vstack([rows, np.zeros((1, n_features))])
    scores = leverage_scores(rows, factor)
    hat = rows @ np.linalg.solve(rows.T @ rows + ridge * np.eye(n_features), rows.T)
    np.testing.assert_allclose(scores, hat.diagonal(), rtol=1e-4 if ridge < 1e-9 else 1e-9)
    assert scores[-1] == 0.0
    assert (scores <= 1.0 + 1e-6).all()
    assert scores.sum() <= 2 * m


@given(data=st.data(), seed=st.integers(0, 2**128 - 1), m=st.integers(1, 30))
@settings(max_examples=50, deadline=None)
def test_draws_do_not_depend_on_blocks(data: st.DataObject, seed: int, m: int) -> None:
    """Nor on the order in which parts are merged."""
    start = data.draw(st.sampled_from([0, 3, 10**12 + 1]))
    scores = np.random.default_rng(m).integers(0, 4, 60) / 4.0
    whole = draw_keys(scores, start, seed)
    every = np.arange(start, start + 60)
    expected_keys, expected = take_highest(whole, every, m)
    cuts = sorted(data.draw(st.lists(st.integers(0, 60), max_size=5)))
    parts = [
        take_highest(draw_keys(own, int(index[0]) if len(index) else 0, seed), index, m)
        for own, index in zip(np.split(scores, cuts), np.split(every, cuts), strict=True)
    ]
    order = data.draw(st.permutations(range(len(parts))))
    keys, indices = (np.concatenate([parts[k][i] for k in order]) for i in (0, 1))
    found_keys, found = take_highest(keys, indices, m)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found_keys, expected_keys)
    assert len(found) == min(m, np.count_nonzero(scores))
    assert (scores[found - start] > 0.0).all()


def test_equal_keys_go_to_the_lowest_index() -> None:
    keys, indices = take_highest(np.array([1.0, 2.0, 2.0, 0.0]), np.array([4, 9, 3, 1]), 4)
    np.testing.assert_array_equal(indices, [3, 9, 4])
    np.testing.assert_array_equal(keys, [2.0, 2.0, 1.0])


def test_draws_are_as_frequent_as_their_scores() -> None:
    n, m, n_draws = 40, 8, 3000
    every = np.arange(n)

    def frequency(scores: Array) -> Array:
        drawn = [take_highest(draw_keys(scores, 5, seed), every, m)[1] for seed in range(n_draws)]
        return np.bincount(np.concatenate(drawn), minlength=n) / n_draws

    scores = np.linspace(0.5, 1.5, n)
    sigma = np.sqrt(m / n / n_draws)
    np.testing.assert_allclose(frequency(np.ones(n)), m / n, atol=4.5 * sigma)
    np.testing.assert_allclose(
        frequency(scores), m * scores / scores.sum(), atol=4.5 * sigma + 0.02 * m / n
    )
    scores[7] = 1e9
    assert frequency(scores)[7] == 1.0
