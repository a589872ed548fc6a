"""`dlpr audit`: its exit codes, and what it prints."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from audit_cases import Nights, crystals

from dlpr import cli
from dlpr.audit import night
from dlpr.audit.history import History
from dlpr.audit.spec import AuditSpec
from dlpr.store.lease import Lease


class Terminal:
    """The command line in a folder of nights."""

    def __init__(self, nights: Nights, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.nights = nights
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.chdir(nights.path)

    def says(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, output and error output of a command."""
        self._monkeypatch.setattr(sys, "argv", ["dlpr", "audit", *arguments])
        self._capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as leave:
            code = leave.code
        assert isinstance(code, int)
        found = self._capsys.readouterr()
        return code, found.out, found.err


@pytest.fixture
def terminal(nights: Nights, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Terminal:
    nights.save()
    return Terminal(nights, monkeypatch, capsys)


def test_exit_codes_of_a_night(terminal: Terminal) -> None:
    code, out, err = terminal.says("run")
    assert (code, err) == (0, "")
    assert "all checks hold" in out
    terminal.nights.data["checks"] = [{"of": "lpr", "quantile": 0.5, "at_least": 1e9}]
    terminal.nights.save()
    code, out, _ = terminal.says("run", "AUDIT.yaml")
    assert code == 1
    assert "md: LPR, 50 % quantile" in out
    assert "label structures like those that are flagged" in out
    (terminal.nights.path / "md_000.xyz").write_text("8\nno structure\n")
    code, _, err = terminal.says("run")
    assert code == 2
    assert err.startswith("Error: ")
    assert "md_000.xyz" in err
    assert len(History(terminal.nights.spec().folder).audits()) == 2


def test_a_fault_of_the_program_is_not_a_check_that_failed(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(night, "run_audit", broken)
    code, out, err = terminal.says("run", "--mail")
    assert (code, out.count("\n")) == (2, 1)
    assert "a fault of dlpr: ZeroDivisionError: by zero" in out
    assert "Traceback" in err


def test_an_audit_that_is_busy_is_not_one_that_failed(terminal: Terminal) -> None:
    owner = Lease(terminal.nights.spec().folder / "owner.json")
    owner.acquire()
    with owner.held():
        code, _, err = terminal.says("run")
    assert code == 2
    assert "another audit writes into" in err


def test_a_mail_is_one_paragraph(terminal: Terminal) -> None:
    terminal.nights.data["title"] = "Silicon"
    terminal.nights.data["checks"] = [{"of": "lpr", "quantile": 0.5, "at_least": 1e9}]
    terminal.nights.save()
    code, out, err = terminal.says("run", "--mail")
    assert (code, err, out.count("\n")) == (1, "", 1)
    (audit,) = History(terminal.nights.spec().folder).audits()
    for part in (f"Silicon, {audit.name}: FAILED.", "md: LPR, 50 % quantile", ">= 1e+09"):
        assert part in out
    assert out.strip().endswith(str(audit.path / "index.html"))
    (terminal.nights.path / "md_000.xyz").unlink()
    code, out, err = terminal.says("run", "--mail")
    assert (code, out.count("\n")) == (2, 1)
    assert "could not be made" in out
    assert err


def test_past_audits_are_listed_shown_compared_and_pruned(terminal: Terminal) -> None:
    terminal.says("run")
    terminal.nights.put("md_001.xyz", crystals(5, 3))
    terminal.nights.data["model"] = {"linear": {"regularizer": 1e-3}}
    terminal.nights.save()
    terminal.says("run")
    first, second = (audit.name for audit in History(terminal.nights.spec().folder).audits())
    code, out, _ = terminal.says("list")
    assert code == 0
    assert out.index(first) < out.index(second)
    code, out, _ = terminal.says("show", first, "--audit", "audits", "--verify")
    assert code == 0
    assert first in out
    assert second not in out
    code, out, _ = terminal.says("compare", first)
    assert code == 0
    assert "regularizer: 0.0001 -> 0.001" in out
    assert "520" in out  # environments
    assert "480" in out
    code, out, _ = terminal.says("prune", "--keep", "1")
    assert (code, out.count("removed")) == (0, 1)  # the first is the baseline of the second
    code, _, err = terminal.says("show", "yesterday")
    assert code == 4
    assert second in err
    assert terminal.says("list", "--audit", "nowhere")[0] == 4


def test_check_looks_and_computes_nothing(terminal: Terminal) -> None:
    code, out, _ = terminal.says("check")
    assert code == 0
    assert "train: 2 files" in out
    assert not (terminal.nights.path / "audits").exists()
    (terminal.nights.path / "hot.xyz").unlink()
    code, _, err = terminal.says("check")
    assert code == 3
    assert "hot.xyz" in err


def test_init_writes_a_file_that_can_be_run(terminal: Terminal) -> None:
    terminal.nights.put("md_001.xyz", crystals(5, 3))
    code, out, err = terminal.says(
        "init", "hot.xyz", "md_000.xyz", "md_001.xyz", "--to", "new.yaml"
    )
    assert (code, err) == (0, "")
    assert "new.yaml" in out
    text = (terminal.nights.path / "new.yaml").read_text()
    assert "2 files, 65 structures, 520 atoms; species Si; groups cold" in text
    spec = AuditSpec.load(terminal.nights.path / "new.yaml")
    assert spec.train.group_by == "config_type"
    assert spec.uncertainty is not None
    assert list(spec.test) == ["md"]
    assert spec.test["md"].files == ("md_*.xyz",)  # type: ignore[union-attr]
    assert terminal.says("check", "new.yaml")[0] == 0
    code, _, err = terminal.says("init", "hot.xyz", "--to", "new.yaml")
    assert code == 2
    assert "there already" in err
