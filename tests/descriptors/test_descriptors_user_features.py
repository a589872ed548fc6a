import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest
import zarr
from descriptors_cases import random_piece
from metatensor import Labels, TensorBlock, TensorMap, save

from dlpr.descriptors import UserFeatures, check_sets, descriptor
from dlpr.descriptors.row_files import fingerprint, open_rows
from dlpr.errors import InputError, JobError

VALUES = np.random.default_rng(0).normal(size=(40, 3))
SAMPLES = np.array([(s, a) for s in range(8) for a in range(5)], np.int32)


def blocks(samples=SAMPLES, values=VALUES, names=("system", "atom"), properties="q"):
    """The rows in two blocks, out of order."""
    shuffled = np.random.default_rng(1).permutation(len(samples))
    made = []
    for own in (shuffled[::2], shuffled[1::2]):
        labels = Labels([properties], np.arange(values.shape[1], dtype=np.int32)[:, None])
        made.append(TensorBlock(values[own], Labels(list(names), samples[own]), [], labels))
    keys = Labels(["center_type"], np.array([[1], [6]], np.int32))
    return TensorMap(keys, made)


def write(folder, kind):
    path = folder / f"rows.{kind}"
    if kind == "npy":
        np.save(path, VALUES)
    elif kind == "zarr":
        zarr.create_array(str(path), data=VALUES, chunks=(7, 2))
    elif kind == "v2.zarr":
        zarr.create_array(str(path), data=VALUES, chunks=(7, 2), zarr_format=2)
    else:
        save(str(path), blocks())
    return path


def piece_of(rows):
    piece = random_piece(len(rows), [6], 0)
    return replace(piece, centre=np.arange(len(rows)), row=np.array(rows, int))


KINDS = ["npy", "zarr", "v2.zarr", "mts"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_the_file(tmp_path, kind):
    features = UserFeatures({"file": str(write(tmp_path, kind))}, [6])
    assert features.n_features == 3
    assert features.n_rows == 40
    assert features.reads_rows
    for rows in ([7, 8, 9], [39, 0, 20], [5], list(range(40)), [3, 2, 1, 0, 38, 37]):
        np.testing.assert_array_equal(features.compute([piece_of(rows)]), VALUES[rows])
    together = features.compute([piece_of([3, 4]), piece_of([30])])
    np.testing.assert_array_equal(together, VALUES[[3, 4, 30]])
    assert features.compute([]).shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_settings_open_the_same_file(tmp_path, kind):
    made = descriptor({"features": {"file": str(write(tmp_path, kind))}}, [1, 6])
    kept = json.loads(json.dumps(made.settings()))
    again = pickle.loads(pickle.dumps(descriptor(kept)))  # noqa: S301
    assert again.settings() == kept
    assert again.components == {"features": slice(0, 3)}
    assert not again.columns_with(6).any()
    assert [len(values) for values in again.columns.values()] == [3]
    np.testing.assert_array_equal(again.compute([piece_of([2])]), VALUES[[2]])


@pytest.mark.parametrize("dtype", ["float32", "float16", ">f8", "int64", "uint8"])
def test_numbers_of_any_type(tmp_path, dtype):
    values = np.abs(10 * VALUES).astype(dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(values))
    features = UserFeatures({"file": str(tmp_path / "a.npy")}, [6])
    found = features.compute([piece_of([4, 1])])
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, values[[4, 1]].astype(np.float64))


def test_structures_and_centers_are_taken_for_systems_and_atoms(tmp_path):
    save(str(tmp_path / "a.mts"), blocks(names=("structure", "center")))
    np.testing.assert_array_equal(open_rows(tmp_path / "a.mts").read(np.arange(40)), VALUES)


def test_a_file_that_changes_is_refused(tmp_path):
    path = write(tmp_path, "npy")
    kept = UserFeatures({"file": str(path)}, [6]).settings()
    np.save(path, np.concatenate([VALUES, VALUES]))
    with pytest.raises(InputError, match=r"has changed .* 1088 bytes then, 2048 now"):
        descriptor(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints_tell_versions_apart(tmp_path, kind):
    path = write(tmp_path, kind)
    before = fingerprint(path)
    assert fingerprint(path) == before
    some = next(p for p in [path, *path.rglob("*")] if p.is_file())
    os.utime(some, ns=(1, 1 + before["mtime_ns"] * 2))
    assert fingerprint(path) != before


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def objects():
    values = np.empty((4, 2), object)
    values[:] = Evil()
    return values


def test_pickles_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", objects(), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy cannot be read .* Python objects"):
        open_rows(tmp_path / "a.npy")
    metadata = {
        "zarr_format": 2,
        "shape": [4, 2],
        "chunks": [4, 2],
        "dtype": "<f8",
        "compressor": None,
        "fill_value": 0,
        "order": "C",
        "filters": [{"id": "pickle", "protocol": 5}],
    }
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / ".zarray").write_text(json.dumps(metadata))
    (tmp_path / "b.zarr" / "0.0").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"codec that unpickles"):
        open_rows(tmp_path / "b.zarr")
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npy", VALUES[0], r"has the shape \(3,\); needed are rows and columns"),
        ("a.npy", VALUES[:, :, None], r"has the shape \(40, 3, 1\)"),
        ("a.npy", VALUES[:, :0], r"a\.npy"),
        ("a.npy", VALUES > 0, r"holds bool; needed are real numbers"),
        ("a.npy", VALUES * 1j, r"holds complex128"),
        ("a.npy", b"no numbers", r"a\.npy cannot be read as a NumPy array"),
        ("a.npy", b"", r"a\.npy cannot be read"),
        ("a.mts", b"no blocks", r"a\.mts cannot be read"),
        ("a.csv", b"1,2", r"has the suffix '\.csv'; needed is a NumPy array"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(InputError, match=message):
        UserFeatures({"file": str(path)}, [6])


def test_files_that_are_absent_or_cut_short(tmp_path):
    with pytest.raises(InputError, match=r"gone\.npy: no such file"):
        open_rows(tmp_path / "gone.npy")
    path = write(tmp_path, "npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"rows\.npy cannot be read"):
        open_rows(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no Zarr array"):
        open_rows(tmp_path / "empty")
    zarr.create_group(str(tmp_path / "group.zarr"))
    with pytest.raises(InputError, match=r"a Zarr group; needed is an array"):
        open_rows(tmp_path / "group.zarr")


def test_blocks_that_are_no_rows(tmp_path):
    path = tmp_path / "a.mts"
    save(str(path), blocks(names=("system", "pair")))
    with pytest.raises(InputError, match=r"samples named system, pair; needed are system and atom"):
        open_rows(path)
    twice = SAMPLES.copy()
    twice[7] = twice[6]
    save(str(path), blocks(twice))
    with pytest.raises(InputError, match=r"such as atom 1 of system 1; needed is one"):
        open_rows(path)
    made = blocks()
    other = Labels(["q"], 5 + np.array(made.block(1).properties.values))
    block = TensorBlock(np.array(made.block(1).values), made.block(1).samples, [], other)
    save(str(path), TensorMap(made.keys, [made.block(0).copy(), block]))
    with pytest.raises(InputError, match=r"properties of the first block"):
        open_rows(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(tmp_path, monkeypatch, kind, bad):
    values = VALUES.copy()
    values[11, 2] = bad
    monkeypatch.setitem(globals(), "VALUES", values)
    if kind == "mts":
        save(str(tmp_path / "rows.mts"), blocks(values=values))
    path = tmp_path / "rows.mts" if kind == "mts" else write(tmp_path, kind)
    features = UserFeatures({"file": str(path)}, [6])
    features.compute([piece_of([10])])
    with pytest.raises(InputError, match=r"row 11 of .* is not finite, as are 1 of the 3 rows"):
        features.compute([piece_of([10, 11, 12])])


def test_numbers_of_rows_and_columns_are_checked(tmp_path):
    np.save(tmp_path / "train.npy", VALUES)
    np.save(tmp_path / "film.npy", VALUES[:, :2])
    train, film = (
        UserFeatures({"file": str(tmp_path / f"{n}.npy")}, [6]) for n in ("train", "film")
    )
    check_sets({"train": train, "film": train}, {"train": 40, "film": 40})
    for n in (39, 41):
        with pytest.raises(InputError, match=rf"has 40 rows; the set film has {n} environments"):
            check_sets({"train": train, "film": train}, {"train": 40, "film": n})
    with pytest.raises(JobError, match=r"set film have 2 columns, those of the set train 3"):
        check_sets({"train": train, "film": film}, {"train": 40, "film": 40})
    with pytest.raises(InputError, match=r"has 40 rows; needed is row 40"):
        train.compute([piece_of([39, 40])])


def test_keys_are_checked(tmp_path):
    with pytest.raises(JobError, match=r"unknown key 'fil' .* is 'file'"):
        UserFeatures({"fil": "a.npy"}, [6])
    with pytest.raises(JobError, match=r"names no file"):
        UserFeatures({}, [6])
