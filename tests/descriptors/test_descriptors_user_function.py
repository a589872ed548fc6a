import json
import os
import pickle
import sys
from dataclasses import replace

import numpy as np
import pytest
from descriptors_cases import random_piece

from dlpr.descriptors import UserFunction, descriptor
from dlpr.errors import InputError, JobError

SOURCE = """
import numpy as np

def distances(frames, power=2):
    found = []
    for atoms in frames:
        d = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
        weight = np.clip(3.0 - d, 0, None) ** power
        carbon = atoms.numbers == 6
        found.append(np.stack([weight.sum(1), weight[:, carbon].sum(1)], 1))
    return found

def one_row(frames):
    return [np.zeros((1, 2)) for _ in frames]

def one_frame(frames):
    return [np.zeros((len(frames[0]), 2))]

def flat(frames):
    return [np.zeros(len(atoms)) for atoms in frames]

def ragged(frames):
    return [np.zeros((len(atoms), len(atoms))) for atoms in frames]

def lost(frames):
    return [np.where(np.arange(2 * len(a)) == 6, np.nan, 0.0).reshape(-1, 2) for a in frames]

def fails(frames):
    raise RuntimeError("no such element")

constant = 3
"""
PIECES = [random_piece(n, [1, 6], n) for n in (9, 4, 12)]
COLUMNS = {"n_features": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "users_own.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_own", raising=False)
    yield str(tmp_path)
    sys.modules.pop("users_own", None)


def made(folder, name="distances", **options):
    return UserFunction({"call": f"users_own:{name}", "folder": folder, **options}, [1, 6])


def test_rows_are_those_of_the_function(folder):
    function = made(folder, options={"power": 3})
    assert function.n_features == 2
    features = function.compute(PIECES)
    assert features.shape == (25, 2)
    piece = PIECES[1]
    by_hand = made(folder).compute([piece])
    fraction = np.linalg.solve(piece.cell.T, (piece.position[0] - piece.position).T).T
    assert (np.abs(fraction) < 1).all()
    assert (by_hand[:, 0] >= by_hand[:, 1]).all()
    assert np.abs(features[9:13] - by_hand).max() > 0.1


def test_rows_do_not_depend_on_the_call(folder):
    function = made(folder)
    expected = function.compute(PIECES)
    alone = [function.compute([piece]) for piece in PIECES]
    np.testing.assert_array_equal(np.concatenate(alone), expected)
    some = [
        replace(PIECES[0], centre=np.array([7, 2])),
        replace(PIECES[1], centre=np.array([], int)),
    ]
    np.testing.assert_array_equal(function.compute(some), expected[[7, 2]])
    assert function.compute([]).shape == (0, 2)


def test_whole_structures_without_a_cutoff(folder):
    assert made(folder).cutoff == np.inf
    assert made(folder, cutoff=3).cutoff == 3.0


def test_kept_settings_make_the_same(folder):
    kept = json.loads(json.dumps(made(folder, options={"power": 1}, cutoff=3.0).settings()))
    again = pickle.loads(pickle.dumps(descriptor(kept)))  # noqa: S301
    assert again.settings() == kept
    assert kept["python"]["n_features"] == 2
    assert again.components == {"python": slice(0, 2)}
    expected = made(folder, options={"power": 1}).compute(PIECES)
    np.testing.assert_array_equal(again.compute(PIECES), expected)
    assert again.compute_nbytes(100, 1000) > 1000 * 200


def test_a_module_that_changes_is_refused(folder, tmp_path):
    kept = made(folder).settings()
    (tmp_path / "users_own.py").write_text(SOURCE + "\n# edited\n")
    with pytest.raises(JobError, match=r"is not the one that the features were planned with"):
        descriptor(kept)


@pytest.mark.parametrize("name", ["table.txt", "{folder}/table.txt"])
@pytest.mark.parametrize("place", [lambda x: x, lambda x: [1, x], lambda x: {"of": {"a": [x]}}])
def test_a_file_that_options_name_is_part_of_what_is_planned(folder, tmp_path, name, place):
    table = tmp_path / "table.txt"
    table.write_text("1.0")
    options = {"power": 2, "table": place(name.format(folder=folder))}
    before = made(folder, options=options, **COLUMNS).settings()
    os.utime(table, ns=(1, 1))
    assert made(folder, options=options, **COLUMNS).settings() == before
    (tmp_path / "other.txt").write_text("no option names it")
    assert descriptor(before).settings() == before
    table.write_text("2.0")
    assert made(folder, options=options, **COLUMNS).settings() != before
    with pytest.raises(JobError, match=r"a file that its options name, is not the one"):
        descriptor(before)


@pytest.mark.parametrize("text", ["", ".", "x" * 5000, "a\0b", "{folder}"])
def test_options_that_name_no_file_are_text(folder, text):
    found = made(folder, options={"text": text.format(folder=folder)}, **COLUMNS).settings()
    assert found["python"]["source_sha256"] == made(folder).settings()["python"]["source_sha256"]


def test_a_process_that_lives_on_takes_the_module_as_it_is_now(folder, tmp_path):
    old = made(folder)
    before = old.compute(PIECES)
    edited = SOURCE.replace("np.clip(3.0 - d, 0, None)", "np.clip(3.0 - d, 0, None) + 1.0")
    (tmp_path / "users_own.py").write_text(edited)
    new = made(folder)
    assert new.settings() != old.settings()
    assert not np.array_equal(new.compute(PIECES), before)
    np.testing.assert_array_equal(old.compute(PIECES), before)
    (tmp_path / "users_own.py").write_text(SOURCE)
    np.testing.assert_array_equal(descriptor(old.settings()).compute(PIECES), before)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "one_row",
            r"returned 1 array\(s\) of the shapes \[\(1, 2\)\]; needed are 1, .*\[9\] rows",
        ),
        ("flat", r"of the shapes \[\(9,\)\]; needed are 1, each \(n_atoms, n_features\)"),
        ("ragged", r"returned 9 columns for structure 0 of a call; needed are 2"),
        ("lost", r"not finite for 1 atom\(s\) of structure 0 of a call, such as atom 3"),
        ("fails", r"users_own:fails raised RuntimeError: no such element, for 1 structure"),
    ],
)
def test_functions_that_return_no_features(folder, name, message):
    with pytest.raises(InputError, match=message):
        made(folder, name, **COLUMNS).compute([PIECES[0]])


def test_one_array_for_two_structures_is_refused(folder):
    with pytest.raises(InputError, match=r"returned 1 array\(s\) .* needed are 2, each"):
        made(folder, "one_frame", **COLUMNS).compute(PIECES[:2])


def test_what_fails_on_the_chain_asks_for_the_number_of_columns(folder):
    with pytest.raises(
        JobError, match=r"chain of 2 atom\(s\): .*Give descriptor.python.n_features"
    ):
        _ = made(folder, "fails").n_features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"call": "users_own.distances"}, r"must be text such as 'module:function'"),
        ({"call": None}, r"must be text such as 'module:function'"),
        ({"call": "users_gone:f"}, r"cannot be imported: ModuleNotFoundError"),
        ({"call": "users_own:f"}, r"cannot be imported: AttributeError"),
        ({"call": "users_own:constant"}, r"is of type int; it must be a function"),
        ({"call": "users_own:distances", "cutof": 3}, r"unknown key 'cutof' .* is 'cutoff'"),
    ],
)
def test_calls_that_cannot_be_made(folder, options, message):
    with pytest.raises(JobError, match=message):
        UserFunction({"folder": folder, **options}, [6])


def test_the_folder_hides_nothing_installed(folder, tmp_path):
    (tmp_path / "json.py").write_text("raise ImportError('wrong one')")
    made(folder)
    assert sys.path[-1] == folder
