"""The notebook of networks, executed: its rigidities tell how far a committee is apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from networks_cases import torch  # noqa: F401  (skips where there is none)

from dlpr.handles import Result

nbclient = pytest.importorskip("nbclient")
jupytext = pytest.importorskip("jupytext")
pytest.importorskip("ipykernel")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def test_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLPR_NOTEBOOK_FOLDER", str(tmp_path / "work"))
    monkeypatch.setenv("DLPR_NOTEBOOK_EPOCHS", "100")
    path = Path(__file__).parents[2] / "notebooks" / "networks.py"
    notebook = jupytext.read(path)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    lpr = {name: Result(tmp_path / "work" / name).lpr("test") for name in ("all", "last", "soap")}
    assert {len(values) for values in lpr.values()} == {2420}
    assert all(np.isfinite(values).all() and (values > 0).all() for values in lpr.values())
