"""What an audit says of what to label next, and the file of it."""

from __future__ import annotations

from typing import Any

import ase.io
import numpy as np
import pytest
from audit_cases import Nights, crystals, squeezed

from dlpr.audit.history import History
from dlpr.audit.next import NEXT
from dlpr.audit.record import AuditRecord, NextRecord
from dlpr.errors import InputError
from dlpr.exports import extxyz
from dlpr.handles import Result

POOL = {"files": "pool.xyz", "group_by": "config_type"}
NUMBER = {"mean_variance": -1, "mean_log_rigidity": 1, "mean_rigidity": 1, "min_rigidity": 1}
"""Whether an objective is to rise or to fall"""


@pytest.fixture
def pool(nights: Nights) -> Nights:
    """Candidates of two groups, of which five are in the training set already."""
    nights.put("pool.xyz", [*crystals(15, 5, 0.4, "hot"), *squeezed(6, 4), *crystals(5, 0)])
    nights.put("md_000.xyz", [*crystals(20, 2, 0.15), *squeezed(2, 9)])
    return nights


def found(record: AuditRecord) -> NextRecord:
    assert record.next is not None
    return record.next


def curve(proposed: NextRecord) -> list[float]:
    return [proposed.before, *(pick.objective for pick in proposed.picks)]


@pytest.mark.parametrize("objective", NUMBER)
def test_the_objective_is_that_of_the_next_night(pool: Nights, objective: str) -> None:
    """With the picks in the training set, rigidities are what was said of them."""
    pool.data |= {"pool": POOL, "model": {"linear": {"regularizer": 0.1, "scale": "none"}}}
    targets = {"sets": ["md"], "count": 10_000}
    proposed = found(pool.run(next={"count": 3, "objective": objective, "targets": targets}))
    assert (proposed.sets, proposed.n_targets, proposed.n_candidates) == (["md"], 176, 21)
    told = curve(proposed)
    assert (np.diff(told) * NUMBER[objective] > 0).all()
    for values in proposed.baselines.values():
        assert (told[1] - values[0]) * NUMBER[objective] >= 0
    frames = ase.io.read(pool.path / "pool.xyz", ":")
    pool.put("picks.xyz", [frames[pick.frame] for pick in proposed.picks])
    train = {"files": ["cold.xyz", "hot.xyz", "picks.xyz"], "group_by": "config_type"}
    after = found(pool.run(train=train, next={"count": 3, "objective": objective}))
    lpr = Result(pool.spec().folder / "work").lpr("md")
    expected = {
        "mean_variance": (1 / lpr).mean(),
        "mean_log_rigidity": np.log(lpr).mean(),
        "mean_rigidity": lpr.mean(),
        "min_rigidity": lpr.min(),
    }
    assert told[-1] == pytest.approx(expected[objective], rel=1e-8)
    assert after.before == pytest.approx(told[-1], rel=1e-8)
    assert after.n_candidates == 18
    assert not {pick.frame for pick in after.picks} & {pick.frame for pick in proposed.picks}


def test_the_file_has_the_picks_in_their_order(pool: Nights) -> None:
    record = pool.run(pool=POOL, next={"count": 4})
    proposed = found(record)
    frames = ase.io.read(History(pool.spec().folder).audit(record.name).path / NEXT, ":")
    sources = ase.io.read(pool.path / "pool.xyz", ":")
    assert [atoms.info["order"] for atoms in frames] == [1, 2, 3, 4]
    for atoms, pick in zip(frames, proposed.picks, strict=True):
        source = sources[pick.frame]
        np.testing.assert_array_equal(atoms.positions, source.positions)
        np.testing.assert_array_equal(atoms.cell.array, source.cell.array)
        assert (atoms.arrays["lpr"] > 0).all()
        told = [atoms.info[key] for key in ("source_file", "source_frame", "mean_variance")]
        assert told == [pick.file, pick.frame, pick.objective]
        assert pick.file == str(pool.path / "pool.xyz")
        assert atoms.info["group"] == pick.group == source.info.get("config_type", "none")
    assert "".join(extxyz(frames[0])).startswith(f"{len(frames[0])}\n")


@pytest.mark.parametrize("given", [{}, {"pool": POOL, "next": {"count": 0}}])
def test_an_audit_may_have_no_picks(pool: Nights, given: dict[str, Any]) -> None:
    record = pool.run(**given)
    assert record.next is None
    assert not (History(pool.spec().folder).audit(record.name).path / NEXT).exists()


def test_an_unchanged_night_picks_nothing_anew(pool: Nights) -> None:
    """A pool alone is reason enough to pick."""
    first, again = (pool.run(pool=POOL) for _ in range(2))
    assert again.next == first.next
    assert len(found(again).picks) == 20
    assert {one.stage: one.n_computed for one in again.work if one.n_computed} == {}
    assert {one.stage for one in again.work} >= {"whitened rows of pool", "picks to label"}


def test_a_pool_of_known_structures_has_no_picks(pool: Nights) -> None:
    record = pool.run(pool={"files": "cold.xyz"})
    assert found(record).n_candidates == 0
    assert found(record).picks == []
    assert not (History(pool.spec().folder).audit(record.name).path / NEXT).exists()


def test_an_empty_pool_is_refused(pool: Nights) -> None:
    with pytest.raises(InputError, match="pool"):
        pool.run(pool={"files": "pool.xyz", "where": "n_atoms > 1000"})
    assert not History(pool.spec().folder).audits()
