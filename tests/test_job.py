"""The job file: what it accepts, what it makes of it, what it says of mistakes."""

from __future__ import annotations

import copy
import json
import os
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from dlpr.errors import JobError
from dlpr.job import Job, SetSpec, Units, load_job
from dlpr.job.cluster import Local
from dlpr.units import ENERGY_UNITS, LENGTH_UNITS

EXAMPLE = """\
output: results
train: {files: [train/*.extxyz.gz], group_by: config_type}     # anything ASE reads
test:
  film:  {files: [film.extxyz]}
  liquid: {files: [liquid.traj]}
descriptor:
  soap: {cutoff: {radius: 5.0}, density: {width: 3e-1, center_atom_weight: null}, basis: {}}
model:
  linear: {regularizer: 1.0e-8, rows: mean, scale: rms, centre_species: separate}
store_test_features: false
cluster:
  local: {workers: 2, threads_per_worker: 1, memory_per_worker: 4GiB}
"""

SMALL: dict[str, Any] = {
    "train": {"files": "a.xyz"},
    "test": {"film": {"files": ["b.xyz"]}},
    "descriptor": {"soap": {"cutoff": {"radius": 4.0}}},
    "model": {"linear": {"regularizer": 1e-8}},
    "cluster": {"local": {}},
    "storage": {},
    "numerics": {},
}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def changed(path: str, value: object) -> dict[str, Any]:
    """SMALL with the value at a dotted path replaced."""
    data = copy.deepcopy(SMALL)
    *way, last = path.split(".")
    place = data
    for part in way:
        place = place.setdefault(part, {})
    place[last] = value
    return data


def refusal(data: object) -> list[str]:
    """The lines of the refusal below its heading."""
    with pytest.raises(JobError) as caught:
        Job.from_dict(data)  # type: ignore[arg-type]
    heading, *lines = str(caught.value).splitlines()
    assert heading == "the job cannot be used:"
    for jargon in ("pydantic", "http", "Input should", "validation error", "<set>", "<word>"):
        assert jargon not in str(caught.value)
    return [line.strip() for line in lines]


def test_example_loads(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, EXAMPLE))
    assert job.base == tmp_path
    assert job.path(job.output) == tmp_path / "results"
    assert job.path("/elsewhere") == Path("/elsewhere")
    assert job.train.files == ("train/*.extxyz.gz",)
    assert job.train.group_by == "config_type"
    assert list(job.test) == ["film", "liquid"]
    assert job.descriptor.kind == "soap"
    assert job.descriptor.spec["density"] == {"width": 0.3, "center_atom_weight": None}
    assert job.model.kind == "linear"
    assert job.model.linear is job.model.spec
    assert job.model.linear is not None
    assert job.model.linear.regularizer == 1e-8
    assert job.cluster.local == Local(workers=2, threads_per_worker=1, memory_per_worker=2**32)
    assert not job.store_test_features


def test_defaults_are_those_promised() -> None:
    plain = {key: SMALL[key] for key in ("train", "test", "descriptor", "model")}
    resolved = Job.from_dict(plain).resolved()
    cluster = resolved.pop("cluster")
    a_set = {
        "files": ["a.xyz"],
        "group_by": None,
        "where": None,
        "keys": {"energy": None, "forces": None, "stress": None, "virial": None},
        "units": {"length": "angstrom", "energy": "eV"},
        "type_map": {},
        "fingerprint": "quick",
        "minimum_distance": 0.1,
    }
    assert resolved == {
        "output": "results",
        "train": a_set,
        "test": {"film": {**a_set, "files": ["b.xyz"]}},
        "descriptor": {"soap": {"cutoff": {"radius": 4.0}}},
        "model": {
            "linear": {
                "regularizer": 1e-8,
                "rows": "mean",
                "scale": "rms",
                "centre_species": "separate",
                "baseline": {"none": {}},
            }
        },
        "loss": {"energy": 1.0, "forces": 0.0, "stress": 0.0, "groups": {}},
        "solver": "auto",
        "committee": None,
        "cross_validation": None,
        "store_train_features": True,
        "store_test_features": False,
        "test_forces": False,
        "storage": {"dtype": "float64"},
        "numerics": {
            "blas_threads": 1,
            "factor_threads": 2,
            "fold_block_rows": 256,
            "block_environments": None,
            "task_environments": None,
            "tile_columns": 4096,
            "partials_budget": 8 * 2**30,
        },
    }
    assert cluster["local"]["workers"] == len(os.sched_getaffinity(0))


def test_local_defaults_fit_the_machine() -> None:
    n_cores = len(os.sched_getaffinity(0))
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    one, many = Local(workers=1), Local(workers=8)
    assert 0 < one.memory_per_worker < physical
    assert many.memory_per_worker * 8 <= one.memory_per_worker
    assert Local(threads_per_worker=2 * n_cores).workers == 1


def test_round_trip_through_json(tmp_path: Path) -> None:
    text = EXAMPLE.replace("  liquid:", "  train: train\n  liquid:").replace(
        "group_by: config_type",
        "type_map: {1: Si, 2: No}, keys: {virial: virials}, where: 'a > 1', units: {length: nm}",
    )
    job = load_job(write(tmp_path, text))
    again = Job.from_dict(json.loads(json.dumps(job.resolved())), base=job.base)
    assert again == job
    assert again.train.type_map == {1: "Si", 2: "No"}
    assert again.test["train"] == "train"
    copied = pickle.loads(pickle.dumps(job))  # noqa: S301
    assert copied == job
    assert copied.base == job.base


def test_settings_leave_out_what_cannot_influence() -> None:
    job = Job.from_dict(SMALL)
    moved = Job.from_dict({**SMALL, "output": "there", "cluster": {"local": {"workers": 7}}})
    assert moved.resolved() != job.resolved()
    assert moved.settings() == job.settings()
    assert job.settings() == {
        key: value
        for key, value in job.resolved().items()
        if key not in ("output", "cluster", "committee", "cross_validation")  # none
    }
    committee = {"posterior": {"members": 10, "scale": 1.0, "seed": 0}}
    assert Job.from_dict(changed("committee.posterior", None)).settings()["committee"] == committee
    assert Job.from_dict(changed("numerics.fold_block_rows", 7)).settings() != job.settings()


def test_a_job_cannot_be_changed() -> None:
    hypers = {"cutoff": {"radius": 4.0}}
    job = Job.from_dict({**SMALL, "descriptor": {"soap": hypers}})
    hypers["cutoff"]["radius"] = 5.0
    assert job.descriptor.spec["cutoff"]["radius"] == 4.0
    with pytest.raises(ValidationError):
        job.solver = "qr"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("sovler", "solver"),
        ("Solver", "solver"),
        ("train.fils", "files"),
        ("train.keys.energies", "energy"),
        ("train.units.lenght", "length"),
        ("test.film.gruop_by", "group_by"),
        ("test.film.keys.viral", "virial"),
        ("test.files.minimum_distence", "minimum_distance"),
        ("descriptor.saop", "soap"),
        ("model.linaer", "linear"),
        ("model.linear.regulariser", "regularizer"),
        ("model.linear.center_species", "centre_species"),
        ("storage.dtpye", "dtype"),
        ("cluster.locla", "local"),
        ("cluster.local.worker", "workers"),
        ("numerics.blas_thread", "blas_threads"),
        ("comittee", "committee"),
        ("committee.subsamples", "subsample"),
    ],
)
def test_nearest_key_at_every_level(wrong: str, right: str) -> None:
    data = changed(wrong, {})
    if wrong.startswith("test.files"):
        data["test"]["files"]["files"] = "c.xyz"  # a set may be named like a key
    (line,) = refusal(data)
    assert line.startswith(f"{wrong}: unknown key; did you mean `{right}`? known here: ")


@pytest.mark.parametrize("section", ["", "train", "model", "model.linear", "numerics"])
def test_an_unlike_key_is_refused_too(section: str) -> None:
    path = f"{section}.qqqq".strip(".")
    (line,) = refusal(changed(path, 1))
    assert line.startswith(f"{path}: unknown key; known here: ")


def test_misspelt_required_key_is_one_problem() -> None:
    (line,) = refusal({**SMALL, "model": {"linear": {"regulariser": 1e-8}}})
    assert line.startswith("model.linear.regulariser: unknown key; did you mean `regularizer`?")


def test_misplaced_key_is_told_its_place() -> None:
    lines = refusal({**SMALL, "model": {"regularizer": 1e-8}, "workers": 2})
    assert any("`regularizer` belongs at `model.linear.regularizer`" in line for line in lines)
    assert any("`workers` belongs at `cluster.local.workers`" in line for line in lines)


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("model.linear.regularizer", -1e-8, ["-1e-08", "a number >= 0"]),
        ("model.linear.regularizer", "-1e-8", ["'-1e-8'", "a number >= 0"]),
        ("model.linear.regularizer", "tiny", ["'tiny'", "a number >= 0"]),
        ("model.linear.regularizer", float("nan"), ["nan", "a number >= 0"]),
        ("model.linear.regularizer", float("inf"), ["inf", "a number >= 0"]),
        ("model.linear.regularizer", True, ["true", "a number"]),
        ("model.linear.regularizer", None, ["nothing", "a number >= 0"]),
        ("model.linear.rows", "maen", ["'maen'", "mean, sum or sqrt"]),
        ("model.linear.scale", None, ["nothing", "rms or none"]),
        ("model", {}, ["nothing", "exactly one of: linear"]),
        ("model", None, ["nothing", "exactly one of: linear"]),
        ("model", "linear", ["'linear'", "a mapping with one of: linear"]),
        ("descriptor.soap", [1], ["[1]", "featomic's hyperparameters"]),
        ("descriptor.soap.cutoff", float("nan"), ["finite numbers"]),
        ("train", "a.xyz", ["'a.xyz'", "a mapping with files"]),
        ("train.type_map", {1: "silicon"}, ["'silicon'", "symbol"]),
        ("train.minimum_distance", -1, ["-1", "a distance >= 0 in Å"]),
        ("train.units.length", "Angstrom", ["'Angstrom'", "angstrom, nm or bohr"]),
        ("test", {}, ["a mapping with nothing in it", "a set under each name"]),
        ("test.film", "trian", ["'trian'", "or the word train"]),
        ("cluster.local.workers", 0, ["0", "a whole number >= 1"]),
        ("cluster.local.workers", 1.5, ["1.5", "a whole number >= 1"]),
        ("cluster.local.memory_per_worker", "4 gigs", ["'4 gigs'", "4GiB"]),
        ("cluster.local.memory_per_worker", "4G", ["'4G'", "4GiB"]),
        ("cluster.local.memory_per_worker", "-4GiB", ["'-4GiB'", "at least one byte"]),
        ("numerics.partials_budget", 0, ["0", "at least one byte"]),
        ("store_test_features", "perhaps", ["'perhaps'", "true or false"]),
        ("committee", {}, ["nothing", "exactly one of: subsample, posterior"]),
        ("committee", {"subsample": {"members": 1}}, ["1", "a whole number >= 2"]),
        ("committee", {"subsample": {"fraction": 1.0}}, ["1.0", "a number between 0 and 1"]),
        ("committee", {"posterior": {"scale": 0}}, ["0", "a number > 0"]),
        ("committee", {"posterior": {"seed": 2**64}}, ["a whole number from 0 to 2^64 - 1"]),
    ],
)
def test_a_bad_value_is_named(path: str, value: object, parts: list[str]) -> None:
    (line,) = refusal(changed(path, value))
    key, _, text = line.partition(": ")
    assert path.startswith(key) or key.startswith(path)
    for part in parts:
        assert part in text


@pytest.mark.parametrize("name", ["a/b", "", ".", "..", "film 2", "__x", "zarr.json", "café"])
def test_set_names_that_no_group_can_have(name: str) -> None:
    (line,) = refusal({**SMALL, "test": {name: "train"}})
    assert line.startswith(f"test.{name}: ")


@pytest.mark.parametrize("name", ["film", "a.b", "2nd", "-", "A_1.x-y"])
def test_set_names_that_a_group_can_have(name: str) -> None:
    assert list(Job.from_dict({**SMALL, "test": {name: "train"}}).test) == [name]


def test_several_problems_are_all_listed() -> None:
    data = changed("model.linear.regularizer", -1)
    data["sovler"] = "qr"
    data["test"]["x"] = {"files": []}
    del data["descriptor"]
    keys = [line.partition(": ")[0] for line in refusal(data)]
    assert sorted(keys) == ["descriptor", "model.linear.regularizer", "sovler", "test.x.files"]


def test_key_that_is_not_text() -> None:
    extra: dict[object, object] = {3: 4}
    (line,) = refusal(extra | SMALL)
    assert line.startswith("3: a key here is text")
    (line,) = refusal({**SMALL, "test": {3: "train"}})
    assert line.startswith("test.3: ")


def test_one_type_twice() -> None:
    type_map: dict[object, str] = {1: "Si", "1": "C"}
    (line,) = refusal(changed("train.type_map", type_map))
    assert line == "train.type_map: type 1 is given twice"


@pytest.mark.parametrize("text", ["1e-8", '"1e-8"', "1.0e-8", "1.e-8", "'1.0E-8'", "0.00000001"])
def test_numbers_that_yaml_reads_as_text(tmp_path: Path, text: str) -> None:
    job = load_job(write(tmp_path, EXAMPLE.replace("1.0e-8", text)))
    assert job.model.spec.regularizer == 1e-8


def test_words_that_yaml_1_1_reads_as_booleans_and_dates(tmp_path: Path) -> None:
    text = EXAMPLE.replace("group_by: config_type", "type_map: {1: No, 2: Y}, where: 2024-01-01")
    job = load_job(write(tmp_path, text.replace("store_test_features: false", "solver: qr")))
    assert job.train.type_map == {1: "No", 2: "Y"}
    assert job.train.where == "2024-01-01"


def test_blank_sections_take_their_defaults(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, EXAMPLE + "numerics:\nstorage: ~\n"))
    assert job.storage.dtype == "float64"
    assert job.numerics.fold_block_rows == 256


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["the file is empty"]),
        ("# nothing\n", ["the file is empty"]),
        ("- a\n- b\n", ["a mapping of keys", "['a', 'b']"]),
        ("train: {files: [a.xyz}\n", ["line 1, column 22", "not valid YAML"]),
        ("a: 1\n\tb: 2\n", ["line 2, column 1"]),
        ("a: 1\n---\nb: 2\n", ["line 2, column 1", "single document"]),
        ("a: !!python/object/apply:os.getcwd []\n", ["line 1, column 4", "not valid YAML"]),
        ("a: !!int b\n", ["not valid YAML"]),
        (b"a: \xff\xfe\n", ["not valid YAML"]),
        (b"\x1f\x8b\x08\x00\x00", ["not valid YAML"]),
        (
            EXAMPLE + "train: {files: [c]}\n",
            ["line 13, column 1", "`train` is given twice, first in line 2"],
        ),
        (
            EXAMPLE.replace("rows: mean", "regularizer: 0"),
            ["line 9, column 33", "`regularizer` is given twice, first in line 9"],
        ),
        (EXAMPLE.replace("  liquid", "  film"), ["line 5, column 3", "`film` is given twice"]),
    ],
)
def test_a_file_that_is_no_job(tmp_path: Path, text: str | bytes, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(JobError) as caught:
        load_job(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:")
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"job\.yaml: no such file"):
        load_job(tmp_path / "job.yaml")
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path)


def test_the_file_is_named_before_its_problems(tmp_path: Path) -> None:
    path = write(tmp_path, EXAMPLE.replace("regularizer: 1.0e-8", "regularizer: -1"))
    with pytest.raises(JobError) as caught:
        load_job(path)
    heading, line = str(caught.value).splitlines()
    assert heading == f"{path}: the job cannot be used:"
    assert line.startswith("  model.linear.regularizer: found -1; needs a number >= 0")


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    text = EXAMPLE.replace("train: {", "train: &t {").replace(
        "film:  {files", "film:  {<<: *t, files"
    )
    film = load_job(write(tmp_path, text)).test["film"]
    assert isinstance(film, SetSpec)
    assert film.files == ("film.extxyz",)
    assert film.group_by == "config_type"


def test_units_of_the_job_are_those_of_the_tables() -> None:
    assert get_args(Units.model_fields["length"].annotation) == tuple(LENGTH_UNITS)
    assert get_args(Units.model_fields["energy"].annotation) == tuple(ENERGY_UNITS)
    assert ENERGY_UNITS["kcal/mol"] == pytest.approx(0.0433641043, rel=1e-8)
    assert ENERGY_UNITS["hartree"] == pytest.approx(2 * ENERGY_UNITS["rydberg"], rel=1e-14)
