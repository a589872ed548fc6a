"""Five nights over data that grow, with planted events: each is found and named, nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from audit_cases import Nights, alarms, crystals, squeezed

from dlpr.audit.history import History
from dlpr.audit.record import AuditRecord
from dlpr.errors import InputError

CHECKS: list[dict[str, Any]] = [
    {"of": "lpr", "quantile": 0.05, "at_least": {"times": 0.5}},
    {"of": "drift", "at_most": 0.15, "on_failure": "warn"},
    {"of": "unseen", "at_most": 0},
    {"of": "duplicates", "at_most": 0, "on_failure": "warn"},
    {"of": "leakage", "at_most": 0, "on_failure": "warn"},
    {"of": "lost", "at_most": 0, "on_failure": "warn"},
    {"of": "settings", "at_most": 0, "on_failure": "warn"},
]


@pytest.fixture
def quiet(nights: Nights) -> Nights:
    """After a first night, and a second one on which the trajectory has grown as it should."""
    nights.data["checks"] = CHECKS
    assert not alarms(nights.run())
    nights.put("md_001.xyz", crystals(40, 3, 0.15))
    grown = nights.run()
    assert not alarms(grown)
    md = grown.sets[1]
    assert (md.n_files, md.n_new_files, md.n_changed_files) == (2, 1, 0)
    return nights


def test_a_new_phase(quiet: Nights) -> None:
    quiet.put("md_002.xyz", squeezed(30, 4))
    record = quiet.run()
    found = alarms(record)
    assert set(found) == {("lpr.q0.05", "md"), ("drift", "md")}
    assert record.verdict == "fail"
    for check in found.values():
        behind = [record.flagged[k] for k in check.flagged]
        assert behind
        assert {Path(one.file).name for one in behind} == {"md_002.xyz"}
    assert found["lpr.q0.05", "md"].found == pytest.approx(_quantile(quiet, "md", 0.05), rel=1e-3)
    # what failed is no baseline: the next night is held against the one before it
    assert set(alarms(quiet.run())) == set(found)


def _quantile(nights: Nights, name: str, q: float) -> float:
    group = zarr.open_group(str(nights.spec().folder / "work" / "rigidity.zarr"), mode="r")
    lpr = np.asarray(group[f"{name}/environment_lpr"][:])  # type: ignore[index]
    return float(np.quantile(lpr, q, method="inverted_cdf"))


def test_a_corrupted_file(quiet: Nights) -> None:
    path = quiet.path / "md_001.xyz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 - 60])  # within a row of a frame
    before = History(quiet.spec().folder).audits()
    with pytest.raises(InputError, match=r"md_001\.xyz"):
        quiet.run()
    assert History(quiet.spec().folder).audits() == before
    path.write_bytes(whole)
    assert not alarms(quiet.run())


def test_a_training_set_that_lost_a_group(quiet: Nights) -> None:
    quiet.data["train"]["files"] = ["cold.xyz"]
    record = quiet.run()
    found = alarms(record)
    assert found.pop(("lost", "train")).found == 160
    assert "160 of 160 of group hot" in record.checks[_index(record, "lost", "train")].meaning
    # what the training set no longer pins down is its consequence
    assert set(found) <= {("lpr.q0.05", "md"), ("drift", "md")}


def _index(record: AuditRecord, measure: str, name: str) -> int:
    keys = [(one.measure, one.set) for one in record.checks]
    return keys.index((measure, name))


def test_a_duplicated_shard(quiet: Nights) -> None:
    (quiet.path / "md_002.xyz").write_bytes((quiet.path / "md_000.xyz").read_bytes())
    record = quiet.run()
    ((key, check),) = alarms(record).items()
    assert key == ("duplicates", "md")
    assert check.found == 60
    assert "60 of md_002.xyz repeat md_000.xyz" in check.meaning
    assert {Path(record.flagged[k].file).name for k in check.flagged} == {"md_002.xyz"}


def test_a_training_structure_in_a_test_set(quiet: Nights) -> None:
    quiet.put("md_002.xyz", crystals(20, 0)[:3])
    ((key, check),) = alarms(quiet.run()).items()
    assert (key, check.found) == (("leakage", "md"), 3)
    assert "3 of md_002.xyz repeat cold.xyz" in check.meaning
    assert "the first: frame 0 of md_002.xyz is frame 0 of cold.xyz" in check.meaning


def test_a_changed_hyperparameter(quiet: Nights) -> None:
    quiet.data["descriptor"]["soap"]["cutoff"]["radius"] = 4.5
    record = quiet.run()
    ((key, check),) = alarms(record).items()
    assert (key, check.found) == (("settings", ""), 1)
    drift = record.checks[_index(record, "drift", "md")]
    assert "Not comparable" in drift.meaning
    assert "soap.cutoff.radius: 3.0 -> 4.5" in check.meaning
    features = next(one for one in record.work if one.stage == "features of train")
    assert features.n_computed == features.n_tasks
    assert re.search(r"has changed: \S*cutoff\.radius: 3\.0 -> 4\.5\.$", features.reason)
    assert not alarms(quiet.run())


def test_a_regularizer_that_is_picked_anew(nights: Nights) -> None:
    scan = {"scan": [1e-8, 1.0], "on": "md", "points": 5}
    nights.data |= {"checks": CHECKS, "model": {"linear": {"regularizer": scan}}}
    nights.run()
    wrong = crystals(60, 2, 0.15)
    for atoms in wrong:
        atoms.info["energy"] = 0.0
    nights.put("md_000.xyz", wrong)
    record = nights.run()
    ((key, check),) = alarms(record).items()
    assert (key, check.found) == (("settings", ""), 1)
    assert "Here: picked_regularizer: 0.0001 -> 1.0." in check.meaning
    assert "Not comparable" in record.checks[_index(record, "lpr.q0.05", "md")].meaning


def test_data_that_are_lost_show_beside_changed_settings(quiet: Nights) -> None:
    quiet.data["model"] = {"linear": {"regularizer": 1.0e-3}}
    (quiet.path / "md_001.xyz").unlink()
    found = alarms(quiet.run())
    assert {key: one.found for key, one in found.items()} == {
        ("lost", "md"): 320,
        ("settings", ""): 1,
    }


def test_an_unchanged_night_does_nothing(quiet: Nights) -> None:
    record = quiet.run()
    assert not alarms(record)
    assert [one.n_computed for one in record.work] == [0] * len(record.work)
    assert {one.reason for one in record.work} == {"Nothing that it depends on has changed."}
    assert sum(one.n_new_files + one.n_changed_files for one in record.sets) == 0
