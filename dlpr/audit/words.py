"""What the figures are called, what they mean, and what to do about them."""

from __future__ import annotations

import re

from ase.data import chemical_symbols

from dlpr.audit.errors import QUANTITIES
from dlpr.audit.spec import ERRORS, EVERY, HELD_OUT, OF_QUANTITIES, Check, Relative

QUANTITY = {
    "lpr": "LPR",
    "prior_ratio": "prior ratio",
    "uncertainty": "calibrated uncertainty",
    "structure_pr": "PR of structures",
}
_NAMES = {
    "rank_correlation": "rank correlation of low rigidity with large errors (Spearman)",
    "enrichment": "largest 1 % of errors among the least rigid 5 %, times chance",
    "unseen": "environments with a species that the training set lacks",
    "drift": "drift of LPR since the baseline (Kolmogorov-Smirnov distance)",
    "duplicates": "structures that repeat an earlier one",
    "leakage": "structures that are in the training set, too",
    "near_duplicates": "structures that all but repeat an earlier one",
    "near_leakage": "structures that are all but in the training set, too",
    "outliers": "energies that do not fit in",
    "lost": "environments that are gone since the baseline",
    "settings": "settings that have changed since the baseline",
}
_SHORT = {"energy": "energies", "forces": "forces"}
"""What errors are of where no other quantity of their kind is meant."""
UNITS = {
    "uncertainty": "meV/atom",
    "unseen": "environments",
    "duplicates": "structures",
    "leakage": "structures",
    "near_duplicates": "structures",
    "near_leakage": "structures",
    "outliers": "structures",
    "lost": "environments",
    "settings": "settings",
}
MEANING = {
    "lpr": "How firmly the training set pins down the energy of an environment; where it is low, "
    "label structures like those that are flagged.",
    "prior_ratio": "How much more the data say of an environment than the regularizer alone, which "
    "is 1; where it is low, label structures like those that are flagged.",
    "uncertainty": "The error to expect of an environment's energy; where it is large, label "
    "structures like those that are flagged.",
    "structure_pr": "How firmly the training set pins down the energy of a whole structure; where "
    "it is low, label such structures.",
    "rmse": "How far fitted values are from labels, large errors above all; look at the flagged "
    "structures: their labels may be wrong, or the training set lacks their like.",
    "mae": "How far fitted values are from labels on average; look at the flagged structures: "
    "their labels may be wrong, or the training set lacks their like.",
    "error": "How far single fitted values are from labels; look at the flagged structures: their "
    "labels may be wrong, or the training set lacks their like.",
    "rank_correlation": "Whether the least rigid structures have the largest errors, 1: rank for "
    "rank, 0: not at all; where it is low, errors come from labels or from the model's form, and "
    "rigidities do not find them.",
    "enrichment": "How many more of the largest errors are among the least rigid structures than "
    "by chance, which is 1; where it is low, flagged environments are not those of large errors.",
    "cv_rmse": "How far fits that have not seen a training structure are from its label, large "
    "errors above all: what to expect of a new structure of the same kind. Where a group has much "
    "larger ones, label more of it, or look at its labels.",
    "cv_mae": "How far fits that have not seen a training structure are from its label on average: "
    "what to expect of a new structure of the same kind. Where a group has much larger ones, label "
    "more of it, or look at its labels.",
    "unseen": "Nothing in the training set says anything of this species here; label structures "
    "that have it, or take these out.",
    "drift": "How different the distribution of LPR is from that of the baseline, 0: not at all, "
    "1: altogether; look at what the simulation does that it did not do then.",
    "duplicates": "Structures that are there twice count twice; take the copies out of `files`.",
    "leakage": "What the model was fitted to says nothing of its errors; take these structures out "
    "of one of the two sets.",
    "near_duplicates": "The model can hardly tell these structures from others, so their labels "
    "say little that is new; take them out of `files`, or thin out what they come from.",
    "near_leakage": "The model was fitted to structures that it can hardly tell from these, so "
    "their errors are no test; take them out of one of the two sets.",
    "outliers": "Labels far from what the model and all other labels expect are often wrong: a "
    "calculation that did not converge, another functional or unit; compute them again, or leave "
    "them out.",
    "lost": "Data that are gone pin down nothing; put the files back, or correct `files` and "
    "`where`.",
    "settings": "Figures of other settings compare with nothing before; if this was meant, the "
    "next audit is held against this one.",
}

WHY = {
    "new": "It had not been computed before.",
    "continued": "Tasks of it were done already, or are to be done again.",
    "reused": "Nothing that it depends on has changed.",
}
"""By what `dlpr.engine.workspace` says of a stage."""


def why(reason: str) -> str:
    """Why a stage was computed or not, in a sentence."""
    cause, *n_new = re.split(r"; (\d+ of \d+ tasks are new)$", reason)[:2]
    changes = cause.removeprefix("changed: ")
    told = WHY.get(cause, f"Something that it depends on has changed: {changes}.")
    return " ".join([told, *(f"{one}; the others were taken over." for one in n_new)])


def unit_of(check: Check) -> str:
    """Of a check's figure; nothing for shares, rigidities and distances."""
    if check.share_below is not None:
        return ""
    return QUANTITIES[check.quantity][1] if check.of in OF_QUANTITIES else UNITS.get(check.of, "")


def among(group: str | None, species: int | None) -> str:
    """Behind the name of a set: the part of it that is meant, if not all."""
    parts = [group, chemical_symbols[species] if species else None]
    told = ", ".join(one for one in parts if one)
    return f" ({told})" if told else ""


def name_of(check: Check, name: str, group: str | None, species: int | None) -> str:
    """A sentence for what a check is about, in the user's words where there are any."""
    place = name + among(group, species)
    if check.name is not None:
        is_one_of_many = EVERY in (check.set, check.group, check.species) and place
        return f"{check.name}: {place}" if is_one_of_many else check.name
    return f"{place}: {_figure(check)}" if place else _figure(check)


def _figure(check: Check) -> str:
    quantity, unit = QUANTITIES[check.quantity]
    quantity = _SHORT.get(check.quantity, quantity)
    if check.of in (*ERRORS, *HELD_OUT):
        held_out = "held-out " if check.of in HELD_OUT else ""
        return f"{check.of.removeprefix('cv_').upper()} of {held_out}{quantity}"
    if check.of in _NAMES:
        return _NAMES[check.of]
    of, unit = (
        (f"error of {quantity}", unit)
        if check.of == "error"
        else (QUANTITY[check.of], UNITS.get(check.of, ""))
    )
    if check.quantile is not None:
        return f"{of}, {100 * check.quantile:g} % quantile"
    return f"share with {of} below {check.share_below:g} {unit}".strip()


def measure_of(check: Check) -> str:
    """The key of a check's figure in the history."""
    of = f"{check.of}.{check.quantity}" if check.of in OF_QUANTITIES else check.of
    if check.quantile is not None:
        return f"{of}.q{check.quantile:g}"
    return of if check.share_below is None else f"{of}.below{check.share_below:g}"


def expected(check: Check, baselines: list[str]) -> str:
    """What is expected, with the baseline by its name."""
    bound = check.bound
    if not isinstance(bound, Relative):
        return f"{'>=' if check.at_least is not None else '<='} {bound:g}"
    side = "at least" if check.at_least is not None else "at most"
    of = "the baseline" if not baselines else baselines[0]
    if len(baselines) > 1:
        of = f"the median of {len(baselines)} audits since {baselines[0]}"
    return f"{side} {bound.times:g} of {of}"
