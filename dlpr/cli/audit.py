"""Commands of nightly audits."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from dlpr.errors import DlprError, StoppedError

if TYPE_CHECKING:
    from dlpr.audit.record import AuditRecord

logger = logging.getLogger(__name__)
MADE_NOT = 2
"""Exit code where an audit could not be made; 1: a check failed."""

_FILE = click.argument("audit", type=click.Path(path_type=Path), default="AUDIT.yaml")
_OF = click.option(
    "--audit",
    "-a",
    "audit",
    type=click.Path(path_type=Path),
    default="AUDIT.yaml",
    show_default=True,
    help="The audit's file, or its history.",
)


@click.group(epilog="Begin with `dlpr audit init train.xyz md.xyz`, then `dlpr audit run`.")
def audit() -> None:
    """What is run every night: is the training set still pinning down what simulations visit?"""


@audit.command(epilog="Example:  dlpr audit run AUDIT.yaml --mail | mail -s audit you@site")
@_FILE
@click.option("--cluster", "-c", help="A running cluster, in place of the file's.")
@click.option("--mail", is_flag=True, help="Print one paragraph of plain text, and nothing else.")
def run(audit: Path, cluster: str | None, mail: bool) -> None:
    """Make the audit of the file AUDIT, and publish it in its history.

    Only what is new or has changed is computed. Exit code 0: all checks hold, 1: a check failed,
    2: the audit could not be made (75: stopped as asked; run again to continue).
    """
    from dlpr.audit.night import run_audit
    from dlpr.audit.spec import AuditSpec
    from dlpr.audit.tables import paragraph
    from dlpr.cli.report import ProgressLines
    from dlpr.engine.stopping import soft_stops

    console = Console(quiet=mail)
    with _told(audit, mail):
        spec = AuditSpec.load(audit)
        with soft_stops(), ProgressLines(console) as lines:
            record = run_audit(spec, listeners=(lines,), cluster=cluster)
        if mail:
            click.echo(paragraph(record, spec.folder))
        else:
            _show(console, record, spec.folder)
    sys.exit(int(record.verdict == "fail"))


@contextmanager
def _told(audit: Path, mail: bool) -> Iterator[None]:
    """Leave with `MADE_NOT` where an audit cannot be made, be it by a fault of the program: 1 would
    say that a check failed."""
    try:
        yield
    except (StoppedError, BrokenPipeError):
        raise
    except DlprError as error:
        why = str(error)
        click.echo(f"Error: {error}", err=True)
    except Exception as error:
        why = f"This is a fault of dlpr: {type(error).__name__}: {error}"
        logger.exception("dlpr audit run")
    else:
        return
    if mail:
        click.echo(f"{audit}: the audit could not be made. {' '.join(why.split())}")
    sys.exit(MADE_NOT)


@audit.command(epilog="Example:  dlpr audit init train.extxyz md/run*.extxyz --to AUDIT.yaml")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    default="AUDIT.yaml",
    show_default=True,
    help="The file.",
)
def init(files: tuple[str, ...], to: Path) -> None:
    """Write a commented example from FILES: the training set first, then what is visited."""
    from dlpr.audit.draft import check_absent, draft
    from dlpr.store.files import atomic_file

    target = to.absolute()
    check_absent(target)
    text = draft(files, target.parent)
    with atomic_file(target) as file:
        file.write(text.encode())
    click.echo(f"{target}: look through it, then `dlpr audit run {to}`")


@audit.command(epilog="Example:  dlpr audit check AUDIT.yaml")
@_FILE
def check(audit: Path) -> None:
    """Say whether AUDIT can be used and its structure files are there; computes nothing."""
    from dlpr.audit.history import History
    from dlpr.audit.spec import POOL, AuditSpec
    from dlpr.engine.check import check_job
    from dlpr.job import SetSpec
    from dlpr.structures.files import expand

    spec = AuditSpec.load(audit)
    job = spec.job()
    check_job(job)
    sets = {"train": spec.train, **spec.test, POOL: spec.pool}
    for name, one in sets.items():
        if isinstance(one, SetSpec):
            click.echo(f"{name}: {len(expand(one.files, spec.base))} files")
    baselines = [audit.name for audit in History(spec.folder).baseline(spec.baseline)]
    click.echo(
        f"{len(spec.checks)} checks against {', '.join(baselines) or 'no earlier audit yet'}"
    )


@audit.command("list", epilog="Example:  dlpr audit list --audit AUDIT.yaml")
@_OF
def list_(audit: Path) -> None:
    """List the audits of a history, the newest last."""
    from dlpr.audit.history import open_history
    from dlpr.audit.tables import list_table
    from dlpr.cli.report import show as show_table

    show_table(Console(), list_table(open_history(audit).audits()))


@audit.command(epilog="Example:  dlpr audit show 2026-11-30T02-00-05Z --verify")
@click.argument("name", default="last")
@_OF
@click.option("--verify", is_flag=True, help="Read all its files and compare their checksums.")
def show(name: str, audit: Path, verify: bool) -> None:
    """Print what the audit NAME says; by default the newest."""
    from dlpr.audit.history import open_history

    found = open_history(audit).audit(name)
    if verify:
        found.verify()
    _show(Console(), found.record, found.path.parent)


@audit.command(epilog="Example:  dlpr audit compare 2026-11-29T02-00-03Z last")
@click.argument("before")
@click.argument("now", default="last")
@_OF
def compare(before: str, now: str, audit: Path) -> None:
    """Say what is different in the audit NOW from what it was in BEFORE."""
    from dlpr.audit.history import open_history
    from dlpr.audit.tables import comparison
    from dlpr.cli.report import show as show_table

    history = open_history(audit)
    table, notes = comparison(history.audit(before), history.audit(now))
    console = Console()
    show_table(console, table)
    for line in notes:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


@audit.command(epilog="Example:  dlpr audit prune --keep 30")
@click.option("--keep", type=int, required=True, help="How many of the newest audits stay.")
@_OF
def prune(keep: int, audit: Path) -> None:
    """Remove old audits, and the stages that no result needs.

    The last audit without a failure, and what the newest was held against, stay in any case.
    """
    from dlpr.audit.history import open_history
    from dlpr.units import format_bytes

    removed, nbytes = open_history(audit).prune(keep)
    for name in removed:
        click.echo(f"removed {name}")
    click.echo(f"{len(removed)} audits removed, {format_bytes(nbytes)} of stages freed")


def _show(console: Console, record: AuditRecord, folder: Path) -> None:
    from dlpr.audit.history import PAGE
    from dlpr.audit.tables import check_table, set_table, work_table
    from dlpr.cli.report import show as show_table

    for table in (set_table(record), work_table(record), check_table(record)):
        show_table(console, table)
    for one in record.checks:
        if one.verdict != "pass":
            line = f"{one.verdict}: {one.name}. {one.meaning}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    path = str(folder / record.name / PAGE)
    console.print(path, highlight=False, markup=False, soft_wrap=True)
