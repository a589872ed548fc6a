"""Every kind of descriptor through a whole job, in one process and without Dask."""

import ase.io
import numpy as np
import pytest
import zarr
from descriptors_cases import LODE, RADIAL
from small_run import _labelled, _silicon

from dlpr.api import work
from dlpr.descriptors import descriptor
from dlpr.engine.output import write_job
from dlpr.job import Job
from dlpr.structures.frames import Piece

OWN = """
import numpy as np
def rows(frames, width):
    found = []
    for atoms in frames:
        d = atoms.get_all_distances(mic=True)
        centres = np.linspace(2.0, 4.0, width)
        found.append(np.stack([np.exp(-((d - c) ** 2)).sum(1) for c in centres], 1))
    return found
def scaled(frames, table):
    return [np.loadtxt(table) * one for one in rows(frames, 4)]
"""


def lpr(folder, kind, section):
    job = {
        "output": kind,
        "train": {"files": "train.xyz"},
        "test": {"film": {"files": "film.xyz"}},
        "descriptor": section,
        "model": {"linear": {"regularizer": 1e-6}},
        "numerics": {"block_environments": 64, "task_environments": 640},
    }
    made = Job.from_dict(job, base=folder)
    write_job(made.path(made.output), made)
    work(made.path(made.output))
    group = zarr.open_group(str(folder / kind / "rigidity.zarr"), mode="r")
    return np.asarray(group["film/environment_lpr"])


@pytest.fixture
def folder(tmp_path):
    ase.io.write(tmp_path / "train.xyz", [_labelled(_silicon(1, s), s) for s in range(6)])
    ase.io.write(tmp_path / "film.xyz", [_silicon(1, 11), _silicon(2, 12)])
    (tmp_path / "users_rows.py").write_text(OWN)
    return tmp_path


def test_users_own_rows_give_the_rigidities_of_the_descriptor(folder):
    ase.io.write(folder / "film.xyz", [_silicon(1, 11), _silicon(9, 99), _silicon(2, 12)])
    radial = descriptor({"radial": RADIAL}, [14, 32])
    for name in ("train", "film"):
        pieces = [
            Piece(a.positions, a.numbers.astype(np.uint8), np.array(a.cell), a.pbc)
            for a in ase.io.read(folder / f"{name}.xyz", ":")
        ]
        np.save(folder / f"{name}.npy", radial.compute(pieces))
    expected = lpr(folder, "radial", {"radial": RADIAL})
    found = lpr(folder, "own", {"features": {"train": "train.npy", "film": "film.npy"}})
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        ("lode", {"parts": {"near": {"radial": RADIAL}, "far": {"lode": LODE}}}),
        ("python", {"python": {"call": "users_rows:rows", "options": {"width": 4}}}),
    ],
)
def test_whole_structures_go_through(folder, kind, section):
    found = lpr(folder, kind, section)
    assert found.shape == (72,)
    assert np.isfinite(found).all()
    assert (found > 0).all()


def test_a_file_that_options_name_is_read_anew_where_it_has_changed(folder):
    table = folder / "table.txt"
    section = {"python": {"call": "users_rows:scaled", "options": {"table": str(table)}}}
    found = []
    for factors in ("1 1 1 1", "1 2 3 4", "1 1 1 1"):
        table.write_text(factors)
        found.append(lpr(folder, "table", section))
    assert np.abs(found[1] / found[0] - 1.0).max() > 1e-3
    np.testing.assert_array_equal(found[2], found[0])
