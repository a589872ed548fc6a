"""Models as others export them: MACE's pickled modules, metatrain's exported ones."""

from __future__ import annotations

import json
import logging
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks_cases import Floats, lpr_of, pieces, rigidity, silicon, torch, worked, write_sets
from scipy.spatial.transform import Rotation
from small_run import _silicon

from dlpr.descriptors import descriptor
from dlpr.errors import JobError

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

SPECIES = [14, 32]
FRAMES = silicon(3, 20)
NBYTES = {"nbytes_per_atom": 2**20}


@pytest.fixture(scope="module")
def mace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MACE of two layers with weights at random, as `mace_run_train` saves one."""
    modules = pytest.importorskip("mace.modules", reason="mace-torch is not installed")
    from e3nn import o3

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        model = modules.ScaleShiftMACE(
            r_max=3.5,
            num_bessel=4,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=modules.RealAgnosticResidualInteractionBlock,
            interaction_cls_first=modules.RealAgnosticInteractionBlock,
            num_interactions=2,
            num_elements=2,
            hidden_irreps=o3.Irreps("8x0e+8x1o"),
            MLP_irreps=o3.Irreps("6x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=np.array([-1.0, -2.0]),
            avg_num_neighbors=8,
            atomic_numbers=SPECIES,
            correlation=2,
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
        )
    finally:
        torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("mace") / "mace.model"
    torch.save(model, path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SOAP-BPNN of metatrain's with weights at random, exported with its extensions."""
    architecture = pytest.importorskip("metatrain.soap_bpnn", reason="metatrain is not installed")
    from metatrain.utils.architectures import get_default_hypers
    from metatrain.utils.data import DatasetInfo
    from metatrain.utils.data.target_info import get_energy_target_info

    torch.manual_seed(0)
    hypers = get_default_hypers("soap_bpnn")["model"]
    hypers["soap"] |= {"max_angular": 2, "max_radial": 2}
    hypers["soap"]["cutoff"]["radius"] = 3.5
    hypers["bpnn"]["num_neurons_per_layer"] = 8
    energy = get_energy_target_info("energy", {"quantity": "energy", "unit": "eV"})
    info = DatasetInfo("angstrom", SPECIES, {"energy": energy})
    folder = tmp_path_factory.mktemp("metatrain")
    model = architecture.__model__(hypers, info).to(torch.float64).export()
    model.save(str(folder / "bpnn.pt"), collect_extensions=str(folder / "extensions"))
    return folder / "bpnn.pt"


def of_mace(path: Path, **other: Any) -> dict[str, Any]:
    return {"mace": {"file": str(path), "trust": True, **NBYTES, **other}}


def of_metatomic(path: Path, output: str = "mtt::aux::energy_last_layer_features") -> Any:
    extensions = str(path.parent / "extensions")
    made = {"file": str(path), "output": output, "extensions": extensions, **NBYTES}
    return {"metatomic": made}


def every_kind(request: pytest.FixtureRequest, name: str) -> Any:
    path = request.getfixturevalue(name.partition(":")[0])
    layer = {"layer": "readouts.1.linear_2"} if name == "mace:layer" else {}
    return of_mace(path, **layer) if name.startswith("mace") else of_metatomic(path)


KINDS = pytest.mark.parametrize("name", ["mace", "mace:layer", "exported"])


@KINDS
def test_rows_are_of_the_atoms_and_invariant(request: pytest.FixtureRequest, name: str) -> None:
    made = descriptor(every_kind(request, name), SPECIES)
    frames = pieces(FRAMES)
    expected = made.compute(frames)
    assert expected.shape == (24, made.n_features)
    assert np.linalg.matrix_rank(expected) > 4
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    turned = [
        replace(p, position=p.position @ turn.T + [0.1, 0.2, 0.3], cell=p.cell @ turn.T)
        for p in frames
    ]
    np.testing.assert_allclose(made.compute(turned), expected, rtol=0, atol=1e-10)
    some = [replace(frames[1], centre=np.array([6, 2])), replace(frames[0], centre=np.arange(0))]
    np.testing.assert_allclose(made.compute(some), expected[[14, 10]], rtol=0, atol=1e-12)


@KINDS
def test_kept_settings_make_the_same_bits(request: pytest.FixtureRequest, name: str) -> None:
    made = descriptor(every_kind(request, name), SPECIES)
    expected = made.compute(pieces(FRAMES))
    for _ in range(3):  # TorchScript would optimize its program after two runs
        np.testing.assert_array_equal(made.compute(pieces(FRAMES)), expected)
    kept = json.loads(json.dumps(made.settings()))
    again = pickle.loads(pickle.dumps(descriptor(kept)))  # noqa: S301
    assert again.settings() == kept
    np.testing.assert_array_equal(again.compute(pieces(FRAMES)), expected)


@KINDS
def test_an_environment_ends_where_the_cutoff_says(
    request: pytest.FixtureRequest, name: str
) -> None:
    made = descriptor(every_kind(request, name), SPECIES)
    (whole,) = pieces([_silicon(5, 3)])
    centre = np.array([17, 400])
    expected = made.compute([replace(whole, centre=centre)])
    for row, middle in zip(expected, whole.position[centre], strict=True):
        fraction = (whole.position - middle) @ np.linalg.inv(whole.cell)
        near = (fraction - np.round(fraction)) @ whole.cell
        kept = np.linalg.norm(near, axis=1) < made.cutoff + 0.01
        assert kept.sum() < len(kept)
        open_ = replace(
            whole,
            position=near[kept],
            species=whole.species[kept],
            pbc=np.zeros(3, np.bool_),
            centre=np.flatnonzero(np.linalg.norm(near[kept], axis=1) < 1e-9),
        )
        np.testing.assert_allclose(made.compute([open_])[0], row, rtol=0, atol=1e-10)


def test_a_layer_of_mace_gives_the_derivatives_of_its_energies(mace: Path) -> None:
    made = descriptor(of_mace(mace, layer="readouts.1.linear_2"), SPECIES)
    found = made.compute(pieces(FRAMES))
    model = made._module
    torch.set_default_dtype(torch.float64)
    try:
        graph = made._graph(pieces(FRAMES), SPECIES)
        energies = model(graph, compute_force=False)["node_energy"]
        weight = model.readouts[1].linear_2.weight
        expected = [torch.autograd.grad(e, weight, retain_graph=True)[0].numpy() for e in energies]
    finally:
        torch.set_default_dtype(torch.float32)
    ratio = found / np.array(expected)  # e3nn divides by sqrt(6)
    np.testing.assert_allclose(ratio, np.sqrt(6.0), rtol=1e-9)


def test_the_last_layer_of_metatrain_gives_its_energies(exported: Path) -> None:
    import metatomic.torch
    from metatomic_ase import MetatomicCalculator

    made = descriptor(of_metatomic(exported), SPECIES)
    rows = made.compute(pieces(silicon(6, 20)))
    calculator = MetatomicCalculator(exported, extensions_directory=exported.parent / "extensions")
    asked = {"energy": metatomic.torch.ModelOutput(sample_kind="atom")}
    energies = []
    for atoms in silicon(6, 20):
        block = calculator.run_model(atoms, asked)["energy"].block()
        order = np.argsort(np.array(block.samples.column("atom")))
        energies.append(block.values.detach().numpy()[order, 0])
    energy = np.concatenate(energies)
    species = np.concatenate([atoms.numbers for atoms in silicon(6, 20)])
    design = np.column_stack([rows, species == 14, species == 32])
    weights = np.linalg.lstsq(design, energy, rcond=None)[0]
    assert np.abs(energy - energy.mean()).max() > 1e-3
    np.testing.assert_allclose(design @ weights, energy, rtol=0, atol=1e-10)


@KINDS
def test_a_job_gives_the_rigidities_of_the_rows(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    write_sets(tmp_path)
    section = every_kind(request, name)
    import ase.io

    g: dict[str, Floats] = {
        key: descriptor(section, SPECIES).compute(pieces(ase.io.read(tmp_path / f"{key}.xyz", ":")))
        for key in ("train", "film")
    }
    expected = rigidity(g["train"], [8] * 6, g["film"], 1e-3)
    np.testing.assert_allclose(worked(tmp_path, section), expected, rtol=1e-8)
    before = lpr_of(tmp_path / "out").tobytes()
    assert worked(tmp_path, section, "again").tobytes() == before


# refusals ----------------------------------------------------------------------------------------


def test_a_pickle_needs_trust_and_says_why(mace: Path, caplog: pytest.LogCaptureFixture) -> None:
    from dlpr.descriptors import mace as module

    with pytest.raises(JobError, match=r"loading it runs code that it names.*trust: true"):
        descriptor({"mace": {"file": str(mace), **NBYTES}}, SPECIES)
    module._load.cache_clear()
    with caplog.at_level(logging.WARNING):
        descriptor(of_mace(mace), SPECIES).compute(pieces(FRAMES))
    assert "is a pickled module: loading it runs code that it names" in caplog.text


def test_a_model_that_changes_after_the_plan_is_not_loaded(mace: Path, tmp_path: Path) -> None:
    path = tmp_path / "mace.model"
    path.write_bytes(mace.read_bytes())
    kept = descriptor(of_mace(path), SPECIES).settings()
    path.write_bytes(b"no model")
    with pytest.raises(
        JobError, match=r"mace\.model is not the one that the features were planned"
    ):
        descriptor(kept)
    with pytest.raises(JobError, match=r"descriptor\.mace: .* loading .*mace\.model raised"):
        descriptor(of_mace(path), SPECIES).settings()
    torch.save(torch.nn.Linear(2, 1), path)
    with pytest.raises(JobError, match=r"holds Linear; needed is a MACE model"):
        descriptor(of_mace(path), SPECIES).settings()


@KINDS
def test_species_that_a_model_lacks_are_refused(request: pytest.FixtureRequest, name: str) -> None:
    with pytest.raises(
        JobError, match=r"have the atomic number\(s\) \[6\]; .* made for \[14, 32\]"
    ):
        descriptor(every_kind(request, name), [6, 14]).settings()


def test_layers_and_outputs_that_are_not_there(mace: Path, exported: Path) -> None:
    with pytest.raises(JobError, match=r"layer is 'readout'; .*readouts\.1\.linear_2"):
        descriptor(of_mace(mace, layer="readout"), SPECIES)
    with pytest.raises(JobError, match=r"output is 'rows'; .* has energy, .*last_layer"):
        descriptor(of_metatomic(exported, "rows"), SPECIES)
    gone = exported.parent / "gone.pt"
    with pytest.raises(JobError, match=r"metatomic\.file: .*gone\.pt cannot be read: No such file"):
        descriptor({"metatomic": {"file": str(gone), "output": "feature", **NBYTES}}, SPECIES)
