"""Saved models as folders, whole or refused, and the commands that write and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from ase.io import read, write
from click.testing import CliRunner
from fitted_cases import KERNEL, LINEAR, Done, frames_of
from small_run import SmallRun, small_run

from dlpr.cli import cli
from dlpr.errors import InputError, JobError, StoreError
from dlpr.exports.predictions import predict
from dlpr.fitted import load_model
from dlpr.saving import save_model
from dlpr.store.files import members
from dlpr.store.folder import digest

__all__ = ["small_run"]


# folders ------------------------------------------------------------------------------------------


@pytest.fixture
def saved(small_run: SmallRun, tmp_path: Path) -> Path:
    """A saved model."""
    return save_model(small_run.output, tmp_path / "model", scale=0.25)


def change(path: Path, **entries: Any) -> None:
    """Write other entries into a model's record, its digest with them."""
    record = json.loads((path / "model.json").read_text()) | entries
    del record["digest"]
    (path / "model.json").write_text(json.dumps({**record, "digest": digest(record)}))


def test_a_record_says_what_the_numbers_mean(saved: Path) -> None:
    record = json.loads((saved / "model.json").read_text())
    made = record["record"]
    assert record["scale"] == 0.25
    assert load_model(saved).scale == 0.25
    assert record["descriptor"]["species"] == [14, 32]
    assert {"job", "versions", "model", "loss", "factor", "inputs", "sources", "units"} <= set(made)
    assert made["factor"]["conditioning"]["solver"] == "cholesky"
    arrays = np.load(saved / "arrays.npz", allow_pickle=False)
    assert set(arrays) == set(record["arrays"])


@pytest.mark.parametrize("place", [0.001, 0.5, 0.999])
@pytest.mark.parametrize("name", ["model.json", "arrays.npz"])
def test_a_flipped_bit_is_noticed(saved: Path, name: str, place: float) -> None:
    content = bytearray((saved / name).read_bytes())
    content[int(place * len(content))] ^= 4
    (saved / name).write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged|is no saved model|of version None"):
        load_model(saved)


@pytest.mark.parametrize("name", ["model.json", "arrays.npz"])
def test_half_a_folder_is_refused(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match=r"is damaged|is no saved model"):
        load_model(saved)
    (saved / name).unlink()
    with pytest.raises(StoreError, match=r"is damaged|is no saved model"):
        load_model(saved)


def test_a_newer_folder_is_refused(saved: Path) -> None:
    change(saved, model_version=99)
    with pytest.raises(StoreError, match=r"version 99; this dlpr reads up to 1"):
        load_model(saved)


def test_arrays_of_another_model_are_refused(saved: Path) -> None:
    change(saved, shared=True)
    with pytest.raises(StoreError, match=r"is damaged: .* needed are"):
        load_model(saved)


def test_pickled_arrays_are_refused(saved: Path) -> None:
    arrays = dict(np.load(saved / "arrays.npz"))
    arrays["weights"] = np.array([{"an": "object"}], dtype=object)
    np.savez(saved / "arrays.npz", **arrays)
    checks = {
        name: google_crc32c.value((saved / "arrays.npz").read_bytes()[offset : offset + nbytes])
        for name, (offset, nbytes) in members(saved / "arrays.npz").items()
    }
    change(saved, arrays=checks)
    with pytest.raises(StoreError, match="is damaged"):
        load_model(saved)


def test_nothing_but_a_model_is_replaced(small_run: SmallRun, saved: Path) -> None:
    save_model(small_run.output, saved)  # an older model
    assert load_model(saved).scale == 1.0
    other = saved.parent / "letters"
    other.mkdir()
    save_model(small_run.output, other)  # an empty folder
    (saved.parent / "mine").mkdir()
    (saved.parent / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="is no saved model; nothing is written"):
        save_model(small_run.output, saved.parent / "mine")
    assert (saved.parent / "mine" / "letter.txt").read_text() == "dear"
    with pytest.raises(JobError, match="scale"):
        save_model(small_run.output, saved, scale=0.0)


def test_a_python_descriptor_runs_for_those_who_trust_it_alone(tmp_path: Path) -> None:
    (tmp_path / "mine_of_a_saved_model.py").write_text(FUNCTION)
    named = {"python": {"call": "mine_of_a_saved_model:rows"}}
    done = Done(tmp_path, LINEAR, named, solver="cholesky")
    path = save_model(done.output, tmp_path / "model")
    with pytest.raises(JobError, match="trust"):
        load_model(path)
    found = load_model(path, trust=True).predict(done.frames[0])
    expected = done.expected("environment_energy")[0]
    np.testing.assert_allclose(found.energies, expected, rtol=1e-10)


FUNCTION = """
import numpy as np

def rows(frames):
    return [np.stack([f.numbers, f.get_all_distances().min(axis=1) + 1], axis=1) for f in frames]
"""


def test_rows_of_a_file_make_no_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, n, seed in (("train", 6, 0), ("test", 3, 1)):
        n_atoms = sum(map(len, frames_of(n, seed)))
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(n_atoms, 4)))
    files = {"train": "train.npy", "test": "test.npy"}
    done = Done(tmp_path, LINEAR, {"features": files}, solver="cholesky")
    with pytest.raises(JobError, match=r"descriptor\.features"):
        save_model(done.output, tmp_path / "model")


# the command line ---------------------------------------------------------------------------------


def test_save_and_predict_on_the_command_line(tmp_path: Path) -> None:
    done = Done(tmp_path, KERNEL, solver="cholesky")
    model, source, to = tmp_path / "model", tmp_path / "in.extxyz", tmp_path / "out.extxyz"
    write(source, done.frames, format="extxyz")
    said = CliRunner().invoke(cli, ["save", str(done.output), str(model), "--scale", "0.5"])
    assert said.exit_code == 0, said.output
    command = ["predict", str(model), str(source), "--to", str(to), "--forces", "--stress"]
    said = CliRunner().invoke(cli, command)
    assert said.exit_code == 0, said.output
    frames = read(to, ":")
    one = load_model(model)
    square = []
    for frame, atoms in zip(frames, done.frames, strict=True):
        periodic = bool(atoms.pbc.all())
        found = one.predict(atoms, forces=True, stress=periodic)
        assert frame.get_potential_energy() == found.energy
        np.testing.assert_array_equal(frame.get_forces(), found.forces)
        np.testing.assert_array_equal(frame.get_potential_energies(), found.energies)
        if periodic:
            np.testing.assert_array_equal(frame.get_stress(), found.stress)
        for name in ("lpr", "prior_ratio", "uncertainty", "unseen"):
            np.testing.assert_array_equal(frame.arrays[name], getattr(found, name))
        assert frame.info["energy_uncertainty"] == pytest.approx(
            found.energy_uncertainty, nan_ok=True
        )
        np.testing.assert_array_equal(frame.arrays["label_forces"], atoms.get_forces())
        assert frame.info["label_energy"] == atoms.get_potential_energy()
        square.append(((found.energy - atoms.get_potential_energy()) / len(atoms)) ** 2)
    assert f"{np.sqrt(np.mean(square)):.4g}" in said.output
    assert "forces" in said.output
    assert f"{len(frames)} structures" in said.output


def test_predictions_of_named_labels_in_a_compressed_file(saved: Path, tmp_path: Path) -> None:
    frame = frames_of(1, 2)[0]
    frame.info["dft"] = -1.0
    frame.calc = None
    write(tmp_path / "in.extxyz", frame)
    command = ["predict", str(saved), str(tmp_path / "in.extxyz"), "--key", "energy=dft"]
    said = CliRunner().invoke(cli, [*command, "--to", str(tmp_path / "out.xyz.gz")])
    assert said.exit_code == 0, said.output
    found = read(tmp_path / "out.xyz.gz")
    assert found.info["label_energy"] == -1.0
    difference = abs(load_model(saved).predict(frame).energy + 1.0) / len(frame)
    assert f"{difference:.4g}" in said.output


def test_a_frame_that_cannot_be_predicted_is_named(saved: Path, tmp_path: Path) -> None:
    frames = frames_of(2, 2)
    frames[1].symbols[1] = "O"
    write(tmp_path / "in.extxyz", frames)
    target = tmp_path / "out.extxyz"
    with pytest.raises(InputError, match=r"in\.extxyz, frame 1: atom 1 is O"):
        predict(saved, str(tmp_path / "in.extxyz"), target)
    assert not target.exists()
    with pytest.raises(JobError, match=r"end it in \.extxyz"):
        predict(saved, str(tmp_path / "in.extxyz"), tmp_path / "out.csv")
