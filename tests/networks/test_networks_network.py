"""Networks of the user: rows against autograd, whole jobs against NumPy, messages."""

from __future__ import annotations

import importlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from networks_cases import (
    MODULE,
    SOAP,
    Floats,
    pieces,
    rigidity,
    silicon,
    torch,
    worked,
    write_nets,
    write_sets,
)

from dlpr.core.blas import blas_kernel
from dlpr.descriptors import Soap, descriptor
from dlpr.errors import InputError, JobError

pytestmark = pytest.mark.torch

SPECIES = [14, 32]
PIECES = pieces(silicon(3, 20))
N_INPUTS = Soap(SOAP, SPECIES).n_features


@pytest.fixture
def nets(tmp_path: Path) -> Iterator[Any]:
    """The user's module; weights are drawn as in a job, in float64."""
    torch.set_default_dtype(torch.float64)
    yield write_nets(tmp_path)
    torch.set_default_dtype(torch.float32)


def section(folder: Path, function: str = "mlp", layer: str | None = None, **other: Any) -> Any:
    """The section of a job as `descriptor` takes it."""
    made = {"call": f"{MODULE}:{function}", "options": {}, "input": {"soap": SOAP}, "layer": layer}
    made |= {"layout": "distinct", "nbytes_per_atom": 2**20, "folder": str(folder)}
    return {"network": made | other}


def inputs(layout: str = "distinct") -> Floats:
    soap = Soap(SOAP, SPECIES)
    rows = soap.compute(PIECES)
    return rows if layout == "distinct" else soap.expand(rows)


def autograd(module: Any, x: Floats, names: list[str] | None = None) -> Floats:
    """Derivatives of every output by some weights, one backward pass for each row."""
    weights = [p for name, p in module.named_parameters() if names is None or name in names]
    found = []
    for row in torch.from_numpy(x):
        gradient = torch.autograd.grad(module(row[None]).squeeze(), weights)
        found.append(torch.cat([one.flatten() for one in gradient]).numpy())
    return np.array(found)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layout", ["distinct", "featomic"])
def test_rows_are_autograds_derivatives(tmp_path: Path, nets: Any, bias: bool, layout: str) -> None:
    x = inputs(layout)
    options = {"sizes": [x.shape[1], 5, 4, 1], "bias": bias}
    module = nets.mlp(**options)
    every = descriptor(section(tmp_path, options=options, layout=layout), SPECIES)
    assert every.n_features == sum(p.numel() for p in module.parameters())
    np.testing.assert_allclose(every.compute(PIECES), autograd(module, x), rtol=1e-11, atol=1e-15)
    last = descriptor(section(tmp_path, layer="4", options=options, layout=layout), SPECIES)
    names = ["4.weight", "4.bias"]
    assert last.n_features == 4 + bias
    np.testing.assert_allclose(last.compute(PIECES), autograd(module, x, names), rtol=1e-12)


def test_weights_come_from_a_file_of_weights(tmp_path: Path, nets: Any) -> None:
    options = {"sizes": [N_INPUTS, 4, 1]}
    module = nets.mlp(**options, seed=5)
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    made = section(tmp_path, layer="2", options=options, state=str(tmp_path / "weights.pt"))
    expected = autograd(module, inputs(), ["2.weight"])
    np.testing.assert_allclose(descriptor(made, SPECIES).compute(PIECES), expected, rtol=1e-12)
    other = descriptor(section(tmp_path, layer="2", options=options), SPECIES).compute(PIECES)
    assert np.abs(other - expected).max() > 1e-2


def test_a_layer_that_takes_no_gradient_is_left_out(tmp_path: Path, nets: Any) -> None:
    source = (tmp_path / f"{MODULE}.py").read_text()
    frozen = "\n\ndef frozen(n):\n    made = mlp([n, 4, 1])\n    made[0].requires_grad_(False)\n"
    (tmp_path / f"{MODULE}.py").write_text(f"{source}{frozen}    return made\n")
    importlib.reload(nets)
    found = descriptor(section(tmp_path, "frozen", options={"n": N_INPUTS}), SPECIES)
    expected = autograd(nets.mlp([N_INPUTS, 4, 1]), inputs(), ["2.weight"])
    np.testing.assert_allclose(found.compute(PIECES), expected, rtol=1e-12)


def test_a_module_of_atoms_gives_a_row_for_each(tmp_path: Path, nets: Any) -> None:
    made = descriptor(section(tmp_path, "OfAtoms", "net.2", input=None, cutoff=4.0), SPECIES)
    module = nets.OfAtoms()
    entered: list[Any] = []
    module.net[2].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    module(silicon(3, 20))
    expected = entered[0].detach().numpy()
    np.testing.assert_allclose(made.compute(PIECES), expected, rtol=1e-12)
    assert made.cutoff == 4.0
    some = [PIECES[0].__class__(**{**vars(PIECES[0]), "centre": np.array([5, 1])}), PIECES[2]]
    chosen = [5, 1, *range(16, 24)]
    np.testing.assert_allclose(made.compute(some), expected[chosen], rtol=1e-12)


def test_kept_settings_make_the_same_bits(tmp_path: Path, nets: Any) -> None:
    made = descriptor(section(tmp_path, options={"sizes": [N_INPUTS, 4, 1]}), SPECIES)
    kept = json.loads(json.dumps(made.settings()))
    again = pickle.loads(pickle.dumps(descriptor(kept)))  # noqa: S301
    assert again.settings() == kept
    assert kept["network"]["made_by"]["torch"].startswith("2.")
    np.testing.assert_array_equal(again.compute(PIECES), made.compute(PIECES))


def test_threads_and_dtype_of_the_process_change_no_bit_and_stay(tmp_path: Path, nets: Any) -> None:
    made = descriptor(section(tmp_path, options={"sizes": [N_INPUTS, 64, 1]}), SPECIES)
    expected = made.compute(PIECES)
    before = torch.get_num_threads(), torch.get_default_dtype()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float32)
        np.testing.assert_array_equal(made.compute(PIECES), expected)
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == torch.float32
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])


def test_torch_adds_no_blas_to_those_of_the_plan() -> None:
    assert "mkl" not in blas_kernel()
    assert blas_kernel().count("openblas") <= 2


def test_the_memory_promised_is_not_exceeded(tmp_path: Path, nets: Any) -> None:
    import tracemalloc

    made = descriptor(section(tmp_path, options={"sizes": [N_INPUTS, 32, 1]}), SPECIES)
    many = pieces(silicon(150))
    made.compute(many[:2])
    tracemalloc.start()  # NumPy's share, which the rows dominate
    made.compute(many)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 8 * 1200 * made.n_features < peak < made.compute_nbytes(1200, 8)


# refusals ----------------------------------------------------------------------------------------


def test_a_pickle_is_not_loaded_even_where_mace_allows_it(
    tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "was_here"),))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as `import mace` does
    made = section(tmp_path, layer="2", options={"sizes": [3, 4, 1]})
    made["network"]["state"] = str(tmp_path / "evil.pt")
    with pytest.raises(
        JobError, match=r"evil\.pt is no file of weights alone: .*weights_only=True"
    ):
        descriptor(made, SPECIES)
    assert not (tmp_path / "was_here").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path, nets: Any) -> None:
    torch.save(nets.mlp([5, 4, 1]).state_dict(), tmp_path / "w.pt")
    made = section(tmp_path, layer="2", options={"sizes": [6, 4, 1]}, state=str(tmp_path / "w.pt"))
    with pytest.raises(JobError, match=r"w\.pt does not fit the module .*size mismatch"):
        descriptor(made, SPECIES)


def test_weights_that_change_after_the_plan_are_refused(tmp_path: Path, nets: Any) -> None:
    kept = descriptor(section(tmp_path, "random", options={"n": N_INPUTS}), SPECIES).settings()
    with pytest.raises(JobError, match=r"made at random needs its weights in a file"):
        descriptor(kept).compute(PIECES)
    source = tmp_path / f"{MODULE}.py"
    source.write_text(source.read_text() + "\n# edited\n")
    with pytest.raises(JobError, match="is not the one that the features were planned with"):
        descriptor(kept)


def test_another_torch_than_the_plans_is_refused(tmp_path: Path, nets: Any) -> None:
    kept = descriptor(section(tmp_path, options={"sizes": [N_INPUTS, 1]}), SPECIES).settings()
    kept["network"]["made_by"] = {"torch": "2.0.0", "cpu": "SSE"}
    with pytest.raises(JobError, match=r"planned with torch 2\.0\.0, cpu SSE; here are torch 2"):
        descriptor(kept)


@pytest.mark.parametrize(
    ("function", "options", "other", "message"),
    [
        ("mlp", {"sizes": [3, 4, 1]}, {"layer": "7"}, r"layer is '7'; Sequential has .*0, 1, 2"),
        ("nothing", {}, {"layer": "0"}, r"returned int; needed is a torch\.nn\.Module"),
        ("mlp", {"sizes": 3}, {"layer": "0"}, r"mlp raised TypeError: 'int' object"),
        ("gone", {}, {"layer": "0"}, r"cannot be imported: AttributeError"),
        ("mlp", {"sizes": [3, 1]}, {"state": "/gone.pt"}, r"state: /gone\.pt cannot be read"),
        ("mlp", {"sizes": [3, 1]}, {"input": None}, r"needs a layer, or an input"),
        ("mlp", {"sizes": [3, 1]}, {"layers": "0"}, r"unknown key 'layers' .* is 'layer'"),
    ],
)
def test_networks_that_cannot_be_made(
    tmp_path: Path, nets: Any, function: str, options: Any, other: Any, message: str
) -> None:
    with pytest.raises((JobError, InputError), match=message):
        descriptor(section(tmp_path, function, options=options, **other), SPECIES)


@pytest.mark.parametrize(
    ("function", "options", "layer", "message"),
    [
        ("mlp", {"sizes": [N_INPUTS, 3]}, None, r"outputs \(1, 3\) for one environment"),
        ("Twice", {"n": N_INPUTS}, "layer", r"the layer was entered 2 time\(s\)"),
        ("failing", {"n": N_INPUTS}, "last", r"raised RuntimeError: no such graph"),
        ("mlp", {"sizes": [3, 1]}, "0", r"raised RuntimeError: .*mat1 and mat2 shapes"),
    ],
)
def test_networks_that_give_no_rows(
    tmp_path: Path, nets: Any, function: str, options: Any, layer: str | None, message: str
) -> None:
    with pytest.raises((JobError, InputError), match=message):
        descriptor(section(tmp_path, function, layer, options=options), SPECIES).compute(PIECES)


# whole jobs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["2", None])
def test_a_job_gives_the_rigidities_of_gauss_newton(
    tmp_path: Path, nets: Any, layer: str | None
) -> None:
    write_sets(tmp_path)
    frames = {name: ase.io.read(tmp_path / f"{name}.xyz", ":") for name in ("train", "film")}
    soap = Soap(SOAP, SPECIES)
    x = {name: soap.compute(pieces(found)) for name, found in frames.items()}
    options = {"sizes": [x["train"].shape[1], 6, 1]}
    module = nets.mlp(**options)
    names = None if layer is None else ["2.weight"]
    g = {name: autograd(module, rows, names) for name, rows in x.items()}
    expected = rigidity(g["train"], [8] * 6, g["film"], 1e-3)
    network = {"call": f"{MODULE}:mlp", "options": options, "input": {"soap": SOAP}, "layer": layer}
    found = worked(tmp_path, {"network": network})
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_networks_stand_side_by_side_and_read_users_rows(tmp_path: Path, nets: Any) -> None:
    write_sets(tmp_path)
    for name in ("train", "film"):
        frames = ase.io.read(tmp_path / f"{name}.xyz", ":")
        np.save(tmp_path / f"{name}.npy", Soap(SOAP, SPECIES).compute(pieces(frames)))
    n = np.load(tmp_path / "train.npy").shape[1]
    network = {"call": f"{MODULE}:mlp", "options": {"sizes": [n, 6, 1]}, "layer": "2"}
    own = {"features": {"train": "train.npy", "film": "film.npy"}}
    expected = worked(tmp_path, {"network": {**network, "input": {"soap": SOAP}}}, "soap")
    found = worked(tmp_path, {"network": {**network, "input": own}}, "rows")
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    both = {"a": {"network": {**network, "input": own}}, "b": {"soap": SOAP}}
    assert worked(tmp_path, {"parts": both}, "both").shape == expected.shape
    np.save(tmp_path / "film.npy", np.load(tmp_path / "film.npy")[1:])
    with pytest.raises(InputError, match=r"film\.npy has 71 rows; the set film has 72"):
        worked(tmp_path, {"network": {**network, "input": own}}, "short")
