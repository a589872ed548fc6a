"""The notebooks, executed as a user would: what they leave in the folder, and on the cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr
from click.testing import CliRunner

import dlpr
from dlpr.cli import cli
from dlpr.clusters.registry import cluster_folder, folders
from dlpr.clusters.server import stop
from dlpr.demo import story
from dlpr.handles import Result

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
jupytext = pytest.importorskip("jupytext")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NAMES = ("embedded", "attach", "networks")
N_ATOMS = 2420
"""Of the demo's test sets."""

pytestmark = pytest.mark.notebooks


def execute(name: str, folder: Path) -> str:
    """Execute a notebook in ``folder``, and return all that its cells put out as text."""
    notebook = jupytext.read(NOTEBOOKS / f"{name}.ipynb")
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=240, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    errors = [output.text for output in outputs if output.get("name") == "stderr"]
    assert errors == []
    return "\n".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)


@pytest.fixture
def clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home for clusters, a profile of two workers; clusters left at the end are stopped."""
    profiles = tmp_path / "config" / "dlpr" / "clusters.yaml"
    profiles.parent.mkdir(parents=True)
    profiles.write_text("two: {local: {workers: 2, memory_per_worker: 1GiB}}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("DLPR_CLUSTERS", str(tmp_path / "clusters"))
    yield tmp_path / "clusters"
    for folder in list(folders()):
        stop(folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_two_forms_of_a_notebook_are_in_step(name: str) -> None:
    stored, source = (jupytext.read(NOTEBOOKS / f"{name}.{form}") for form in ("ipynb", "py"))
    assert stored.metadata["jupytext"]["formats"] == "ipynb,py:percent"
    assert [(cell.cell_type, cell.source) for cell in stored.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped(name: str) -> None:
    stored = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    monkeypatch.setenv("DLPR_NOTEBOOK_FOLDER", str(folder))
    execute("embedded", tmp_path)
    before, after = (Result(folder / name).lpr("test") for name in story.JOBS)
    assert before.shape == after.shape == (N_ATOMS,)
    assert np.median(after) > 2 * np.median(before) > 0
    groups = {row["group"] for row in Result(folder / "after").summary["test"]}
    assert groups == set(story.SETS)


def attach(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """Execute the notebook against a cluster, and look at the result that it leaves."""
    monkeypatch.setenv("DLPR_NOTEBOOK_CLUSTER", name)
    monkeypatch.setenv("DLPR_NOTEBOOK_PROFILE", "two")
    monkeypatch.setenv("DLPR_NOTEBOOK_FOLDER", str(folder / "work"))
    said = execute("attach", folder)
    result = Result(folder / "work" / "after")
    assert result.sets == list(story.SETS)
    assert sum(len(result.lpr(one)) for one in result.sets) == N_ATOMS
    surface = xr.open_zarr(result.path, group="surface", consolidated=False)
    assert np.isfinite(surface.environment_lpr.values).all()
    return said


def worker_pids(folder: Path) -> set[int]:
    """Processes that did the tasks of the run, as their receipts say."""
    paths = (folder / "work" / "after" / "work").glob("*/receipts/*.json")
    return {json.loads(path.read_text())["cost"]["pid"] for path in paths}


def test_attach_leaves_a_running_cluster_up_and_stops_its_own(
    tmp_path: Path, clusters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = CliRunner().invoke(cli, ["cluster", "start", "shared", "--profile", "two"])
    assert begun.exit_code == 0, begun.output
    shared = cluster_folder("shared")
    found = shared.scheduler()
    assert found is not None
    said = attach(tmp_path, monkeypatch, "shared")
    assert "is up" not in said
    assert f"scheduler {found['address']}, process {found['pid']}" in said  # its client is closed
    assert shared.is_alive()
    assert shared.scheduler() == found
    scheduler = psutil.Process(found["pid"])
    processes = [scheduler, *scheduler.children(recursive=True)]
    done_by = worker_pids(tmp_path)
    assert done_by
    assert done_by <= {process.pid for process in processes[1:]}
    with dlpr.connect("shared") as client:
        assert client.submit(sum, (1, 2)).result(timeout=30) == 3
    assert stop(shared)
    assert psutil.wait_procs(processes, timeout=30)[1] == []

    said = attach(tmp_path, monkeypatch, "own")
    assert "cluster own is up" in said
    assert "own is stopped" in said
    assert not (clusters / "own").exists()
    assert worker_pids(tmp_path) == done_by  # the result was there: nothing was done again
