"""One audit, from the lease of its history to the folder that is published."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import yaml

from dlpr.api import finished, pipeline
from dlpr.audit.checks import Baselines, Judge
from dlpr.audit.history import DISTRIBUTIONS, RECORD, SPEC, History
from dlpr.audit.ratios import with_ratios
from dlpr.audit.record import AuditRecord, Verdict, WorkRecord
from dlpr.audit.series import series_of
from dlpr.audit.spec import AuditSpec
from dlpr.audit.tonight import look
from dlpr.audit.words import why
from dlpr.engine.events import Event, Listener
from dlpr.engine.output import without_secrets
from dlpr.engine.pipeline import Pipeline
from dlpr.store.files import write_json


class WorkLog:
    """A listener that remembers, of every stage, what was computed and why."""

    def __init__(self) -> None:
        self._begun = 0.0
        self._found: dict[str, WorkRecord] = {}

    def __call__(self, event: Event) -> None:
        if event.kind == "stage":
            self._begun = time.perf_counter()
            before = self._found.get(event.stage)  # of a stage that was mended
            self._found[event.stage] = WorkRecord(
                stage=event.stage,
                n_tasks=event.n_tasks,
                n_computed=before.n_computed if before else 0,
                reason=before.reason if before and before.n_computed else why(event.text),
                seconds=before.seconds if before else 0.0,
            )
        elif event.stage in self._found and event.kind in ("task", "done"):
            one, now = self._found[event.stage], time.perf_counter()
            more = {
                "n_computed": one.n_computed + (event.kind == "task"),
                "seconds": one.seconds + now - self._begun,
            }
            self._begun = now
            self._found[event.stage] = one.model_copy(update=more)

    def records(self) -> list[WorkRecord]:
        """All stages, in the order in which they were begun."""
        return list(self._found.values())


def run_audit(
    spec: AuditSpec, *, listeners: tuple[Listener, ...] = (), **options: Any
) -> AuditRecord:
    """Make an audit: compute what is new, judge it, and publish a folder in the history.

    Parameters
    ----------
    spec : AuditSpec
    listeners : tuple of callable
        Told of every `dlpr.engine.events.Event`.
    **options
        ``client``, ``cluster`` of `dlpr.api.pipeline`.

    Returns
    -------
    AuditRecord
        What ``audit.json`` says.

    Raises
    ------
    OwnerError
        If another audit writes into the history and ``busy`` is "refuse".
    DlprError
        If the audit cannot be made: the history is then as it was, and the next one continues.
    """
    history = History(spec.folder)
    with history.owned(spec.busy):
        baselines = {of: history.baseline(of) for of in spec.baselines()}
        name, begun = history.new_name(), _now()
        work = WorkLog()
        with pipeline(spec.job(), listeners=(work, *listeners), **options) as steps:
            return steps.mended(lambda: _made(spec, steps, history, baselines, work, name, begun))


def _made(
    spec: AuditSpec,
    steps: Pipeline,
    history: History,
    baselines: Baselines,
    work: WorkLog,
    name: str,
    begun: str,
) -> AuditRecord:
    """Finish the job, look at its result, and publish what there is to say."""
    from dlpr.audit.flagged import write_flagged
    from dlpr.audit.next import next_record, write_next
    from dlpr.audit.page import write_page
    from dlpr.audit.sample import sampled, write_sample

    found = next_record(spec, steps)
    result = finished(steps)
    before = next(iter(baselines[spec.baseline][::-1]), None)
    tonight = look(spec, steps, result, before)
    judge = Judge(tonight, baselines)
    checks = judge.records()
    judge.flag_worst()
    flagged = judge.flagged.environments
    sample = sampled(steps, tonight) if spec.sample.count else None
    shown = [*flagged, *(sample.environments if sample else [])]
    known, ratios = with_ratios(shown, tonight, before)
    if sample is not None:
        sample = sample.model_copy(update={"environments": known[len(flagged) :]})
    record = AuditRecord(
        name=name,
        title=spec.title,
        begun=begun,
        ended=_now(),
        verdict=_worst([check.verdict for check in checks]),
        baseline=before.name if before else None,
        held_against=sorted({one.name for audits in baselines.values() for one in audits}),
        checks=checks,
        sets=list(tonight.view.sets.values()),
        flagged=known[: len(flagged)],
        series=series_of(name, tonight, checks, history.newest()),
        work=work.records(),
        next=found,
        sample=sample,
        ratios=ratios,
        cross_validation=tonight.view.cross_validation,
        conventions=tonight.conventions,
    )
    with history.publishing(name, tonight.result) as folder:
        write_json(folder / RECORD, record.model_dump(mode="json"))
        tonight.view.distributions.save(folder / DISTRIBUTIONS)
        (folder / SPEC).write_text(
            yaml.safe_dump(without_secrets(spec.resolved()), sort_keys=False)
        )
        write_flagged(record, result, folder)
        write_next(record, result, folder)
        if sample is not None:
            write_sample(sample, spec.title, result, folder)
        write_page(record, folder)
    return record


def _worst(verdicts: list[Verdict]) -> Verdict:
    """That of a whole audit."""
    order: tuple[Verdict, ...] = ("pass", "warn", "fail")
    return max(verdicts, key=order.index, default="pass")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
