"""Results for other programs: what they read is what was computed, atom by atom."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from small_run import LARGE, SmallRun, copied_run, kernel_run, small_run

import dlpr.exports as export_module
import dlpr.exports.structures as structures_module
from dlpr.cli import cli
from dlpr.errors import DlprError, InputError, JobError, StoreError
from dlpr.exports import export
from dlpr.exports.structures import CHEMISCOPE_ATOMS
from dlpr.handles import Result
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder

__all__ = ["copied_run", "kernel_run", "small_run"]


def rigidities(run: SmallRun, name: str, index: int) -> tuple[Any, ...]:
    """LPR, prior ratio, species and PR of one structure, off the result."""
    group: Any = Result(run.output).open(name)
    start, stop = group["structure_offset"][index : index + 2]
    of_atoms = (
        group[f"environment_{key}"][start:stop] for key in ("lpr", "prior_ratio", "species")
    )
    return *of_atoms, float(group["structure_pr"][index])


@pytest.mark.parametrize("name", ["train", "film", "bare"])
def test_extxyz_holds_the_source_and_its_rigidities(
    small_run: SmallRun, tmp_path: Path, name: str
) -> None:
    path = export(small_run.output, tmp_path / "a.extxyz", name)
    frames = ase.io.read(path, ":")
    sources = small_run.sources[name]
    assert len(frames) == len(sources)
    for index, (frame, source) in enumerate(zip(frames, sources, strict=True)):
        lpr, ratio, species, pr = rigidities(small_run, name, index)
        np.testing.assert_array_equal(frame.positions, source.positions)
        np.testing.assert_array_equal(frame.numbers, source.numbers)
        np.testing.assert_array_equal(frame.numbers, species)
        np.testing.assert_array_equal(frame.cell.array, source.cell.array)
        np.testing.assert_array_equal(frame.pbc, source.pbc)
        np.testing.assert_array_equal(frame.arrays["lpr"], lpr)
        np.testing.assert_array_equal(frame.arrays["prior_ratio"], ratio)
        assert frame.info["structure_pr"] == pr
        assert frame.info["group"] == source.info.get("config_type", "all")
        assert Path(frame.info["source_file"]).name == f"{name}.extxyz"
        assert frame.info["source_frame"] == index
        assert (frame.calc is None) == (source.calc is None)
        if source.calc is not None:
            assert frame.get_potential_energy() == source.get_potential_energy()
            np.testing.assert_array_equal(frame.get_forces(), source.get_forces())
            np.testing.assert_allclose(frame.get_stress(), source.get_stress(), rtol=1e-15)


def test_the_frames_cover_what_is_hard(small_run: SmallRun) -> None:
    """Infinite rigidities, a frame that is stored in another order, a set without any force."""
    result = Result(small_run.output)
    stage = StageFolder(result.path.resolve().parent)
    film = open_structures(stage.input("film").input("structures"))
    assert [film.is_sorted_by_space(index) for index in range(4)] == [False, True, False, False]
    start, stop = film.structure_offset[1:3]
    assert stop - start == LARGE
    stored = film.read("source_atom", start, stop)
    assert np.count_nonzero(stored == np.arange(LARGE)) < LARGE // 10
    assert np.isinf(result.lpr("film")).sum() == 1
    bare = stage.input("bare").input("structures")
    assert not list(bare.path.glob("parts/*/force"))
    assert list(stage.input("film").input("structures").path.glob("parts/*/force"))


def test_rigidities_follow_their_atoms(small_run: SmallRun, tmp_path: Path) -> None:
    """The most rigid atom of the sorted frame is where its neighbourhood says, not only its row."""
    from dlpr.descriptors import descriptor
    from dlpr.stages.factor import open_factors
    from dlpr.structures.frames import Piece

    frame = ase.io.read(export(small_run.output, tmp_path / "a.xyz", "film", structures="1"))
    rigidity = StageFolder(Result(small_run.output).path.resolve().parent).input("film")
    soap = descriptor({"soap": rigidity.settings["features"]["descriptor"]["soap"]}, [14, 32])
    some = np.array([0, 17, 1458, 4000, LARGE - 1])
    numbers = frame.numbers.astype(np.uint8)
    piece = Piece(frame.positions, numbers, frame.cell.array, frame.pbc, some)
    features = soap.compute([piece])
    fit = open_factors(rigidity.input("factor")).fit
    for row, atom in enumerate(some):
        block = soap.species.index(int(frame.numbers[atom]))
        expected = fit.blocks[block].rigidity(features[row : row + 1])[0]
        assert frame.arrays["lpr"][atom] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("structures", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        ("0:2", [0, 1]),
        ("1", [1]),
        ("-1", [5]),
        ("-2", [4]),
        ("::2", [0, 2, 4]),
        ("4:1:-2", [4, 2]),
        ("3:99", [3, 4, 5]),
        (slice(1, 3), [1, 2]),
        (slice(None), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_structures_are_chosen_as_lists_are(
    small_run: SmallRun, tmp_path: Path, structures: Any, expected: list[int]
) -> None:
    path = export(small_run.output, tmp_path / "a.xyz", "train", structures=structures)
    assert [frame.info["source_frame"] for frame in ase.io.iread(path, ":")] == expected


def test_gz_is_the_same_compressed_and_without_a_date(small_run: SmallRun, tmp_path: Path) -> None:
    plain = export(small_run.output, tmp_path / "a.extxyz", "train")
    packed = export(small_run.output, tmp_path / "a.extxyz.gz", "train").read_bytes()
    assert gzip.decompress(packed) == plain.read_bytes()
    assert len(packed) < plain.stat().st_size
    assert packed[4:8] == bytes(4)  # where gzip keeps the time
    assert export(small_run.output, tmp_path / "b.xyz.gz", "train").read_bytes() == packed


def test_chunks_smaller_than_structures(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are put together from chunks, and text from blocks."""
    expected = export(small_run.output, tmp_path / "a.xyz", "film").read_bytes()
    init = structures_module._Rows.__init__

    def shorter(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        self._size = 100

    monkeypatch.setattr(structures_module._Rows, "__init__", shorter)
    monkeypatch.setattr(export_module, "_BLOCK_ROWS", 5)
    assert export(small_run.output, tmp_path / "b.xyz", "film").read_bytes() == expected


@pytest.mark.parametrize("file", ["a.json", "a.json.gz"])
def test_chemiscope(small_run: SmallRun, tmp_path: Path, file: str) -> None:
    path = export(small_run.output, tmp_path / file, "film", structures="1:")
    raw = gzip.decompress(path.read_bytes()) if file.endswith(".gz") else path.read_bytes()
    assert b"Infinity" not in raw  # chemiscope reads NaN, but no infinity
    data = json.loads(raw)
    sources = small_run.sources["film"][1:]
    assert data["meta"]["name"] == "film"
    assert [one["size"] for one in data["structures"]] == [len(one) for one in sources]
    np.testing.assert_array_equal(data["structures"][0]["x"], sources[0].positions[:, 0])
    assert len(data["environments"]) == sum(map(len, sources))
    assert {one["cutoff"] for one in data["environments"]} == {4.0}
    expected = np.concatenate([rigidities(small_run, "film", index)[0] for index in (1, 2, 3)])
    finite = np.isfinite(expected)
    assert np.count_nonzero(~finite) == 1
    properties = data["properties"]
    for name, values in {"lpr": expected, "log10 lpr": np.log10(expected)}.items():
        assert properties[name]["target"] == "atom"
        np.testing.assert_array_equal(properties[name]["values"], np.where(finite, values, np.nan))
    assert properties["pr"]["target"] == "structure"
    pr = np.array([rigidities(small_run, "film", index)[3] for index in (1, 2, 3)])
    np.testing.assert_array_equal(properties["pr"]["values"], np.where(np.isfinite(pr), pr, np.nan))
    assert data["settings"]["structure"][0]["color"]["property"] in properties


def test_chemiscope_refuses_what_it_cannot_show(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CHEMISCOPE_ATOMS == 100_000
    monkeypatch.setattr(structures_module, "CHEMISCOPE_ATOMS", 1000)
    n_atoms = sum(map(len, small_run.sources["film"]))
    with pytest.raises(InputError, match=rf"{n_atoms} atoms.* 1000\..*--structures"):
        export(small_run.output, tmp_path / "a.json", "film")
    assert not list(tmp_path.iterdir())
    assert export(small_run.output, tmp_path / "a.json", "film", structures="2:").exists()


def test_csv_has_every_set(small_run: SmallRun, tmp_path: Path) -> None:
    path = export(small_run.output, tmp_path / "a.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    summary = Result(small_run.output).summary
    expected = [(name, row) for name, of_set in summary.items() for row in of_set]
    assert {row["set"] for row in rows} == {"train", "film", "bare"}
    assert {row["group"] for row in rows if row["set"] == "train"} == {"bulk", 'odd = "name"'}
    for row, (name, of_row) in zip(rows, expected, strict=True):
        assert (row["set"], row["group"], row["species"]) == (
            name,
            of_row["group"],
            str(of_row["species"]),
        )
        assert int(row["n_environments"]) == of_row["n_environments"]
        assert int(row["n_inf"]) == of_row["n_inf"]
        for key in ("lpr", "prior_ratio"):
            found = [float(row[f"{key}_q{q}"]) for q in ("000", "005", "050", "095", "100")]
            assert found == of_row[key]
    assert sum(int(row["n_inf"]) for row in rows) == 1


def test_parquet_has_the_set_that_is_asked_for(small_run: SmallRun, tmp_path: Path) -> None:
    path = export(small_run.output, tmp_path / "a.parquet", "film")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    summary = Result(small_run.output).summary["film"]
    assert [row["lpr_q050"] for row in rows] == [row["lpr"][2] for row in summary]
    assert [row["set"] for row in rows] == ["film"] * len(summary)


def test_quantiles_that_there_are_not_are_empty(copied_run: SmallRun, tmp_path: Path) -> None:
    path = Result(copied_run.output).path / "bare" / "zarr.json"
    metadata = json.loads(path.read_text())
    metadata["attributes"]["summary"][0]["lpr"] = None
    path.write_text(json.dumps(metadata))
    export(copied_run.output, tmp_path / "a.csv", "bare")
    with (tmp_path / "a.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["lpr_q050"] == ""
    export(copied_run.output, tmp_path / "a.parquet", "bare")
    rows = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert rows[0]["lpr_q050"] is None
    assert rows[1]["lpr_q050"] > 0


def test_format_overrules_the_suffix(small_run: SmallRun, tmp_path: Path) -> None:
    path = export(small_run.output, tmp_path / "a.txt", format="csv")
    assert path.read_text().startswith("set,group,species,n_environments")


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("a.foo", {"name": "film"}, r"suffix of a\.foo.*extxyz, chemiscope, csv, parquet"),
        ("a.gz", {"name": "film"}, r"suffix of a\.gz"),
        ("a.xyz", {"name": "film", "format": "cif"}, "format 'cif'"),
        ("a.parquet.gz", {}, r"leave \.gz out"),
        ("a.xyz", {"name": "flim"}, "no set 'flim'; it has: train, film, bare"),
        ("a.csv", {"name": "flim"}, "no set 'flim'"),
        ("a.xyz", {}, "has 3 sets.*holds 1.*--set"),
        ("a.csv", {"structures": "0:1"}, "leave --structures out"),
        ("a.xyz", {"name": "film", "structures": "x"}, "'x' is no number and no slice"),
        ("a.xyz", {"name": "film", "structures": "1:2:3:4"}, "no slice"),
        ("a.xyz", {"name": "film", "structures": "::0"}, "no slice"),
        ("a.xyz", {"name": "film", "structures": "4:9"}, "'4:9' are 0 of the set's 4.*0 to 3"),
        ("a.xyz", {"name": "film", "structures": slice(4, 9)}, "'4:9:' are 0 of the set's 4"),
        ("folder.xyz", {"name": "film"}, "is a folder"),
    ],
)
def test_what_cannot_be_done_is_said(
    small_run: SmallRun, tmp_path: Path, file: str, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "folder.xyz").mkdir()
    with pytest.raises(JobError, match=message):
        export(small_run.output, tmp_path / file, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.xyz"]


def test_a_folder_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no result"):
        export(tmp_path, tmp_path / "a.csv")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["rigidity", "position"])
def test_damage_is_said_and_the_old_file_kept(
    copied_run: SmallRun, tmp_path: Path, what: str
) -> None:
    stage = StageFolder(Result(copied_run.output).path.resolve().parent)
    if what == "rigidity":
        damaged = stage
        flip(stage.path / "rigidity.zarr/film/environment_lpr/c.0", 800)
        task = stage.settings["sets"].index("film")
    else:
        damaged, task = stage.input("film").input("structures"), 0
        flip(damaged.path / "parts/000000.zarr/position/c.0.0", 800)
    (tmp_path / "to").mkdir()
    target = tmp_path / "to" / "a.xyz"
    target.write_text("old")
    with pytest.raises(StoreError, match="damaged") as error:
        export(copied_run.output, target, "film")
    assert f"Remove {damaged.path / 'receipts'}/{task:06d}.json" in str(error.value)
    assert "same command" not in str(error.value)
    assert [path.name for path in target.parent.iterdir()] == ["a.xyz"]
    assert target.read_text() == "old"


def test_a_result_apart_from_its_run(small_run: SmallRun, tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    shutil.copytree(small_run.output / "rigidity.zarr", apart / "rigidity.zarr")
    with pytest.raises(StoreError, match="lies apart from the structures"):
        export(apart, tmp_path / "a.xyz", "film")
    assert export(apart, tmp_path / "a.csv").stat().st_size > 0


def test_command(small_run: SmallRun, tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    line = ["export", str(small_run.output), "--set", "train", "--structures", "0:2"]
    done = CliRunner().invoke(cli, [*line, "--to", str(path)])
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str(path)
    assert len(ase.io.read(path, ":")) == 2
    wrong = CliRunner().invoke(cli, [*line, "--to", str(tmp_path / "a.foo")])
    assert isinstance(wrong.exception, DlprError)
    assert "dlpr export results" in CliRunner().invoke(cli, ["export", "--help"]).output


def test_command_knows_every_format() -> None:
    from dlpr.cli.export import FORMATS as of_command
    from dlpr.exports import FORMATS

    assert of_command == FORMATS


def test_a_committee_goes_out_with_the_rigidities(kernel_run: SmallRun, tmp_path: Path) -> None:
    group: Any = Result(kernel_run.output).open("bare")
    variance = group["environment_committee_variance"][:]
    assert (variance > 0).all()
    frame = ase.io.read(export(kernel_run.output, tmp_path / "a.extxyz", "bare"))
    np.testing.assert_array_equal(frame.arrays["committee_variance"], variance)
    of_structure = group["structure_committee_variance"][0]
    assert frame.info["structure_committee_variance"] == of_structure
    scope = json.loads(export(kernel_run.output, tmp_path / "a.json", "bare").read_text())
    assert scope["properties"]["committee variance"]["values"] == variance.tolist()
    text = export(kernel_run.output, tmp_path / "a.csv", "bare").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert min(float(row["committee_variance_q000"]) for row in rows) == variance.min()
    summary = Result(kernel_run.output).summary["bare"]
    correlations = [str(row["rank_correlation"]) for row in summary]
    assert [row["committee_rank_correlation"] for row in rows] == correlations
