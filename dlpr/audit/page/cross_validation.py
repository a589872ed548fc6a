"""What an audit's page shows of the training set's cross-validation."""

from __future__ import annotations

from dlpr.audit.page.diagrams import MARGIN, WIDTH, Strips, axis_of, strips
from dlpr.audit.page.section import Section
from dlpr.audit.record import AuditRecord, CrossValidationRecord, ErrorRecord

MOST_ROWS = 30
"""Groups and folds that are drawn: of more, those with the largest errors."""
_HOW = {
    "structure": "The training set was parted at random into {n} folds",
    "stratified": "The training set was parted into {n} folds, over which each group is spread "
    "evenly",
    "group": "Each of the {n} groups of the training set was left out in turn",
}
_CAPTIONS = {
    "structure": "How far the model is from labels that it has not seen. Where a bar lies to the "
    "right of the others, more structures of that group are needed, or its labels are wrong; where "
    "folds differ much, the training set is small for what it should teach.",
    "group": "How far a model that has seen nothing of a group is from its labels. What lies to "
    "the right cannot be learnt from the other groups: it needs structures of its own.",
}
_CAPTIONS["stratified"] = _CAPTIONS["structure"]


def section(record: AuditRecord) -> list[Section]:
    """Errors of structures that a fit has not seen; nothing where there is no cross-validation."""
    found = record.cross_validation
    if found is None:
        return []
    how = _HOW[found.by].format(n=len(found.folds))
    shows = {"found": found, "how": how, "diagrams": _diagrams(found), "spread": _spread(found)}
    return [Section("cross_validation", "Cross-validation", shows)]


def _diagrams(found: CrossValidationRecord) -> list[Strips]:
    """Of the first quantity of each kind, energies and forces, by group and fold."""
    first = {one.quantity.split()[0]: one for one in reversed(found.errors)}
    drawn = []
    for kind in sorted(first):
        quantity = first[kind].quantity
        of_groups = [(one.group or "all", one) for one in found.errors]
        of_folds = [(f"fold {fold.name}", one) for fold in found.folds for one in fold.errors]
        labelled = of_groups if found.by == "group" else [*of_groups, *of_folds]
        own = [(label, one) for label, one in labelled if one.quantity == quantity]
        rows = [own[0], *sorted(own[1:], key=lambda row: -row[1].rmse)[: MOST_ROWS - 1]]
        title = f"held-out absolute error, {quantity} ({first[kind].unit})"
        drawn.append(_strips(title, _CAPTIONS[found.by], rows))
    return drawn


def _strips(title: str, caption: str, rows: list[tuple[str, ErrorRecord]]) -> Strips:
    values = [
        value
        for _, one in rows
        for level, value in zip(one.percentiles.levels, one.percentiles.values, strict=False)
        if 0.01 <= level <= 0.99
    ]
    axis = axis_of(values, True, MARGIN, WIDTH - MARGIN)
    return strips(
        title, caption, axis, [(label, f"{one.n:,}", one.percentiles, ()) for label, one in rows]
    )


def _spread(found: CrossValidationRecord) -> dict[str, tuple[float, float]]:
    """Mean and deviation over folds of the RMSE of each quantity."""
    return {one.quantity: (one.rmse_mean, one.rmse_std) for one in found.spread}
