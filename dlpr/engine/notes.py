"""What a reader of a result should know about its input."""

from __future__ import annotations

from dlpr.core.kernel import CUT
from dlpr.engine.pipeline import Pipeline
from dlpr.stages.structures import open_structures


def notes(steps: Pipeline) -> list[str]:
    """What a reader of the result should know about its input."""
    notes = []
    if steps.job.model.kernel is not None:
        facts = steps.references().receipts()[-1].facts["references"]
        notes += [
            f"kernel of {symbol}: {own['count']} references, rank {own['rank']} of K_MM "
            f"({own['cut']} eigenvalues below {CUT:.0e} of the largest are cut)"
            for symbol, own in facts.items()
        ]
    for name in steps.set_names():
        structures = steps.ingest(name)
        store = open_structures(structures)
        if store.n_repeats:
            notes.append(
                f"{name}: {store.n_repeats} of {store.n_structures} structures repeat an "
                f"earlier one exactly"
            )
        labelled = sum(r.facts["labels"]["energy"] for r in structures.receipts())
        if name == "train" and 0 < labelled < store.n_structures:
            notes.append(
                f"train: {store.n_structures - labelled} of {store.n_structures} structures "
                f"have no energy: they are no rows of the Hessian's energies"
            )
    return notes
