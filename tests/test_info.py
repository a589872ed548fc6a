"""What `dlpr info` says of every kind of store, and what `dlpr status --verify` finds in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from small_run import (
    LARGE,
    SmallRun,
    audited_run,
    copied_run,
    kernel_run,
    robust_run,
    small_run,
    tiled_run,
)

import dlpr.engine.verify as verify_module
from dlpr.cli import cli
from dlpr.describe import describe_store
from dlpr.engine.verify import damaged_tasks
from dlpr.errors import StoreError
from dlpr.stages.tasks import STAGES as ALL_STAGES
from dlpr.store.folder import FORMAT_VERSION, StageFolder, folders

STAGES = {name for name, module in ALL_STAGES.items() if module.startswith("dlpr.")}
"""Other tests bring stages of their own."""
OTHER_FORMS = {"triangle", "cholesky"}
"""Stages that the run has not, as its Hessian is of one piece."""
OTHER_MODELS = {"references", "derivatives", "decomposition", "scan", "committee", "forces"}
"""Stages of kernels, of forces, of regularizers that are picked and of committees."""
OTHER_LOSSES = {"fit"}
"""Stages of losses that are not squared."""
OTHER_ASPECTS = {"cross_validation", "whitened", "targets", "proposal", "sample"}
"""Stages of held-out errors, and of audits."""
OTHERS = OTHER_FORMS | OTHER_MODELS | OTHER_LOSSES | OTHER_ASPECTS
__all__ = ["audited_run", "copied_run", "kernel_run", "robust_run", "small_run", "tiled_run"]

N_FILM = LARGE + 64 + 1 + 8


def stage_of(output: Path, stage: str, n_tasks: int = 1) -> StageFolder:
    """A stage of the run, with at least so many tasks."""
    found = [folder for folder in folders(output / "work") if folder.stage == stage]
    return next(folder for folder in found if folder.n_tasks >= n_tasks)


def film(output: Path) -> StageFolder:
    return stage_of(output, "result").input("film")


def described(path: Path) -> tuple[str, dict[str, str], dict[str, Any]]:
    title, rows, record = describe_store(path)
    assert title.startswith(str(path))
    assert all(len(row) == 2 and all(isinstance(cell, str) for cell in row) for row in rows)
    json.dumps(record, allow_nan=False)
    named = {name.replace("  ", "array ", 1): value for name, value in rows}  # arrays are indented
    assert len(named) == len(rows)
    return title, named, record


# info -------------------------------------------------------------------------------------------


def test_output_folder(small_run: SmallRun) -> None:
    title, rows, record = described(small_run.output)
    assert title.endswith("output folder")
    assert record["model"]["linear"]["regularizer"] == 1e-6
    assert rows["result"].endswith(stage_of(small_run.output, "result").name)
    assert rows["set film"] == f"{N_FILM} environments; 4 structures; groups: all"
    assert "6 structures" in rows["set train"]
    assert 'bulk, odd = "name"' in rows["set train"]
    assert "featomic" in rows["versions"]
    assert "no run is going on" in rows["owner"]
    for folder in folders(small_run.output / "work"):
        count = f"{folder.n_tasks} of {folder.n_tasks} tasks"
        assert rows[f"stage {folder.name}"].startswith(count)


def test_output_folder_that_is_not_finished(copied_run: SmallRun) -> None:
    (copied_run.output / "rigidity.zarr").unlink()
    film(copied_run.output).withdraw(0)
    _, rows, _ = described(copied_run.output)
    assert rows["result"].startswith("none yet: dlpr status")
    folder = film(copied_run.output)
    assert rows[f"stage {folder.name}"].startswith(f"{folder.n_tasks - 1} of {folder.n_tasks}")


@pytest.mark.parametrize("stage", sorted(STAGES - {"triangle"}))
def test_every_stage(
    small_run: SmallRun,
    tiled_run: SmallRun,
    kernel_run: SmallRun,
    robust_run: SmallRun,
    audited_run: SmallRun,
    stage: str,
) -> None:
    other = {**dict.fromkeys(OTHER_FORMS, tiled_run), **dict.fromkeys(OTHER_MODELS, kernel_run)}
    other |= dict.fromkeys(OTHER_LOSSES, robust_run)
    other |= dict.fromkeys(OTHER_ASPECTS, audited_run)
    folder = stage_of(other.get(stage, small_run).output, stage)
    title, rows, record = described(folder.path)
    assert title.endswith(f"stage {stage}")
    assert rows["tasks done"] == f"{folder.n_tasks} of {folder.n_tasks}"
    assert record == folder.plan
    for name in folder.plan["inputs"]:
        assert rows[f"input {name}"] == folder.input(name).name
    shown = {
        "index": ("array n_atoms", "int64"),
        "structures": ("labels energy", ""),
        "features": ("array environment_feature", "dimensions environment, feature"),
        "references": ("array whitening_0", "float64"),
        "rows": ("array sums_0", "float64"),
        "derivatives": ("array rows_0", "float64"),
        "decomposition": ("array basis", "float64"),
        "scan": ("array square", "float64"),
        "forces": ("array environment_pr_forces", "float64"),
        "fit": ("iteration", ""),
        "hessian": ("array matrix", "float64"),
        "factor": ("conditioning solver", "cholesky"),
        "cholesky": ("conditioning solver", "cholesky"),
        "committee": ("committee subsample members", "3"),
        "cross_validation": ("array sums", "float64"),
        "whitened": ("array rows", "float64"),
        "targets": ("array rows", "float64"),
        "proposal": ("array curve", "float64"),
        "sample": ("array coordinates", "float64"),
        "rigidity": ("array environment_lpr", "float64"),
        "result": ("array film/environment_lpr", f"({N_FILM},) float64"),
    }
    name, value = shown[stage]
    assert value in rows[name]


def test_structures_stage_counts(small_run: SmallRun) -> None:
    _, rows, _ = described(film(small_run.output).input("structures").path)
    assert rows["environments"] == str(N_FILM)
    assert rows["labels forces"] == "2"
    assert rows["species"] == "Si Ge"


def test_stage_that_is_not_finished(copied_run: SmallRun) -> None:
    folder = film(copied_run.output)
    assert folder.n_tasks > 1
    for task in range(folder.n_tasks):
        folder.withdraw(task)
        _, rows, _ = described(folder.path)
        assert rows["tasks done"] == f"{folder.n_tasks - task - 1} of {folder.n_tasks}"
        assert ("arrays" in rows) == (task < folder.n_tasks - 1)


def test_result_store_and_one_set_and_one_array(small_run: SmallRun) -> None:
    store = small_run.output / "rigidity.zarr"
    _, rows, record = described(store)
    assert f"({N_FILM},) float64; dimensions environment" in rows["array film/environment_lpr"]
    assert "(5,) int64; dimensions structure_edge" in rows["array film/structure_offset"]
    assert record["job"]["solver"] == "cholesky"
    assert rows["made by"].startswith(stage_of(small_run.output, "result").name)
    for path in (store / "film", store / "film" / "environment_lpr"):
        _, rows, record = described(path)
        array = rows["array environment_lpr"]
        chunk = N_FILM * 8 + 4
        assert array.endswith(f"1 of 1 chunks there; {chunk / 1024:.1f} KiB")
        assert "array film/environment_lpr" not in rows
        assert rows["model regularizer"] == "1e-06"
        assert rows["on-disk format"] == str(FORMAT_VERSION)
        assert "units" in rows
        assert record["versions"]
        assert record["factor"]["conditioning"]["solver"]


def test_features_with_a_chunk_lacking(copied_run: SmallRun) -> None:
    folder = stage_of(copied_run.output, "features")
    part = folder.path / "parts" / "000000.zarr"
    _, rows, _ = described(part)
    assert "1 of 1 chunks" in rows["array environment_feature"]
    (part / "environment_feature" / "c.0.0").unlink()
    _, rows, _ = described(part)
    assert "0 of 1 chunks" in rows["array environment_feature"]
    assert rows["made by"].endswith("(0 of 1 tasks done)")
    _, rows, record = described(folder.path / "columns.zarr")
    assert record["descriptor"]["species"] == [14, 32]
    assert sum(name.startswith("array feature_") for name in rows) > 3


def test_structures_part(small_run: SmallRun) -> None:
    folder = film(small_run.output).input("structures")
    _, rows, record = described(folder.path / "parts" / "000000.zarr")
    assert rows["array position"].startswith(f"({N_FILM}, 3) float64; dimensions environment")
    assert record["groups"] == ["all"]
    assert rows["input index"] == folder.input("index").name


def newer(path: Path, *way: str) -> None:
    record = json.loads(path.read_text())
    place = record
    for key in way:
        place = place[key]
    place["format_version"] = 99
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "path"),
    [
        (lambda out: newer(out / "job.json"), lambda out: out),
        (lambda out: newer(out / "rigidity.zarr/zarr.json", "attributes"), lambda out: out),
        (
            lambda out: newer(out / "rigidity.zarr/zarr.json", "attributes"),
            lambda out: out / "rigidity.zarr" / "film" / "structure_pr",
        ),
        (
            lambda out: newer(stage_of(out, "features").path / "plan.json"),
            lambda out: stage_of_name(out, "features"),
        ),
    ],
)
def test_a_newer_format_is_refused(
    copied_run: SmallRun, spoil: Callable[[Path], None], path: Callable[[Path], Path]
) -> None:
    spoil(copied_run.output)
    said = f"format 99; this dlpr reads formats up to {FORMAT_VERSION}"
    with pytest.raises(StoreError, match=said):
        describe_store(path(copied_run.output))


def stage_of_name(output: Path, stage: str) -> Path:
    return next((output / "work").glob(f"{stage}-*"))


def test_what_is_no_store(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "plan.json").write_text('{"stage": "of a theatre"}')
    foreign = zarr.create_group(str(tmp_path / "foreign.zarr"))
    foreign.create_array("x", shape=(3,), dtype="f8")
    receipts = stage_of(small_run.output, "factor").path / "receipts"
    for path in (*sorted(tmp_path.iterdir()), tmp_path / "foreign.zarr" / "x", receipts):
        with pytest.raises(StoreError, match=r"no store of dlpr.*output folder.*rigidity\.zarr"):
            describe_store(path)
    with pytest.raises(StoreError, match="found a file"):
        describe_store(tmp_path / "file")
    with pytest.raises(StoreError, match="found nothing"):
        describe_store(tmp_path / "absent")


def test_a_damaged_part_is_said(copied_run: SmallRun) -> None:
    folder = stage_of(copied_run.output, "hessian")
    path = folder.path / next(iter(folder.receipts()[0].files))
    path.write_bytes(bytes(path.stat().st_size))
    _, rows, _ = described(folder.path)
    assert rows["array damaged"].endswith(f"dlpr status --verify {copied_run.output}")


def test_commands(copied_run: SmallRun) -> None:
    said = CliRunner().invoke(cli, ["info", str(copied_run.output / "rigidity.zarr" / "film")])
    assert said.exit_code == 0, said.output
    assert "environment_prior_ratio" in said.output
    record = json.loads(said.output[said.output.index("\n{") :])
    assert record["format_version"] == FORMAT_VERSION
    folder = film(copied_run.output)
    flip(folder.path / "parts" / "000001.npz", 300)
    said = CliRunner().invoke(cli, ["status", str(copied_run.output), "--verify"])
    assert said.exit_code == 0, said.output
    cells = next(line for line in said.output.splitlines() if folder.name in line).split("│")
    assert [cell.strip() for cell in cells[3:5]] == ["-", "1"]


# verify -----------------------------------------------------------------------------------------


def flip(path: Path, at: int, bit: int = 2) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_whole_stages_have_no_damage(small_run: SmallRun, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = folders(small_run.output / "work")
    assert {folder.stage for folder in stages} == STAGES - OTHERS
    for _ in range(2):
        assert [damaged_tasks(folder) for folder in stages] == [[]] * len(stages)
        monkeypatch.setattr(verify_module, "_READ_NBYTES", 100)  # many blocks to a file


@pytest.mark.parametrize("stage", sorted(STAGES - OTHERS))
def test_every_file_of_every_stage_is_read(copied_run: SmallRun, stage: str) -> None:
    """A flipped bit in any file that a receipt names; its size is right, so it is not missing."""
    folder = stage_of(copied_run.output, stage)
    for receipt in folder.receipts():
        for name, (size, check) in receipt.files.items():
            path = folder.path / name
            whole = path.read_bytes()
            if check == {} or size <= 4:
                continue
            at = whole.index(b"\x93NUMPY") + 20 if isinstance(check, dict) else size // 2
            flip(path, at)
            assert folder.receipt(receipt.task) is not None
            assert damaged_tasks(folder) == [receipt.task], name
            path.write_bytes(whole)
    assert damaged_tasks(folder) == []


def chunk_of(folder: StageFolder) -> tuple[int, Path]:
    receipt = folder.receipts()[-1]
    name = max(receipt.files, key=lambda name: int(receipt.files[name][0]))
    return receipt.task, folder.path / name


def test_a_chunk_flipped_truncated_exchanged_gone(copied_run: SmallRun) -> None:
    folder = stage_of(copied_run.output, "result")
    task, path = chunk_of(folder)
    whole = path.read_bytes()
    for place in (0, len(whole) - 5, len(whole) - 4, len(whole) - 1):  # content and checksum
        for bit in range(8):
            flip(path, place, bit)
            assert damaged_tasks(folder) == [task]
            path.write_bytes(whole)
    for size in (len(whole) - 1, 4, 3, 0):
        path.write_bytes(whole[:size])
        assert damaged_tasks(folder) == [task]
    content = b"\1" + whole[1:-4]
    assert content != whole[:-4]
    checksum = google_crc32c.value(content).to_bytes(4, "little")
    path.write_bytes(content + checksum)  # whole in itself, but not what the receipt says
    assert damaged_tasks(folder) == [task]
    path.write_bytes(whole + b"\0")
    assert damaged_tasks(folder) == [task]
    path.unlink()
    assert damaged_tasks(folder) == [task]
    folder.withdraw(task)
    assert damaged_tasks(folder) == []


def test_a_part_flipped_anywhere(tmp_path: Path) -> None:
    """Any bit of an ``.npz``: found, or of no consequence for the arrays."""
    folder = StageFolder.create(tmp_path, "index", {}, {}, 1)
    arrays = {"a": np.arange(2.0), "b": np.ones(3, np.int32)}
    folder.write_receipt(0, folder.write_part(0, arrays), {}, {})
    path = folder.path / "parts" / "000000.npz"
    whole = path.read_bytes()
    n_harmless = 0
    for place in range(len(whole)):
        for bit in {0, place % 8}:
            flip(path, place, bit)
            if not damaged_tasks(folder):
                n_harmless += 1
                np.testing.assert_equal(folder.read_part(0), arrays)
            path.write_bytes(whole)
    assert n_harmless < len(whole)  # of nearly twice as many
    path.write_bytes(whole + b"\0")
    assert damaged_tasks(folder) == [0]


def test_a_part_of_another_task(copied_run: SmallRun) -> None:
    folder = film(copied_run.output)
    assert folder.n_tasks > 2
    parts = [folder.path / "parts" / f"{task:06d}.npz" for task in (0, 1)]
    first, second = (part.read_bytes() for part in parts)
    assert len(first) != len(second) or first != second
    parts[0].write_bytes(second)
    assert damaged_tasks(folder) == [0]
