"""The sample of an audit's environments: where they are on the map, and what has changed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from audit_cases import Nights, crystals, squeezed

from dlpr.audit.flagged import frames_of
from dlpr.audit.history import History
from dlpr.audit.record import AuditRecord, SampleRecord
from dlpr.audit.sample import SAMPLE
from dlpr.descriptors import descriptor
from dlpr.handles import Result
from dlpr.structures import ingest
from dlpr.structures.frames import Piece

N = 15


def sampled(nights: Nights, **more: Any) -> SampleRecord:
    nights.data["sample"] = {"count": N}
    found = nights.run(**more).sample
    assert found is not None
    return found


def test_a_sample_is_of_all_sets_and_far_apart(nights: Nights) -> None:
    nights.put("dense.xyz", squeezed(4, 1))
    nights.data["test"]["dense"] = {"files": "dense.xyz"}
    found = sampled(nights)
    assert {one.set for one in found.environments} == {"md", "dense"}
    assert (len(found.environments), len(found.training)) == (N, N)
    assert len({(one.set, one.frame, one.atom) for one in found.environments}) == N
    assert np.shape(found.coordinates) == np.shape(found.training) == (N, 3)
    axes = np.array([*found.coordinates, *found.training])
    spread = np.square(axes - axes.mean(axis=0)).sum(axis=0)
    assert spread[0] > spread[1] > spread[2] > 0
    np.testing.assert_allclose(spread / spread[0], np.divide(found.explained, found.explained[0]))
    # another phase lies apart from all that the training set has
    dense = [k for k, one in enumerate(found.environments) if one.set == "dense"]
    nearest = np.linalg.norm(axes[:N, None] - axes[None, N:], axis=2).min(axis=1)
    others = np.delete(nearest, dense)
    assert nearest[dense].min() > 2 * np.median(others)


def test_coordinates_are_those_of_the_atoms_that_are_named(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An affine function of their features, also where atoms are stored by space."""
    monkeypatch.setattr(ingest, "SORTED_FRAME_ATOMS", 10)
    md = crystals(12, 2, 0.15)
    long = md[1] * (4, 1, 1)
    md[1] = long[np.random.default_rng(0).permutation(len(long))]
    nights.put("md_000.xyz", md)
    nights.data["sample"] = {"count": 80}
    found = nights.run().sample
    assert found is not None
    calculator = descriptor(nights.spec().job().descriptor_of("md"), [14])
    rows = []
    for one in found.environments:
        atoms = md[one.frame]
        piece = Piece(
            atoms.positions, atoms.numbers, atoms.cell.array, atoms.pbc, np.array([one.atom])
        )
        rows.append(calculator.compute([piece])[0])
    known = np.hstack([rows, np.ones((len(rows), 1))])
    assert known.shape[1] < 0.5 * len(rows)
    weights, *_ = np.linalg.lstsq(known, np.array(found.coordinates))
    np.testing.assert_allclose(known @ weights, found.coordinates, atol=1e-6)
    assert sum(one.frame == 1 for one in found.environments) > 3


def test_what_is_said_of_them_is_the_results(nights: Nights) -> None:
    found = sampled(nights)
    frames = frames_of(found.environments, Result(nights.spec().folder / "work"))
    for one, atoms in zip(found.environments, frames, strict=True):
        assert atoms.arrays["lpr"][one.atom] == one.lpr
    group: Any = zarr.open_group(str(nights.spec().folder / "work" / "rigidity.zarr"), mode="r")
    lpr = np.asarray(group["md/environment_lpr"][:])
    assert {one.lpr for one in found.environments} <= set(lpr.tolist())
    (audit,) = History(nights.spec().folder).audits()
    told = json.loads(gzip.decompress((audit.path / SAMPLE).read_bytes()))["properties"]
    np.testing.assert_array_equal(told["lpr"]["values"], [one.lpr for one in found.environments])
    np.testing.assert_array_equal(told["PCA 2"]["values"], np.array(found.coordinates)[:, 1])


def test_an_unchanged_night_takes_the_same_sample(nights: Nights) -> None:
    first = sampled(nights)
    second = sampled(nights)
    assert second.coordinates == first.coordinates
    work = nights.run().work
    assert [one.n_computed for one in work if one.stage == "sample"] == [0]


def ratios(record: AuditRecord) -> list[float | None]:
    assert record.sample is not None
    return [one.lpr_ratio for one in record.sample.environments]


def test_ratios_of_two_training_sets(nights: Nights) -> None:
    """Against both results; more data leave nothing less rigid."""
    nights.data["model"] = {"linear": {"regularizer": 1e-4, "scale": "none"}}
    nights.data["sample"] = {"count": N}
    first = nights.run()
    assert first.ratios is not None
    assert "no earlier audit" in first.ratios
    nights.put("hot.xyz", crystals(40, 1, 0.3, "hot"))
    nights.data["train"]["where"] = "energy < 0"
    nights.put("md_001.xyz", crystals(5, 8, 0.5))
    second = nights.run()
    assert second.sample is not None
    known = {
        (one.file, one.frame, one.atom): one.lpr
        for one in [*first.sample.environments, *first.flagged]  # type: ignore[union-attr]
    }
    both = 0
    for one in [*second.sample.environments, *second.flagged]:
        is_new = Path(one.file).name == "md_001.xyz"
        assert (one.lpr_ratio is None) == is_new
        if one.lpr_ratio is not None:
            assert one.lpr_ratio > 1.0
            old = known.get((one.file, one.frame, one.atom))
            both += old is not None
            assert old is None or one.lpr_ratio == one.lpr / old
    assert both > 5
    nights.put("md_000.xyz", crystals(60, 99, 0.15))  # other atoms at the same places
    third = nights.run().sample
    assert third is not None
    of_files = {(Path(one.file).name, one.lpr_ratio) for one in third.environments}
    assert of_files == {("md_000.xyz", None), ("md_001.xyz", 1.0)}


def test_ratios_at_another_regularizer_are_refused(nights: Nights) -> None:
    sampled(nights)
    nights.data["model"] = {"linear": {"regularizer": 2e-4}}
    record = nights.run()
    assert set(ratios(record)) == {None}
    assert "regularizer" in str(record.ratios)
    nights.data["descriptor"]["soap"]["density"]["width"] = 0.405
    nights.data["model"] = {"linear": {"regularizer": 2e-4, "scale": "none"}}
    record = nights.run()
    assert set(ratios(record)) == {None}
    assert "does not compare" in str(record.ratios)
    nights.data |= {"model": {"linear": {"regularizer": 0}}, "solver": "eigh"}
    nights.run()
    assert "without a regularizer" in str(nights.run().ratios)


def test_a_kernels_references(nights: Nights) -> None:
    nights.data["model"] = {"kernel": {"regularizer": 1e-6, "references": {"count": 8}}}
    found = sampled(nights)
    assert found.is_kernel
    assert sum(found.explained) <= 1.0
    nights.put("hot.xyz", crystals(20, 33, 0.4, "hot"))
    record = nights.run()
    assert set(ratios(record)) == {None}
    assert "references" in str(record.ratios)
