"""What a reader of a result should know about its input."""

from __future__ import annotations

from dlpr.core.kernel import CUT
from dlpr.engine.pipeline import Pipeline
from dlpr.stages.structures import StructureStore, open_structures
from dlpr.store.folder import StageFolder


def notes(steps: Pipeline) -> list[str]:
    """References that were cut, structures that repeat, labels and weights that lack."""
    found = []
    if steps.job.model.kernel is not None:
        facts = steps.references().receipts()[-1].facts["references"]
        found += [
            f"kernel of {symbol}: {own['count']} references, rank {own['rank']} of K_MM "
            f"({own['cut']} eigenvalues below {CUT:.0e} of the largest are cut)"
            for symbol, own in facts.items()
        ]
    for name in steps.set_names():
        structures = steps.ingest(name)
        store = open_structures(structures)
        if store.n_repeats:
            found.append(
                f"{name}: {store.n_repeats} of {store.n_structures} structures repeat an "
                f"earlier one exactly"
            )
        if name == "train":
            found += _of_training_set(structures, store)
    if steps.job.loss.preset is not None:
        found.append(f"loss: {steps.loss().lambdas}")
    return found


def _of_training_set(structures: StageFolder, store: StructureStore) -> list[str]:
    found, facts = [], [receipt.facts for receipt in structures.receipts()]
    labelled = sum(one["labels"]["energy"] for one in facts)
    if 0 < labelled < store.n_structures:
        found.append(
            f"train: {store.n_structures - labelled} of {store.n_structures} structures "
            f"have no energy: they are no rows of the Hessian's energies"
        )
    if store.is_weighted:
        none, zero = (sum(one["weights"][name] for one in facts) for name in ("none", "zero"))
        found.append(
            f"train: of {store.n_structures} structures, {none} have no "
            f"{structures.settings['weight']}, which counts as 1, and {zero} have 0: they are no "
            f"rows of the Hessian"
        )
    return found
