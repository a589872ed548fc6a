"""The history: append-only, one at a time, whole or absent."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
from audit_cases import Nights, crystals

from dlpr.audit.history import History
from dlpr.audit.record import AuditRecord
from dlpr.audit.spec import LastOnes
from dlpr.errors import JobError, OwnerError, StoreError
from dlpr.store.lease import Lease


@pytest.fixture
def history(nights: Nights) -> History:
    """Three audits: held, failed, held."""
    low, high = ([{"of": "lpr", "quantile": 0.5, "at_least": x}] for x in (0.0, 1e9))
    for checks in (low, high, low):
        nights.run(checks=checks)
    return History(nights.spec().folder)


def files_of(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_an_audit_stays_what_it_was(nights: Nights) -> None:
    nights.run()
    (first,) = History(nights.spec().folder).audits()
    before = files_of(first.path)
    nights.put("md_001.xyz", crystals(10, 3))
    nights.data["model"] = {"linear": {"regularizer": 1e-3}}
    nights.run()
    shutil.rmtree(nights.spec().folder / "work")
    assert files_of(first.path) == before
    first.verify()


def test_the_record_is_that_of_the_schema(history: History) -> None:
    for audit in history.audits():
        text = (audit.path / "audit.json").read_text()
        assert AuditRecord.model_validate(json.loads(text)) == audit.record
    series = history.audits()[-1].record.series
    assert all(one.audits == [audit.name for audit in history.audits()] for one in series)
    assert all(len(one.values) == 3 for one in series)


@pytest.mark.parametrize(
    "name", ["audit.json", "distributions.npz", "rigidity.zarr/md/environment_lpr/c.0"]
)
def test_damage_shows(history: History, name: str) -> None:
    audit = history.audits()[0]
    path = audit.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the name alone: other audits share the bytes
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"{path.name} is damaged"):
        audit.verify()


def test_what_an_audit_is_held_against(history: History) -> None:
    first, failed, last = history.audits()
    assert [one.record.verdict for one in (first, failed, last)] == ["pass", "fail", "pass"]
    assert last.record.baseline == first.name
    assert [one.name for one in history.baseline("last")] == [last.name]
    assert [one.name for one in history.baseline(failed.name)] == [failed.name]
    assert [one.name for one in history.baseline(LastOnes(last=5))] == [first.name, last.name]
    with pytest.raises(StoreError, match="no audit 'yesterday'"):
        history.baseline("yesterday")


def test_pruning_spares_the_last_good_one_and_the_baseline(
    nights: Nights, history: History
) -> None:
    first, failed, last = (audit.name for audit in history.audits())
    nights.run(checks=[{"of": "lpr", "quantile": 0.5, "at_least": 1e9}], baseline=first)
    newest = history.audits()[-1].name
    removed, _ = history.prune(1)
    assert removed == [failed]
    assert [audit.name for audit in history.audits()] == [first, last, newest]
    for audit in history.audits():
        audit.verify()
    with pytest.raises(JobError, match="at least 1"):
        history.prune(0)


def test_pruning_spares_what_checks_name(nights: Nights, history: History) -> None:
    first = history.audits()[0].name
    bound = {"times": 0.5, "of": first}
    nights.run(checks=[{"of": "lpr", "quantile": 0.5, "at_least": bound}])
    history.prune(1)
    assert history.audits()[0].name == first


def test_an_audit_that_is_not_there_is_named_before_anything_is_computed(nights: Nights) -> None:
    bound = {"times": 0.5, "of": "yesterday"}
    with pytest.raises(StoreError, match="no audit 'yesterday'"):
        nights.run(checks=[{"of": "lpr", "quantile": 0.5, "at_least": bound}])
    assert not (nights.spec().folder / "work").exists()


def test_copies_that_users_made_are_no_audits(nights: Nights, history: History) -> None:
    audits = history.audits()
    for name in ("golden", f"{audits[-1].name} (copy)", "2026-01-01"):
        shutil.copytree(audits[0].path, history.path / name)
    assert history.audits() == audits
    assert not history.new_name().startswith("golden")


def test_pruning_cleans_what_no_result_needs(nights: Nights) -> None:
    nights.run()
    stale = {path.name for path in (nights.spec().folder / "work/work").glob("rigidity-*")}
    nights.run(model={"linear": {"regularizer": 1e-3}})
    history = History(nights.spec().folder)
    _, nbytes = history.prune(2)
    left = {path.name for path in (nights.spec().folder / "work/work").glob("rigidity-*")}
    assert nbytes > 0
    assert len(left) == 1
    assert not left & stale
    for audit in history.audits():
        audit.verify()


def test_names_follow_one_another_whatever_the_clock_says(tmp_path: Path) -> None:
    history = History(tmp_path)
    names = ["2999-01-01T00-00-00Z"]
    for _ in range(3):
        (tmp_path / names[-1]).mkdir()
        (tmp_path / names[-1] / "audit.json").touch()
        names.append(history.new_name())
    assert names == sorted(set(names))
    assert [audit.name for audit in history.audits()] == names[:3]


def test_two_at_once(nights: Nights) -> None:
    owner = Lease(nights.spec().folder / "owner.json")
    owner.acquire()
    with pytest.raises(OwnerError, match=r"another audit writes into .*: process"):
        nights.run()
    waiting = threading.Thread(target=nights.run, kwargs={"busy": "wait"})
    waiting.start()
    waiting.join(1.5)
    assert waiting.is_alive()
    assert not History(nights.spec().folder).audits()
    owner.release()
    waiting.join(30)
    assert len(History(nights.spec().folder).audits()) == 1


def test_what_a_killed_audit_left_is_removed(nights: Nights) -> None:
    partial = nights.spec().folder / ".2026-01-01T00-00-00Z.7-ab.partial"
    partial.mkdir(parents=True)
    (partial / "audit.json").write_text("{}")
    assert not History(nights.spec().folder).audits()
    nights.run()
    assert not partial.exists()
