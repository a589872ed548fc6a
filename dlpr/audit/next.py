"""What to label next: picks of the pool for a record, and as a file of structures."""

from __future__ import annotations

from pathlib import Path

from dlpr.audit.record import AuditRecord, NextRecord, PickRecord
from dlpr.audit.spec import POOL, AuditSpec
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.proposal import proposed
from dlpr.exports import extxyz, opened
from dlpr.exports.structures import SetStructures
from dlpr.handles import Result
from dlpr.stages.proposal import open_picks
from dlpr.stages.structures import open_structures

NEXT = "next.extxyz"


def next_record(spec: AuditSpec, steps: Pipeline) -> NextRecord | None:
    """Structures of the pool to label next, by what they do for the least rigid of the test sets.

    Parameters
    ----------
    spec : AuditSpec
    steps : Pipeline
        Of the audit's job.

    Returns
    -------
    NextRecord or None
        None where the audit wants no picks, or has no pool.
    """
    wanted = spec.picks
    if wanted is None:
        return None
    targets, sets = wanted.targets, list(wanted.targets.sets or spec.test)
    folder = proposed(
        *(steps, POOL, sets),
        count=wanted.count,
        objective=wanted.objective,
        n_targets=targets.count,
        of=targets.of,
    )
    found = open_picks(folder)
    structures, curve = found.pop("greedy")
    store = open_structures(steps.ingest(POOL))
    source, files = store.sources()
    frame = store.over_structures("source_frame")
    facts = folder.facts(0)
    return NextRecord(
        objective=wanted.objective,
        before=float(curve[0]),
        picks=[
            PickRecord(
                file=files[source[one]],
                frame=int(frame[one]),
                group=store.group_names[store.group[one]],
                objective=value,
            )
            for one, value in zip(structures.tolist(), curve[1:].tolist(), strict=True)
        ],
        baselines={rule: values[1:].tolist() for rule, (_, values) in found.items()},
        of=targets.of,
        sets=sets,
        n_targets=facts["n_targets"],
        n_candidates=facts["n_candidates"],
    )


def write_next(record: AuditRecord, result: Result, folder: Path) -> None:
    """Write the picks of an audit to ``next.extxyz``, in the order in which to label them.

    Notes
    -----
    Whole structures in their source's order of atoms, with what `dlpr.export` says of them before
    any label: columns ``lpr`` and ``prior_ratio``; ``structure_pr``, ``source_file``,
    ``source_frame`` and ``group`` in the comment. It also has ``order``, from 1, and the objective
    by its name, with this label and those before. One structure is held at a time.
    """
    if record.next is None or not record.next.picks:
        return
    pool = SetStructures(result, POOL)
    with opened(folder / NEXT) as file:
        for order, pick in enumerate(record.next.picks, 1):
            atoms = pool.frame(pool.find(pick.file, pick.frame))
            atoms.info |= {"order": order, record.next.objective: pick.objective}
            for text in extxyz(atoms):
                file.write(text.encode())
