"""``dlpr demo``: what it writes, what it tells, and the potential behind its structures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.tersoff import Tersoff, TersoffParameters
from ase.io import read
from click.testing import CliRunner, Result

from dlpr.cli import cli
from dlpr.demo import story
from dlpr.demo.tersoff import POTENTIAL, all_pairs, coordination, tersoff
from dlpr.errors import JobError, StoreError


def call(folder: Path) -> Result:
    """Run the demo in this process."""
    runner = CliRunner()
    return runner.invoke(cli, ["demo", "--output", str(folder), "--workers", "2"])


def receipts(folder: Path) -> dict[Path, int]:
    """When each task was done."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/work/*/receipts/*.json")}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The demo's folder and what it printed."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    said = call(folder)
    assert said.exit_code == 0, (said.output, said.exception)
    return folder, said.output


@pytest.fixture(scope="module")
def sets(demo: tuple[Path, str]) -> dict[str, story.TestSet]:
    return story.read_sets(demo[0])


def test_demo_writes_what_it_names(demo: tuple[Path, str]) -> None:
    folder, said = demo
    files = ("rigidity.png", "slab.png", "slab.extxyz", "before.yaml", "after.yaml")
    for path in (*files, "before/rigidity.zarr", "after/rigidity.zarr"):
        assert (folder / path).exists()
        assert str(folder / path) in said
    for name in ("rigidity.png", "slab.png"):
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 20_000
    assert f"dlpr export {folder / 'after'} --set liquid" in said


def test_demo_prints_table_and_story(demo: tuple[Path, str]) -> None:
    said = demo[1]
    for label in story.SETS.values():
        assert f"│ {label} " in said
    assert "Before, the model" in said
    assert "nan" not in said


def test_slab_is_read_back_with_its_rigidities(
    demo: tuple[Path, str], sets: dict[str, story.TestSet]
) -> None:
    slab: Any = read(demo[0] / "slab.extxyz")
    assert len(slab) == 192
    assert slab.pbc.tolist() == [True, True, False]
    for row, name in enumerate(("before", "after")):
        expected = sets["surface"].lpr[row, :192]
        np.testing.assert_allclose(slab.arrays[f"lpr_{name}"], expected, atol=5e-9)
        log = slab.arrays[f"log10_lpr_{name}"]
        np.testing.assert_allclose(log, np.log10(expected), atol=5e-9)
    assert np.array_equal(slab.arrays["coordination"], coordination(slab, story.BOND))


def test_defect_atoms_gain_more_than_the_crystal(sets: dict[str, story.TestSet]) -> None:
    crystal = sets["crystal"].gain(True)
    assert 1.5 < crystal < 4.0
    for name, least in {"surface": 30, "vacancy": 20, "divacancy": 15, "interstitial": 1.5}.items():
        assert sets[name].gain(False) > least * crystal / 2.5
        assert sets[name].gain(False) > crystal
    assert len(sets["crystal"].atoms(False)) == len(sets["amorphous"].atoms(False)) == 0
    assert sets["liquid"].medians(False)[1] < 0.2 * sets["surface"].medians(False)[1]


def test_rigidities_match_the_frames(
    demo: tuple[Path, str], sets: dict[str, story.TestSet]
) -> None:
    for name, found in sets.items():
        frames: Any = read(story.DATA / f"test_{name}.extxyz.gz", ":")
        assert found.lpr.shape == found.ratio.shape == (2, sum(map(len, frames)))
        assert all(frame.info["config_type"] == name for frame in frames)
        assert np.isfinite(found.lpr).all()
        assert (found.ratio >= 1 - 1e-9).all()


def test_demo_again_computes_nothing_and_keeps_changed_jobs(demo: tuple[Path, str]) -> None:
    folder, said = demo
    before = receipts(folder)
    assert before
    path = folder / "before.yaml"
    own = path.read_text()
    path.write_text(f"# mine\n{own}".replace("workers: 2", "workers: 1"))
    again = call(folder)
    assert again.exit_code == 0, (again.output, again.exception)
    assert receipts(folder) == before
    assert again.output.split("Written")[0] == said.split("Written")[0]
    path.write_text(own.replace("1.0e-7", "1.0e-6"))
    story.write_jobs(folder, 2)
    assert "1.0e-6" in path.read_text()
    path.write_text(own.replace("  liquid: {files", "  melt: {files"))
    with pytest.raises(JobError, match="other test sets"):
        story.write_jobs(folder, 2)
    path.write_text(own)


def test_results_of_other_data_are_refused(demo: tuple[Path, str]) -> None:
    path = demo[0] / "data" / "test_vacancy.extxyz.gz"
    own = path.read_bytes()
    path.write_bytes((story.DATA / "test_divacancy.extxyz.gz").read_bytes())
    try:
        with pytest.raises(StoreError, match="188 atoms, the results 190 and 190"):
            story.read_sets(demo[0])
    finally:
        path.write_bytes(own)


def test_tersoff_agrees_with_ase() -> None:
    atoms: Any = bulk("Si", cubic=True) * (2, 1, 1)
    atoms.rattle(0.15, seed=3)
    del atoms[5]
    p = POTENTIAL
    parameters = TersoffParameters(
        m=3.0,
        gamma=1.0,
        lambda3=0.0,
        c=p.c,
        d=p.d,
        h=p.h,
        n=p.n,
        beta=p.beta,
        lambda2=p.mu,
        B=p.b,
        R=0.5 * (p.inner + p.outer),
        D=0.5 * (p.outer - p.inner),
        lambda1=p.lam,
        A=p.a,
    )
    atoms.calc = Tersoff({("Si", "Si", "Si"): parameters})
    energy, force = tersoff(p, atoms.positions, all_pairs(atoms, p.outer))
    assert energy.sum() == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    np.testing.assert_allclose(force, atoms.get_forces(), atol=1e-8)


def test_labels_are_the_potential_s() -> None:
    frame: Any = read(story.DATA / "test_surface.extxyz.gz", "0")
    energy, force = tersoff(POTENTIAL, frame.positions, all_pairs(frame, POTENTIAL.outer))
    assert energy.sum() == pytest.approx(frame.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(force, frame.get_forces(), atol=1e-4)
