"""A night as a user's machine does it: by a command, on workers that it starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from audit_cases import Nights, shorten, squeezed

from dlpr import cli
from dlpr.audit.history import History


def test_a_night_on_workers_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, which pick to the last bit what one process does."""
    nights = Nights(tmp_path)
    nights.put("pool.xyz", squeezed(12, 3))
    nights.data["pool"] = {"files": "pool.xyz"}
    nights.data["cluster"]["local"]["workers"] = 2
    monkeypatch.setattr(sys, "argv", ["dlpr", "audit", "run", str(nights.save())])
    with pytest.raises(SystemExit) as leave:
        cli.main()
    assert leave.value.code == 0
    (audit,) = History(nights.spec().folder).audits()
    audit.verify()
    assert yaml.safe_load((audit.path / "audit.yaml").read_text()) == nights.spec().resolved()
    assert json.loads((audit.path / "audit.json").read_text())["verdict"] == "pass"
    shorten(monkeypatch, lambda _: None)
    alone = nights.run(history="alone").next
    assert alone is not None
    assert len(alone.picks) == 12
    assert audit.record.next == alone
