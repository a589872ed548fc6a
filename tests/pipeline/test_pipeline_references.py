"""References of kernels, and labels, groups and species that a job wants and data lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import write
from models_cases import LINEAR, MU, data, done, load
from pipeline_cases import TINY, crystals, make_job, run

from dlpr.core import sampling
from dlpr.core.kernel import unit_rows
from dlpr.core.sampling import draw_keys
from dlpr.descriptors import Soap
from dlpr.engine.check import check_job
from dlpr.errors import InputError, JobError
from dlpr.stages.features import FeatureSource

__all__ = ["data"]


@pytest.mark.parametrize(
    "references",
    [
        {"indices": [3, 1, 8, 30]},
        {"file": "test.xyz"},
        {"count": 4, "method": "random", "seed": 3},
        {"count": 4, "method": "cur"},
        {"count": {"Ga": 2, "As": 3}},
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_references_of_every_kind(data: Path, references: dict[str, Any]) -> None:
    model = {"kernel": {"regularizer": MU, "references": references}}
    found = done(data, f"references-{'-'.join(references)}-{len(str(references))}", model=model)
    facts = found.used["references"].receipts()[-1].facts["references"]
    part = found.used["references"].read_part(0)
    if "count" in references:
        count = references["count"]
        expected = count if isinstance(count, dict) else dict.fromkeys(("Ga", "As"), count)
        assert {symbol: own["count"] for symbol, own in facts.items()} == expected
    elif "indices" in references:
        taken = np.concatenate([part[f"environment_{k}"] for k in range(2)])
        np.testing.assert_array_equal(np.sort(taken), [1, 3, 8, 30])
    else:
        assert sum(own["count"] for own in facts.values()) == sum(map(len, load(data, "test")))
    assert np.isfinite(found.sets["test"]["environment_lpr"]).all()


@pytest.mark.parametrize(("block", "task", "n_candidates"), [(4, 8, 3), (7, 20, 10), (64, 99, 99)])
def test_farthest_points_however_stored_features_are_cut(
    data: Path, block: int, task: int, n_candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against plain sampling of each species' unit vectors, from the pick that the seed makes."""
    n_features = Soap(TINY, (31, 33)).n_features
    monkeypatch.setattr(sampling, "CANDIDATES_NBYTES", 8 * n_features * n_candidates)
    model = {"kernel": {"regularizer": MU, "references": {"count": 15, "seed": 1}}}
    numerics = {"block_environments": block, "task_environments": task}
    references = done(data, f"cut-{block}", model=model, numerics=numerics).used["references"]
    source = FeatureSource(references.input("structures"), references.settings["features"])
    blocks = [
        features for task in range(len(source.edges) - 1) for _, _, features in source.blocks(task)
    ]
    species = source.environment_species(0, source.edges[-1])
    for k in range(2):
        own = np.flatnonzero(species == k)
        points = unit_rows(np.concatenate(blocks)[own])
        nearest = np.full(len(own), np.inf)
        picks = [draw_keys(np.ones(len(own)), 0, 1).argmax()]
        for _ in range(14):
            nearest = np.minimum(nearest, np.square(points - points[picks[-1]]).sum(axis=1))
            picks.append(nearest.argmax())
        found = references.read_part(0)[f"environment_{k}"]
        np.testing.assert_array_equal(found, own[picks])


def test_energies_that_some_structures_lack(tmp_path: Path) -> None:
    """Without one they are no rows; where none has one, all are, and nothing is predicted."""
    frames = crystals(("Ga", "As"), 8)
    for k, atoms in enumerate(frames):
        if k > 4:
            del atoms.info["energy"]
    write(tmp_path / "some.xyz", frames)
    write(tmp_path / "five.xyz", frames[:5])
    for atoms in frames:
        atoms.info.pop("energy", None)
    write(tmp_path / "none.xyz", frames)
    test = {"test": {"files": "some.xyz"}}
    some, five, none = (
        run(make_job(tmp_path, f"{name}.xyz", test, LINEAR, TINY, output=name))
        for name in ("some", "five", "none")
    )
    lpr = "environment_lpr"
    np.testing.assert_array_equal(some.sets["test"][lpr], five.sets["test"][lpr])
    assert none.facts["n_rows"] == 8
    assert "environment_energy" in some.sets["test"]
    assert "environment_energy" not in none.sets["test"]


def test_labels_that_nobody_has_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.xyz", crystals(("Ga", "As"), 4))
    with pytest.raises(InputError, match="the loss has forces, but no structure"):
        run(make_job(tmp_path, hypers=TINY, loss={"forces": 1.0}))


def test_references_beyond_the_training_set_are_refused(data: Path) -> None:
    model = {"kernel": {"regularizer": MU, "references": {"indices": [100000]}}}
    with pytest.raises(InputError, match="indices has 100000; the training set has"):
        done(data, "beyond", model=model)


def test_a_baseline_needs_a_regularizer_of_the_model(data: Path) -> None:
    linear = {"regularizer": 0.0, "baseline": {"composition": {"regularizer": 0.1}}}
    with pytest.raises(JobError, match="baseline"):
        check_job(make_job(data, model={"linear": linear}))


@pytest.mark.parametrize("tile_columns", [3, 4096])
def test_a_species_without_references_is_unknown(data: Path, tile_columns: int) -> None:
    kernel = {"regularizer": MU, "references": {"indices": [0, 1, 2, 3, 4, 5, 6, 7]}}
    frames = load(data, "train")
    number = np.concatenate([atoms.numbers for atoms in frames])
    gallium = np.flatnonzero(number == 31)[:5].tolist()
    kernel["references"] = {"indices": gallium}
    numerics, output = {"tile_columns": tile_columns}, f"one-{tile_columns}"
    found = done(data, output, model={"kernel": kernel}, numerics=numerics, solver="cholesky").sets[
        "train"
    ]
    arsenic = number == 33
    assert (found["environment_lpr"][arsenic] == 0.0).all()
    assert (found["environment_unseen"][arsenic] & 4 > 0).all()
    assert (found["environment_residual"][arsenic] == 1.0).all()
    assert (found["environment_lpr"][~arsenic] > 0.0).all()
    assert np.isfinite(found["structure_pr"]).all()


def refused(data: Path, error: type[Exception], match: str, **settings: Any) -> None:
    with pytest.raises(error, match=match):
        done(data, "refused", **settings)


def test_what_the_training_set_has_not_is_refused(data: Path) -> None:
    def kernel(**references: Any) -> dict[str, Any]:
        return {"kernel": {"regularizer": MU, "references": references}}

    refused(data, JobError, "count has Si", model=kernel(count={"Si": 3, "Ga": 2, "As": 1}))
    refused(data, JobError, "count lacks As", model=kernel(count={"Ga": 2}))
    isolated = {"linear": {**LINEAR, "baseline": {"isolated": {"Ga": 1.0}}}}
    refused(data, JobError, "isolated lacks As", model=isolated)
    refused(data, JobError, "loss.groups has 'strange'.*even, odd", loss={"groups": {"strange": 2}})
    refused(data, JobError, "dual needs no more rows", solver="dual", loss={"forces": 1.0})


def test_references_from_files_are_read_as_the_training_set(tmp_path: Path) -> None:
    """In bohr, as the job says of the training set: the same environments, the same kernels."""
    frames = crystals(("Ga", "As"), 6)
    write(tmp_path / "train.xyz", frames)
    for atoms in frames:
        atoms.set_cell(atoms.cell.array / 0.529177210903, scale_atoms=True)
    write(tmp_path / "bohr.xyz", frames)
    found = []
    for name, units in (("train.xyz", {}), ("bohr.xyz", {"units": {"length": "bohr"}})):
        model = {"kernel": {"regularizer": MU, "references": {"file": name}}}
        train = {"files": name, **units}
        found.append(run(make_job(tmp_path, train, hypers=TINY, model=model, output=f"o-{name}")))
    one, other = (each.sets["train"]["environment_lpr"] for each in found)
    np.testing.assert_allclose(one, other, rtol=1e-3)
