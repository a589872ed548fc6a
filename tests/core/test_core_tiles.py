from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from core_oracle import Array, exact_rigidity, steep_rows, telling_tests
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.core.factor import EPS, Factor, TriangularFactor
from dlpr.core.factorize import factorize
from dlpr.core.folds import Gram
from dlpr.core.rows import strips
from dlpr.core.tilefactor import TiledFactor, tiled_conditioning
from dlpr.core.tiles import Tiling, diagonal_tile, fold_tile, off_tile
from dlpr.errors import NumericsError

Tiles = dict[tuple[int, int], Array]


def fold(rows: Array, tiling: Tiling, scale: Array | None = None, n_parts: int = 3) -> Tiles:
    tiles = {
        (i, j): np.zeros((tiling.widths[i], tiling.widths[j]), order="F") for i, j in tiling.pairs()
    }
    factors = [None] * n_parts if scale is None else np.array_split(scale, n_parts)
    for part, factor in zip(np.array_split(rows, n_parts), factors, strict=True):
        for (i, j), tile in tiles.items():
            other = None if i == j else strips(part, factor, tiling.slice(j))
            tiles[i, j] = fold_tile(tile, strips(part, factor, tiling.slice(i)), other)
            assert tiles[i, j] is tile or np.shares_memory(tiles[i, j], tile)
    return tiles


def cholesky(
    tiles: Tiles, tiling: Tiling, mu: float, order: tuple[int, ...] = (), layout: str = "F"
) -> Tiles:
    """R tile by tile; ``layout`` is the memory order in which its tiles are kept."""
    order = order or tuple(range(tiling.n_tiles))
    kept: Tiles = {}
    done = 0
    for row, i in enumerate(order):
        above = order[:row]
        diagonal = diagonal_tile(tiles[i, i].copy(), (kept[k, i] for k in above), mu, done)
        kept[i, i] = np.array(diagonal, order=layout)
        done += tiling.widths[i]
        for j in order[row + 1 :]:
            tile = tiles[i, j] if i < j else tiles[j, i].T
            solved = off_tile(tile.copy(), kept[i, i], ((kept[k, i], kept[k, j]) for k in above))
            kept[i, j] = np.array(solved, order=layout)
    return kept


def tiled(
    rows: Array, tiling: Tiling, mu: float, order: tuple[int, ...] = (), layout: str = "F"
) -> TiledFactor:
    kept = cholesky(fold(rows, tiling), tiling, mu, order, layout)
    return TiledFactor(tiling, lambda i, j: kept[i, j], order)


def one_piece(rows: Array, mu: float) -> TriangularFactor:
    gram = Gram.zeros(rows.shape[1])
    gram.update(rows)
    factor, _ = factorize(gram, mu, len(rows), "cholesky")
    assert isinstance(factor, TriangularFactor)
    return factor


@given(st.lists(st.integers(0, 40), max_size=6), st.integers(1, 17))
def test_tiles_cover_blocks_and_cross_none(widths: list[int], most: int) -> None:
    tiling = Tiling.of_blocks(widths, most)
    assert tiling.n_columns == sum(widths)
    assert all(0 < width <= most for width in tiling.widths)
    edges = np.concatenate([[0], np.cumsum(widths)]).tolist()
    assert set(edges) <= set(tiling.edges)
    for (start, stop), width in zip(pairwise(edges), widths, strict=True):
        own = tiling.touched(slice(start, stop))
        assert len(own) == -(-width // most)
        assert sum(tiling.widths[i] for i in own) == width
        if width:
            sizes = [tiling.widths[i] for i in own]
            assert max(sizes) - min(sizes) <= 1
            assert next(tiling.slice(i) for i in own).start == start
        order = tiling.ending_with(slice(start, stop))
        assert sorted(order) == list(range(tiling.n_tiles))
        assert order[len(order) - len(own) :] == tuple(own)
    assert tiling.pairs() == [
        (i, j) for i in range(tiling.n_tiles) for j in range(tiling.n_tiles) if i <= j
    ]


def test_touched_tiles() -> None:
    tiling = Tiling((0, 4, 8, 12))
    assert list(tiling.touched(slice(4, 8))) == [1]
    assert list(tiling.touched(slice(3, 9))) == [0, 1, 2]
    assert list(tiling.touched(slice(None))) == [0, 1, 2]
    assert list(tiling.touched(slice(5, 6))) == [1]
    assert list(tiling.touched(slice(5, 5))) == []


@pytest.mark.parametrize("scaled", [False, True])
def test_tiles_are_those_of_the_gram_matrix(
    scaled: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Strided columns of a read-only memory map, more rows than a strip."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("rows") / "rows.npy"
    np.save(path, rng.normal(size=(700, 31)))
    rows = np.load(path, mmap_mode="r")
    scale = rng.random(700) if scaled else None
    tiling = Tiling.of_blocks([7, 0, 13, 11], 5)
    weighted = rows if scale is None else rows * scale[:, None]
    expected = weighted.T @ weighted
    for (i, j), tile in fold(rows, tiling, scale).items():
        block = expected[tiling.slice(i), tiling.slice(j)]
        if i == j:
            tile, block = np.triu(tile), np.triu(block)
        np.testing.assert_allclose(tile, block, rtol=1e-12, atol=1e-11)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    widths=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any),
    most=st.integers(1, 9),
    layout=st.sampled_from(["F", "C"]),
    data=st.data(),
)
def test_same_as_in_one_piece(
    seed: int, widths: list[int], most: int, layout: str, data: st.DataObject
) -> None:
    tiling = Tiling.of_blocks(widths, most)
    rng = np.random.default_rng(seed)
    rows, tests = rng.normal(size=(30, tiling.n_columns)), rng.normal(size=(5, tiling.n_columns))
    order = tuple(data.draw(st.permutations(range(tiling.n_tiles))))
    factor: Factor = tiled(rows, tiling, 0.1, order, layout)
    whole = one_piece(rows, 0.1)
    kept = tests.copy()
    np.testing.assert_allclose(factor.rigidity(tests), whole.rigidity(tests), rtol=1e-11)
    np.testing.assert_allclose(
        factor.rigidity(np.asfortranarray(tests)), whole.rigidity(tests), rtol=1e-11
    )
    np.testing.assert_array_equal(tests, kept)
    expected = tests @ whole.solve(np.asfortranarray(tests.T))
    whitened = factor.whiten(tests)
    np.testing.assert_allclose(whitened @ whitened.T, expected, rtol=1e-10, atol=1e-10)
    root = factor.root_solve(np.eye(tiling.n_columns))
    np.testing.assert_allclose(whitened, tests @ root, rtol=1e-9, atol=1e-9)
    start = data.draw(st.integers(0, tiling.n_columns))
    columns = slice(start, data.draw(st.integers(start, tiling.n_columns)))
    np.testing.assert_allclose(
        factor.block(columns).rigidity(tests[:, columns]),
        whole.block(columns).rigidity(tests[:, columns]),
        rtol=1e-11,
    )
    found = factor.block(columns).whiten(tests[:, columns])
    masked = np.zeros_like(tests)
    masked[:, columns] = tests[:, columns]
    np.testing.assert_allclose(found, factor.whiten(masked), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decades", [4, 8, 12])
@pytest.mark.parametrize("edge", [5, 8, 24])
def test_accuracy_is_as_stated(decades: int, edge: int) -> None:
    """cond(H) = 10^decades, against 500 bits."""
    rows, mu = steep_rows(60, 24, decades / 2 + 1, seed=decades), 10.0**-decades
    tests = telling_tests(rows, seed=decades)
    factor = tiled(rows, Tiling.of_blocks([9, 15], edge), mu)
    stated = tiled_conditioning(factor, 60, mu)
    error = np.abs(factor.rigidity(tests) / exact_rigidity(rows, mu, tests) - 1.0).max()
    assert error <= stated.accuracy
    assert stated.condition == pytest.approx(1 / mu, rel=0.5)
    assert stated.accuracy == pytest.approx(10 * EPS / mu, rel=0.5)
    assert (stated.rank, stated.n_determined, stated.n_rows, stated.n_columns) == (
        None,
        None,
        60,
        24,
    )


def counting(factor: TiledFactor) -> tuple[TiledFactor, list[tuple[int, int]]]:
    reads: list[tuple[int, int]] = []
    read: Callable[[int, int], Array] = factor.read_tile

    def read_tile(i: int, j: int) -> Array:
        reads.append((i, j))
        return read(i, j)

    return TiledFactor(factor.tiling, read_tile, factor.order), reads


def test_each_tile_is_read_once_and_a_last_block_reads_its_own_alone() -> None:
    rows = np.random.default_rng(1).normal(size=(30, 20))
    tiling = Tiling.of_blocks([6, 9, 5], 3)
    own = slice(6, 15)
    order = tiling.ending_with(own)
    factor, reads = counting(tiled(rows, tiling, 0.1, order))
    whole = one_piece(rows, 0.1)
    np.testing.assert_allclose(factor.rigidity(rows), whole.rigidity(rows), rtol=1e-11)
    assert sorted(reads) == sorted((i, j) for row, i in enumerate(order) for j in order[row:])
    reads.clear()
    found = factor.block(own).rigidity(rows[:, own])
    np.testing.assert_allclose(found, whole.block(own).rigidity(rows[:, own]), rtol=1e-11)
    assert sorted(reads) == [(2, 2), (2, 3), (2, 4), (3, 3), (3, 4), (4, 4)]


def test_products_and_solutions() -> None:
    rng = np.random.default_rng(2)
    rows, vectors = rng.normal(size=(30, 20)), rng.normal(size=(20, 3))
    hessian = rows.T @ rows + 0.1 * np.eye(20)
    for most, order in ((6, ()), (6, (3, 0, 2, 1)), (20, ())):
        vectors = np.asfortranarray(vectors)
        kept = vectors.copy()
        widths = [20] if most == 20 else [8, 12]
        factor = tiled(rows, Tiling.of_blocks(widths, most), 0.1, order)
        for one in (factor, one_piece(rows, 0.1)):
            np.testing.assert_allclose(one.product(vectors), hessian @ vectors, rtol=1e-11)
            np.testing.assert_allclose(
                one.solve(vectors), np.linalg.solve(hessian, vectors), rtol=1e-10
            )
            np.testing.assert_array_equal(vectors, kept)


def test_zero_rows_no_rows_and_bits() -> None:
    rng = np.random.default_rng(3)
    factor = tiled(rng.normal(size=(30, 20)), Tiling.of_blocks([8, 12], 6), 0.1)
    rows = rng.normal(size=(4, 20))
    rows[2] = 0.0
    rigidity = factor.rigidity(rows)
    assert rigidity[2] == np.inf
    assert np.isfinite(np.delete(rigidity, 2)).all()
    np.testing.assert_array_equal(factor.rigidity(rows), rigidity)
    assert factor.rigidity(rows[:0]).shape == (0,)
    assert (factor.block(slice(5, 5)).rigidity(rows[:, 5:5]) == np.inf).all()


def test_a_singular_hessian_names_what_to_do() -> None:
    rows = steep_rows(40, 20, 9.0, seed=4)
    tiling = Tiling.of_blocks([20], 6)
    tiles = fold(rows, tiling)
    tiles[2, 2][1, 1] -= 1.0
    with pytest.raises(NumericsError, match=r"column 12:.*mu 1e-12.*at least .*solver: qr"):
        cholesky(tiles, tiling, 1e-12)
    factor = tiled(rows, tiling, 1e-15)
    with pytest.raises(NumericsError, match="no correct digit"):
        tiled_conditioning(factor, 40, 1e-15)
