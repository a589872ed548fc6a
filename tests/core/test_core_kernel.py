import tracemalloc

import flint
import numpy as np
import pytest
from core_oracle import Array

import dlpr.core.kernel as module
from dlpr.core.factor import EPS
from dlpr.core.factorize import factorize
from dlpr.core.folds import Triangle
from dlpr.core.kernel import Kernel, load_kernel, make_references, unit_rows
from dlpr.errors import InputError, JobError

KINDS = [(zeta, normalize) for zeta in (1, 2, 4) for normalize in (False, True)]
STEP = flint.arb(2) ** -200


def summed(
    kernel: Kernel,
    species: int,
    features: Array,
    tangent: Array,
    centre: Array,
    row: Array,
    n_rows: int,
) -> Array:
    """Sums of derivatives in each of some rows, whitened."""
    sums = np.zeros((n_rows, kernel.raw_widths[species]))
    np.add.at(sums, row, kernel.derivative(species, features, tangent, centre))
    return kernel.finish(species, sums)


def environments(n: int, spread: float, seed: int, n_features: int = 8) -> Array:
    """Features as much alike as SOAP's."""
    return 0.4 + spread * np.random.default_rng(seed).normal(size=(n, n_features))


def make_kernel(references: Array, zeta: int, normalize: bool) -> Kernel:
    return Kernel(zeta, normalize, (make_references(references, zeta, normalize),))


def dot(x: list[flint.arb], y: list[flint.arb]) -> flint.arb:
    return sum((a * b for a, b in zip(x, y, strict=True)), flint.arb(0))


def wide(rows: Array) -> list[list[flint.arb]]:
    return [[flint.arb(float(number)) for number in row] for row in rows]


def exact_kernel(x: list[flint.arb], y: list[flint.arb], zeta: int, normalize: bool) -> flint.arb:
    norm = (dot(x, x) * dot(y, y)).sqrt() if normalize else flint.arb(1)
    return (dot(x, y) / norm) ** zeta


def exact_rows(
    points: Array, references: Array, zeta: int, normalize: bool, tangents: Array | None = None
) -> list[list[flint.arb]]:
    """k_M of each point, or its derivative: a difference over 2^-200 in 500 bits."""
    flint.ctx.prec = 500
    rows = []
    for number, x in enumerate(wide(points)):
        row = [exact_kernel(x, y, zeta, normalize) for y in wide(references)]
        if tangents is not None:
            moved = [a + STEP * b for a, b in zip(x, wide(tangents)[number], strict=True)]
            row = [
                (exact_kernel(moved, y, zeta, normalize) - k) / STEP
                for y, k in zip(wide(references), row, strict=True)
            ]
        rows.append(row)
    return rows


def exact_form(hessian: flint.arb_mat, rows: list[list[flint.arb]]) -> Array:
    """``k^T H^-1 k`` of each row."""
    columns = flint.arb_mat(rows).transpose()
    solved = hessian.solve(columns)
    return np.array(
        [
            float(dot(row, [solved[k, j] for k in range(len(row))]).mid())
            for j, row in enumerate(rows)
        ]
    )


@pytest.mark.parametrize("spread", [0.3, 0.004])
@pytest.mark.parametrize(("zeta", "normalize"), KINDS)
def test_same_as_eq_16(zeta: int, normalize: bool, spread: float) -> None:
    """JCTC23 eq. 16 in 500 bits, of mean rows of structures and of rows of forces.

    The condition of K_MM goes from 3e2 to 6e10.
    """
    n_references = {1: 7, 2: 20, 4: 24}[zeta]
    mu = 1e-6
    references = environments(n_references, spread, 0)
    training, tests = environments(36, spread, 1), environments(6, spread, 2)
    tests = np.vstack([tests, references[:2], environments(3, 3.0, 3)])
    tangents = np.random.default_rng(4).normal(size=(36, 8))
    kind = (zeta, normalize)

    means = [
        [sum(column, flint.arb(0)) / 3 for column in zip(*three, strict=True)]
        for three in np.reshape(exact_rows(training, references, *kind), (12, 3, -1))
    ]
    forces = [
        [-sum(column, flint.arb(0)) for column in zip(*three, strict=True)]
        for three in np.reshape(exact_rows(training, references, *kind, tangents), (12, 3, -1))
    ]
    g = flint.arb_mat([list(row) for row in means + forces])
    kernel_matrix = flint.arb_mat(exact_rows(references, references, *kind))
    expected = 1 / exact_form(
        g.transpose() * g + flint.arb(mu) * kernel_matrix, exact_rows(tests, references, *kind)
    )

    kernel = make_kernel(references, *kind)
    assert kernel.references[0].cut == 0
    row = np.repeat(np.arange(12), 3)
    fold = Triangle.zeros(kernel.widths[0])
    fold.update(kernel.map(0, training).reshape(12, 3, -1).mean(axis=1))
    fold.update(-summed(kernel, 0, training, tangents, np.arange(36), row, 12))
    factor, stated = factorize(fold, mu, 24, "qr")
    error = np.abs(factor.rigidity(kernel.map(0, tests)) / expected - 1).max()
    assert error <= EPS * kernel.references[0].condition + stated.accuracy


@pytest.mark.parametrize("spread", [0.3, 0.004])
@pytest.mark.parametrize(("zeta", "normalize"), KINDS)
def test_residual_is_the_variance_that_references_leave(
    zeta: int, normalize: bool, spread: float
) -> None:
    references = environments(7, spread, 0)
    tests = np.vstack([environments(5, spread, 1), references[:3], environments(3, 3.0, 2)])
    kernel = make_kernel(references, zeta, normalize)
    residual = kernel.residual(tests, kernel.map(0, tests))
    prior = np.array([float(exact_kernel(x, x, zeta, normalize).mid()) for x in wide(tests)])
    seen = exact_form(
        flint.arb_mat(exact_rows(references, references, zeta, normalize)),
        exact_rows(tests, references, zeta, normalize),
    )
    limit = EPS * (kernel.references[0].condition + 50) * prior
    assert (np.abs(residual - (prior - seen)) <= limit).all()
    assert (residual >= 0.0).all()
    assert (residual[5:8] <= limit[5:8]).all()
    assert (residual[8:] > 1e-3 * prior[8:]).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("zeta", [1, 2, 4])
def test_derivative_is_that_of_the_map(zeta: int, normalize: bool) -> None:
    kernel = make_kernel(environments(9, 0.4, 0), zeta, normalize)
    features, rng = environments(5, 0.4, 1), np.random.default_rng(2)
    centre = rng.integers(0, 5, 40)
    tangent = rng.normal(size=(40, 8))
    h = 1e-5
    ahead, behind = (kernel.map(0, features[centre] + s * h * tangent) for s in (1, -1))
    expected = (ahead - behind) / (2 * h)
    found = summed(kernel, 0, features, tangent, centre, np.arange(40), 40)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * np.abs(expected).max())

    row = rng.integers(0, 6, 40)
    total = np.zeros((7, kernel.widths[0]))
    np.add.at(total, row, expected)
    found = summed(kernel, 0, features, tangent, centre, row, 7)
    np.testing.assert_allclose(found, total, rtol=0, atol=1e-7 * np.abs(total).max())
    assert (found[6] == 0.0).all()


@pytest.mark.parametrize("zeta", [1, 2, 5])
def test_homogeneous_in_the_features(zeta: int) -> None:
    """Euler: x.d phi~ = zeta phi~; of unit vectors 0, whose map is that of any length."""
    references, features = environments(9, 0.4, 0), environments(6, 0.4, 1)
    every = np.arange(6)
    kernel = make_kernel(references, zeta, normalize=False)
    along = summed(kernel, 0, features, features, every, every, 6)
    mapped = kernel.map(0, features)
    atol = 1e-10 * np.abs(mapped).max()
    np.testing.assert_allclose(along, zeta * mapped, rtol=0, atol=atol)
    np.testing.assert_allclose(kernel.map(0, 2 * features), 2.0**zeta * mapped, rtol=1e-12)
    unit = make_kernel(references * np.linspace(0.1, 10.0, 9)[:, None], zeta, normalize=True)
    along = summed(unit, 0, features, features, every, every, 6)
    np.testing.assert_allclose(along, 0.0, atol=1e-10)
    np.testing.assert_allclose(
        unit.map(0, features * np.logspace(-3, 3, 6)[:, None]),
        unit.map(0, features),
        rtol=0,
        atol=1e-10,
    )
    assert (unit.map(0, features) ** 2).sum(axis=1).max() <= 1.0 + 1e-10


def rigidity(training: Array, tests: Array, mu: float) -> Array:
    fold = Triangle.zeros(training.shape[1])
    fold.update(training)
    return factorize(fold, mu, len(training), "qr")[0].rigidity(tests)


def test_dot_products_with_references_that_span_are_the_linear_model() -> None:
    """``phi~`` is then x, rotated: K_MM makes up for any length and number of references."""
    lengths = np.logspace(-1, 1, 20)[:, None]
    kernel = make_kernel(environments(20, 1.0, 0) * lengths, 1, normalize=False)
    training, tests = environments(15, 1.0, 1), environments(9, 1.0, 2)
    assert kernel.widths == (8,)
    assert kernel.references[0].cut == 12
    mapped = kernel.map(0, tests)
    np.testing.assert_allclose(mapped @ mapped.T, tests @ tests.T, rtol=1e-11)
    np.testing.assert_allclose(
        rigidity(kernel.map(0, training), mapped, 1e-3),
        rigidity(training, tests, 1e-3),
        rtol=1e-10,
    )
    assert (kernel.residual(tests, mapped) <= 1e-12 * (tests**2).sum(axis=1)).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_references_given_twice_change_nothing(normalize: bool) -> None:
    references, training, tests = (environments(n, 0.4, n) for n in (12, 20, 6))
    once = make_kernel(references, 2, normalize)
    twice = make_kernel(np.vstack([references, references[3:8]]), 2, normalize)
    assert (once.references[0].cut, twice.references[0].cut) == (0, 5)
    assert once.widths == twice.widths == (12,)
    np.testing.assert_allclose(
        rigidity(twice.map(0, training), twice.map(0, tests), 1e-5),
        rigidity(once.map(0, training), once.map(0, tests), 1e-5),
        rtol=1e-8,
    )


def test_whitened_references_have_the_kernel_matrix() -> None:
    references = environments(30, 0.4, 0)
    kernel = make_kernel(references, 2, normalize=True)
    unit = unit_rows(references)
    mapped = kernel.map(0, references)
    np.testing.assert_allclose(mapped @ mapped.T, (unit @ unit.T) ** 2, rtol=0, atol=1e-10)
    eigenvalue = np.linalg.eigvalsh((unit @ unit.T) ** 2)[::-1]
    np.testing.assert_allclose((mapped**2).sum(axis=0), eigenvalue, rtol=1e-6)
    condition = eigenvalue[0] / eigenvalue[-1]
    assert kernel.references[0].condition == pytest.approx(condition, rel=1e-6)


def test_environments_unlike_all_references_are_unknown() -> None:
    references, strange = np.eye(6)[:2], 2.0 * np.eye(6)[3:5]
    tests = np.vstack([strange, np.zeros((1, 6)), references])
    for normalize, residual in ((False, [16, 16, 0, 0, 0]), (True, [1, 1, 1, 0, 0])):
        kernel = make_kernel(references, 2, normalize)
        mapped = kernel.map(0, tests)
        np.testing.assert_array_equal(mapped[:3], 0.0)
        np.testing.assert_allclose(kernel.residual(tests, mapped), residual, atol=1e-14)
        every = np.arange(5)
        slope = summed(kernel, 0, tests, tests[::-1], every, every, 5)
        np.testing.assert_array_equal(slope[:3], 0.0)


def test_central_species_have_their_own_references() -> None:
    first, second = environments(5, 0.4, 0), environments(3, 0.4, 1)
    none = np.empty((0, 8))
    kernel = Kernel(2, True, tuple(make_references(x, 2, True) for x in (first, none, second)))
    assert kernel.widths == (5, 0, 3)
    tests = environments(4, 0.4, 2)
    np.testing.assert_array_equal(kernel.map(2, tests), make_kernel(second, 2, True).map(0, tests))
    mapped = kernel.map(1, tests)
    assert mapped.shape == (4, 0)
    assert kernel.references[1].condition == 1.0
    np.testing.assert_array_equal(kernel.residual(tests, mapped), 1.0)
    every = np.arange(4)
    assert summed(kernel, 1, tests, tests, every, every, 4).shape == (4, 0)


@pytest.mark.parametrize(("zeta", "normalize"), KINDS)
def test_bits_and_strips(zeta: int, normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal calls and a reload give equal bits; other strips agree to rounding."""
    kernel = make_kernel(np.asfortranarray(environments(9, 0.4, 0)), zeta, normalize)
    again = make_kernel(environments(9, 0.4, 0), zeta, normalize)
    features = environments(25, 0.4, 1)
    tangent = np.random.default_rng(2).normal(size=(25, 8))
    centre, row = np.arange(25) // 2, np.arange(25) % 4
    mapped = kernel.map(0, features)
    slope = summed(kernel, 0, features, tangent, centre, row, 4)
    residual = kernel.residual(features, mapped)
    held = {name: np.array(array, order="F") for name, array in kernel.to_arrays().items()}
    for other in (again, load_kernel(held)):
        assert (other.zeta, other.normalize) == (zeta, normalize)
        assert other.references[0].cut == kernel.references[0].cut
        features.flags.writeable = False
        np.testing.assert_array_equal(other.map(0, np.asfortranarray(features)), mapped)
        np.testing.assert_array_equal(summed(other, 0, features, tangent, centre, row, 4), slope)
        np.testing.assert_array_equal(other.residual(features, mapped), residual)
    single = features.astype(np.float32)
    np.testing.assert_array_equal(kernel.map(0, single), kernel.map(0, single.astype(float)))

    monkeypatch.setattr(module, "STRIP_ROWS", 7)
    scale = np.abs(kernel.references[0].whitening).max()
    found = kernel.map(0, features)
    np.testing.assert_allclose(found, mapped, rtol=0, atol=1e-12 * scale)
    found = summed(kernel, 0, features, tangent, centre, row, 4)
    np.testing.assert_allclose(found, slope, rtol=0, atol=1e-11 * scale)
    np.testing.assert_allclose(kernel.residual(features, mapped), residual, atol=1e-12)


def test_kernels_are_never_held_whole() -> None:
    """10,000 environments and 200 references: k_M would be 16 MB, its strips are 0.8 MB each."""
    kernel = make_kernel(environments(200, 0.4, 0, 4), 2, normalize=True)
    features = environments(10_000, 0.4, 1, 4)
    tracemalloc.start()
    mapped = kernel.map(0, features)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mapped.nbytes < 2e6
    assert peak < mapped.nbytes + 4e6


def test_refusals() -> None:
    points = environments(4, 0.4, 0)
    for zeta in (0, -1, 1.5, np.nan):
        with pytest.raises(JobError, match=r"zeta is .* positive integer"):
            make_references(points, zeta, True)  # type: ignore[arg-type]
    points[2] = 0.0
    with pytest.raises(InputError, match="reference environment 2 of 4 is a zero vector"):
        make_references(points, 2, True)
    assert make_references(points, 2, False).cut == 1
    assert make_references(0 * points, 2, False).whitening.shape == (4, 0)
    with pytest.raises(InputError, match=r"overflow with zeta 4.*normalize: true"):
        make_references(points * 1e80, 4, False)
    points[1, 3] = np.nan
    with pytest.raises(InputError, match="reference environment 1 of 4"):
        make_references(points, 2, False)
