import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from descriptors_cases import HYPERS, featomic_full, random_piece, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dlpr.descriptors import near_kind
from dlpr.descriptors.soap import Soap
from dlpr.errors import InputError, JobError
from dlpr.structures.frames import Piece

SPECIES = (1, 6, 8)
SOAP = Soap(HYPERS, SPECIES)
PIECES = [random_piece(n, s, i) for i, (n, s) in enumerate([(9, SPECIES), (5, [6]), (14, [1, 8])])]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


def test_full_columns_are_those_of_featomic():
    _, properties = featomic_full(PIECES, SPECIES)
    names = ("neighbour_1", "neighbour_2", "l", "n_1", "n_2")
    np.testing.assert_array_equal(np.stack([SOAP.full_columns[n] for n in names], 1), properties)


def test_columns_are_the_distinct_ones_with_their_weight():
    n, n_l = 3, 4
    assert SOAP.n_features == 3 * n_l * n * (n + 1) // 2 + 3 * n_l * n * n
    columns = SOAP.columns
    same = columns["neighbour_1"] == columns["neighbour_2"]
    assert (columns["n_1"] <= columns["n_2"])[same].all()
    np.testing.assert_array_equal(
        columns["weight"], np.where(same & (columns["n_1"] != columns["n_2"]), np.sqrt(2.0), 1.0)
    )


def test_expand_gives_featomics_full_layout():
    full, _ = featomic_full(PIECES, SPECIES)
    expanded = SOAP.expand(SOAP.compute(PIECES))
    assert np.ptp(full) > 0.1
    np.testing.assert_allclose(expanded, full, rtol=0, atol=1e-14)


def test_kernel_equals_that_of_the_full_layout():
    full, _ = featomic_full(PIECES, SPECIES)
    features = SOAP.compute(PIECES)
    kernel = full @ full.T
    np.testing.assert_allclose(features @ features.T, kernel, rtol=0, atol=1e-13 * kernel.max())


def test_layout_does_not_depend_on_the_species_present():
    carbon = PIECES[1]
    features = SOAP.compute([carbon])
    others = SOAP.columns_with(1) | SOAP.columns_with(8)
    assert features.shape == (5, SOAP.n_features)
    assert not features[:, others].any()
    np.testing.assert_array_equal(features[:, ~others], Soap(HYPERS, [6]).compute([carbon]))


def test_columns_with_marks_every_pair_of_the_species():
    first, second = SOAP.columns["neighbour_1"], SOAP.columns["neighbour_2"]
    expected = [6 in pair for pair in zip(first.tolist(), second.tolist(), strict=True)]
    np.testing.assert_array_equal(SOAP.columns_with(6), expected)
    assert not SOAP.columns_with(14).any()


@given(
    sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 20),
)
@settings(max_examples=25, deadline=None)
def test_batching_changes_no_bit(sizes, seed, batch):
    pieces = [random_piece(n, SPECIES, seed + i) for i, n in enumerate(sizes)]
    alone = [SOAP.compute([piece]) for piece in pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_kind, "BATCH", batch)
        together = SOAP.compute(pieces)
    assert together.shape == (sum(sizes), SOAP.n_features)
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_no_pieces_give_no_rows():
    assert SOAP.compute([]).shape == (0, SOAP.n_features)


@given(seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=25, deadline=None)
def test_selected_centres_are_rows_of_the_whole_in_their_order(seed, data):
    pieces = [random_piece(n, SPECIES, seed + n) for n in (12, 4, 7)]
    rows, chosen = [], []
    for piece in pieces:
        n_atoms = len(piece.species)
        centre = data.draw(
            st.none() | st.lists(st.integers(0, n_atoms - 1), unique=True).map(np.array)
        )
        centre = centre if centre is None else centre.astype(np.int64)
        chosen.append(replace(piece, centre=centre))
        rows.append(SOAP.compute([piece])[np.arange(n_atoms) if centre is None else centre])
    np.testing.assert_array_equal(SOAP.compute(chosen), np.concatenate(rows))


def test_features_are_c_ordered_float64():
    features = SOAP.compute(PIECES)
    assert features.dtype == np.float64
    assert features.flags.c_contiguous


@pytest.mark.parametrize("seed", range(3))
def test_invariance(seed):
    rng = np.random.default_rng(seed)
    piece = random_piece(12, SPECIES, seed)
    features = SOAP.compute([piece])
    rotation = Rotation.random(random_state=seed).as_matrix()
    shift = rng.integers(-2, 3, (12, 3)) @ piece.cell
    order = rng.permutation(12)
    permuted = replace(piece, position=piece.position[order], species=piece.species[order])
    close(SOAP.compute([turned(piece, rotation)]), features)
    close(SOAP.compute([turned(piece, -np.eye(3))]), features)
    close(
        SOAP.compute([replace(piece, position=piece.position + np.array([0.3, -7, 1.1]))]), features
    )
    close(SOAP.compute([replace(piece, position=piece.position + shift)]), features)
    close(SOAP.compute([permuted]), features[order])
    doubled = replace(
        piece,
        position=np.concatenate([piece.position, piece.position + piece.cell[1]]),
        species=np.tile(piece.species, 2),
        cell=piece.cell * [[1], [2], [1]],
    )
    close(SOAP.compute([doubled]), np.tile(features, (2, 1)))
    strained = SOAP.compute([turned(piece, np.diag([1.001, 1, 1]))])
    assert np.abs(strained - features).max() > 1e-6 * features.max()


def test_an_isolated_atom_without_its_own_density_is_a_zero_row():
    hypers = {**HYPERS, "density": {**HYPERS["density"], "center_atom_weight": 0.0}}
    pair = Piece(
        np.array([[0.0, 0, 0], [50, 0, 0], [51.2, 0, 0]]),
        np.array([6, 6, 8], np.uint8),
        np.zeros((3, 3)),
        np.zeros(3, bool),
    )
    features = Soap(hypers, SPECIES).compute([pair])
    assert not features[0].any()
    assert features[1].any()
    assert features[2].any()
    assert SOAP.compute([pair])[0].any()


def broken(**changes):
    piece = random_piece(6, [6], 0)
    return [PIECES[0], replace(piece, **changes)]


def moved(atom, value):
    position = random_piece(6, [6], 0).position.copy()
    position[atom] = value
    return position


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (broken(species=np.array([6, 6, 14, 6, 6, 6], np.uint8)), "atom 2 of structure 1 .* 14,"),
        (broken(position=moved(3, np.nan)), "position of atom 3 of structure 1 .* not finite"),
        (broken(cell=np.full((3, 3), np.inf)), "cell of structure 1 .* not finite"),
        (broken(cell=np.zeros((3, 3))), "span no volume"),
        (broken(centre=np.array([0, 6])), "2 different ones, 1 in range"),
        (broken(centre=np.array([-1, 1])), "2 different ones, 1 in range"),
        (broken(centre=np.array([2, 2])), "1 different ones, 2 in range"),
    ],
)
def test_what_featomic_would_accept_is_refused(pieces, message):
    with pytest.raises(InputError, match=message):
        SOAP.compute(pieces)


def test_features_that_are_not_finite_are_located():
    position = PIECES[1].position.copy()
    position[4] = position[1] + PIECES[1].cell[0]
    pieces = [PIECES[0], replace(PIECES[0], centre=np.array([], int))]
    with pytest.raises(InputError, match=r"features of atom 1 of structure 2 .* of 2 atom"):
        SOAP.compute([*pieces, replace(PIECES[1], position=position)])
    chosen = replace(PIECES[1], position=position, centre=np.array([3, 4, 0]))
    with pytest.raises(InputError, match=r"features of atom 4 of structure 2 .* of 1 atom"):
        SOAP.compute([*pieces, chosen])


@pytest.mark.parametrize("species", [[], [0, 6], [6, 119]])
def test_species_must_be_atomic_numbers(species):
    with pytest.raises(JobError, match="from 1 to 118"):
        Soap(HYPERS, species)


def test_pickling_takes_the_settings_along_and_not_the_tables():
    soap = Soap(HYPERS, SPECIES)
    features = soap.compute(PIECES)
    data = pickle.dumps(soap)
    assert len(data) < 2000
    code = (
        "import pickle, sys\nimport numpy as np\n"
        "soap, pieces = pickle.load(sys.stdin.buffer)\n"
        "assert 'featomic' not in sys.modules\n"
        "sys.stdout.buffer.write(soap.compute(pieces).tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((soap, PIECES)),
        stdout=subprocess.PIPE,
        check=True,
    )
    np.testing.assert_array_equal(np.frombuffer(done.stdout).reshape(features.shape), features)


def test_threads_do_not_disturb_each_other():
    expected = [SOAP.compute([piece]) for piece in PIECES]
    with ThreadPoolExecutor(3) as pool:
        for features, first in zip(
            pool.map(lambda i: SOAP.compute([PIECES[i % 3]]), range(30)), expected * 10, strict=True
        ):
            np.testing.assert_array_equal(features, first)


OVERLAP = """
import numpy as np
from descriptors_cases import HYPERS
from dlpr.descriptors.soap import Soap
from dlpr.structures.frames import Piece
piece = Piece(np.eye(3) * 0.01, np.full(3, 6, np.uint8), np.zeros((3, 3)), np.zeros(3, bool))
assert Soap(HYPERS, [6]).compute([piece]).any()
"""

MEMORY = """
import sys
import numpy as np
from pathlib import Path
from descriptors_cases import HYPERS, random_piece
from dlpr.descriptors.soap import Soap

def read(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

n_pieces, n_atoms, max_angular, calls = map(int, sys.argv[1:])
hypers = {**HYPERS, "basis": {**HYPERS["basis"], "max_angular": max_angular}}
soap = Soap(hypers, [1, 6])
pieces = [random_piece(n_atoms, [1, 6], i, density=0.1) for i in range(n_pieces)]
soap.compute([random_piece(8, [1, 6], 0)])
if calls > 1:
    for _ in range(10):
        soap.compute(pieces)
before = read("VmRSS")
for _ in range(calls):
    features = soap.compute(pieces)
promised = soap.compute_nbytes(n_pieces * n_atoms, n_atoms, 0.1)
print((read("VmRSS") if calls > 1 else read("VmHWM")) - before, promised, features.nbytes)
"""


def run_alone(code, *arguments):
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_featomics_warnings_do_not_reach_the_terminal():
    done = run_alone(OVERLAP)
    assert done.stderr == ""
    assert done.stdout == ""


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize(("n_pieces", "n_atoms"), [(300, 50), (1, 12000)])
def test_memory_stays_within_the_promise(n_pieces, n_atoms):
    used, promised, returned = map(int, run_alone(MEMORY, n_pieces, n_atoms, 8, 1).stdout.split())
    assert returned < used <= promised < 4 * used


@needs_proc
def test_calls_leave_no_memory_behind():
    growth, _, _ = map(int, run_alone(MEMORY, 20, 50, 1, 240).stdout.split())
    assert growth < 4 * 2**20
