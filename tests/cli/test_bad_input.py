"""Mistakes as users make them: one clear message, nothing lost, the same command goes on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from cli_desk import INPUT, JOB, RESOURCE, Desk, crystals, leftovers
from numpy.typing import NDArray

# files -------------------------------------------------------------------------------------------


def _missing(desk: Desk) -> None:
    (desk.path / "train.xyz").unlink()


def _no_match(desk: Desk) -> None:
    desk.job["train"]["files"] = ["trian*.xyz"]
    desk.save()


def _cut_off(desk: Desk) -> None:
    path = desk.path / "train.xyz"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-3]))


def _cut_row(desk: Desk) -> None:
    path = desk.path / "train.xyz"
    path.write_text(path.read_text().rstrip().rpartition(" ")[0].rstrip())


def _cut_compressed(desk: Desk) -> None:
    text = gzip.compress((desk.path / "train.xyz").read_bytes())
    (desk.path / "train.xyz.gz").write_bytes(text[:-100])
    desk.job["train"]["files"] = ["train.xyz.gz"]
    desk.save()


def _binary(desk: Desk) -> None:
    (desk.path / "train.xyz").write_bytes(bytes(range(256)) * 8)


def _empty(desk: Desk) -> None:
    (desk.path / "train.xyz").write_bytes(b"")


def _wrong_count(desk: Desk) -> None:
    path = desk.path / "train.xyz"
    path.write_text(path.read_text().replace("8\n", "9\n", 1))


def _frame(change: Callable[[Atoms], object]) -> Callable[[Desk], None]:
    def spoil(desk: Desk) -> None:
        frames = crystals(4)
        change(frames[2])
        desk.put("train.xyz", frames)

    return spoil


def _nan(atoms: Atoms) -> None:
    atoms.positions[3, 1] = np.nan


def _flat(atoms: Atoms) -> None:
    atoms.cell[2] = atoms.cell[1]


def _no_cell_vector(atoms: Atoms) -> None:
    atoms.cell[2] = 0.0


def _coincide(atoms: Atoms) -> None:
    atoms.positions[5] = atoms.positions[3]


FILES = {
    "missing": (_missing, ["no file", "train.xyz", "probe.xyz", "correct the path"]),
    "no match": (_no_match, ["no file matches 'trian*.xyz'", "train.xyz", "correct the path"]),
    "cut off": (_cut_off, ["train.xyz, frame 3", "says 8 atoms", "after 5 of them", "copy"]),
    "cut row": (_cut_row, ["train.xyz, frame 3, atom 7: 3 columns, 4", "correct the frame"]),
    "cut gz": (_cut_compressed, ["train.xyz.gz", "end early", "copy it again"]),
    "binary": (_binary, ["train.xyz is not text", "copy it again"]),
    "empty": (_empty, ["train.xyz is empty (0 bytes", "copy it again"]),
    "count": (_wrong_count, ["train.xyz, frame 0 (line 1) says 9 atoms, but 8 rows", "correct"]),
    "nan": (_frame(_nan), ["train.xyz, frame 2, atom 3: position (", "not finite", "correct"]),
    "flat cell": (_frame(_flat), ["train.xyz, frame 2", "span no volume", "1e-06", "correct"]),
    "no cell": (_frame(_no_cell_vector), ["train.xyz, frame 2", "cell vector 2", "correct"]),
    "one place": (_frame(_coincide), ["frame 2: atoms 3 (Si) and 5 (Si) are 0 Å", "0.1 Å"]),
}


@pytest.mark.parametrize("name", FILES)
def test_file(desk: Desk, expected: NDArray[np.float64], name: str) -> None:
    spoil, words = FILES[name]
    if "files" not in name:
        desk.does("plan", "job.yaml")
    job, train = json.dumps(desk.job), (desk.path / "train.xyz").read_bytes()
    spoil(desk)
    planned = desk.refuses("plan", "job.yaml", code=INPUT)
    worked = desk.refuses("work", "results", code=INPUT)
    for message in (planned, worked):
        assert not [word for word in words if word not in message], message
        assert "\n" not in message
    assert not (desk.results / "rigidity.zarr").exists()
    assert leftovers(desk) == []
    (desk.path / "train.xyz").write_bytes(train)
    desk.job = json.loads(job)
    desk.save()
    np.testing.assert_array_equal(desk.finish(), expected)


def test_missing_test_file_shows_before_anything_is_computed(desk: Desk) -> None:
    desk.does("plan", "job.yaml")
    (desk.path / "probe.xyz").unlink()
    assert "probe.xyz" in desk.refuses("work", "results", code=INPUT)
    assert not list(desk.results.glob("work/structures-*/receipts/*"))


def test_bad_frame_that_where_leaves_out(desk: Desk) -> None:
    frames = crystals(4)
    frames[2].info["config_type"] = "broken"
    _nan(frames[2])
    desk.put("train.xyz", frames)
    desk.job["train"]["where"] = "config_type != 'broken'"
    desk.save()
    assert np.isfinite(desk.finish()).all()


# the job ------------------------------------------------------------------------------------------


def _set(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    def spoil(job: dict[str, Any]) -> None:
        for key in path[:-1]:
            job = job.setdefault(key, {})
        job[path[-1]] = to

    return spoil


def _rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    def spoil(job: dict[str, Any]) -> None:
        job[new] = job.pop(old)

    return spoil


SOAP = ("descriptor", "soap")
POINTS = {"type": "Tabulated", "points": [1, 2]}
JOBS = {
    "unknown": (_rename("model", "modle"), ["modle: unknown key", "did you mean `model`"]),
    "nested": (_set("train", "groupby", to="x"), ["train.groupby", "did you mean `group_by`"]),
    "elsewhere": (_set("regularizer", to=1.0), ["belongs at `model.linear.regularizer`"]),
    "negative": (
        _set("model", "linear", "regularizer", to=-1e-3),
        ["model.linear.regularizer: found -0.001; needs a number >= 0"],
    ),
    "soap key": (_set(*SOAP, "cutoff", "raduis", to=3.0), ["'raduis'", "'radius'", "Correct"]),
    "soap value": (_set(*SOAP, "cutoff", "radius", to=-3.0), ["cutoff.radius is -3", "greater"]),
    "soap type": (_set(*SOAP, "basis", "type", to="TensorProd"), ["'TensorProduct'", "Correct"]),
    "featomic": (_set(*SOAP, "basis", "radial", to=POINTS), ["featomic refuses", "job file"]),
    "where": (_set("train", "where", to="density > and"), ["train.where: ", "at character"]),
    "type map": (_set("test", "probe", "type_map", to={1: "Xx"}), ["test.probe.type_map: 'Xx'"]),
    "solver": (
        lambda job: (
            _set("solver", to="cholesky")(job),
            _set("model", "linear", "regularizer", to=0.0)(job),
        ),
        ["solver: cholesky", "model.linear.regularizer is 0", "auto, qr and eigh"],
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_job(desk: Desk, name: str) -> None:
    spoil, words = JOBS[name]
    spoil(desk.job)
    desk.save()
    for command in ("plan", "run"):
        message = desk.refuses(command, "job.yaml", code=JOB)
        assert not [word for word in words if word not in message], message
    assert not desk.results.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: [a\n b: c", ["job.yaml: line 2, column", "not valid YAML"]),
        ("", ["job.yaml: the file is empty", "needs a mapping of keys"]),
        ("- a", ["needs a mapping"]),
        ("\x89PNG\r\n", ["job.yaml", "not valid YAML"]),
        ("solver: qr\nsolver: eigh\n", ["line 2", "`solver` is given twice"]),
        (None, ["job.yaml: no such file"]),
    ],
)
def test_job_that_is_no_yaml(desk: Desk, text: str | None, words: list[str]) -> None:
    (desk.path / "job.yaml").unlink()
    if text is not None:
        (desk.path / "job.yaml").write_text(text)
    message = desk.refuses("plan", "job.yaml", code=JOB)
    assert not [word for word in words if word not in message], message


SELECTIONS = {
    "where": ("confg_type == 'even'", JOB, ["train.where", "'confg_type'; nearest: 'config_type'"]),
    "group_by": ("confg_type", JOB, ["train.group_by", "'confg_type'; nearest: 'config_type'"]),
    "keys": ({"energy": "confg_type"}, JOB, ["train.keys.energy", "nearest: 'config_type'"]),
    "nothing": ("n_atoms > 8", INPUT, ["train: 0 of 4 frames", "n_atoms > 8", "at least one"]),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selection(desk: Desk, expected: NDArray[np.float64], name: str) -> None:
    value, code, words = SELECTIONS[name]
    good = dict(desk.job["train"])
    desk.job["train"]["where" if name == "nothing" else name] = value
    desk.save()
    desk.does("plan", "job.yaml")
    message = desk.refuses("work", "results", code=code)
    assert not [word for word in words if word not in message], message
    desk.job["train"] = good
    desk.save()
    np.testing.assert_array_equal(desk.finish(), expected)


def test_misspelt_command_and_set(desk: Desk) -> None:
    said = desk.says("rnu", "job.yaml")
    assert said.code == JOB
    assert "Did you mean 'run'?" in said.err
    said = desk.says("ingest", "job.yaml", "--set", "prob")
    assert said.code == JOB
    assert "'prob'" in said.err
    assert "train, probe" in said.err
    assert "Traceback" not in said.err


def test_memory_of_a_worker_is_too_small_for_one_task(desk: Desk) -> None:
    desk.job["cluster"]["local"]["memory_per_worker"] = "430MiB"
    desk.save()
    message = desk.refuses("plan", "job.yaml", code=RESOURCE)
    assert "memory_per_worker is 430.0 MiB" in message
    assert "one task needs" in message
    assert "Use fewer workers" in message


# species and environments -------------------------------------------------------------------------


def test_species_that_the_training_set_lacks(desk: Desk) -> None:
    frames = crystals(2, seed=40)
    frames[1].symbols[3] = "C"
    desk.put("probe.xyz", frames)
    desk.finish()
    unseen = desk.of_probe("unseen")
    near = frames[1].get_distances(3, range(8), mic=True) < 3.0
    assert unseen[8 + 3] & 1  # its central species, and not that of any other
    assert np.count_nonzero(unseen & 1) == 1
    assert set(np.flatnonzero(unseen & 2)) >= {8 + i for i in np.flatnonzero(near) if i != 3}
    assert not unseen[:8].any()
    rows = json.loads((desk.results / "summary.json").read_text())["probe"]
    assert {r["species"]: (r["n_unseen_centre"], r["n_unseen"] > 0) for r in rows} == {
        6: (1, True),
        14: (0, True),
    }
    assert "unseen" in desk.does("work", "results")


def test_isolated_atom_is_counted_apart(desk: Desk) -> None:
    desk.job["descriptor"]["soap"]["density"]["center_atom_weight"] = 0.0
    desk.save()
    alone = Atoms("Si", positions=[[1.0, 2.0, 3.0]], cell=[20.0] * 3, pbc=True)
    desk.put("probe.xyz", [*crystals(1, seed=40), alone])
    lpr = desk.finish()
    assert np.isposinf(lpr[-1])
    assert np.isfinite(lpr[:-1]).all()
    (row,) = json.loads((desk.results / "summary.json").read_text())["probe"]
    assert (row["n_environments"], row["n_inf"]) == (9, 1)
    assert np.isfinite(row["lpr"]).all()
