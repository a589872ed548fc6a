"""How much firmer tonight's training set pins environments down than the baseline's did.

The ratio of two LPRs at one regularizer and the same references (JCTC23 fig. 7).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import zarr

from dlpr.audit.changes import changes_for
from dlpr.audit.figures import read
from dlpr.audit.history import PastAudit
from dlpr.audit.record import FlaggedEnvironment
from dlpr.audit.tonight import Tonight
from dlpr.audit.worst import Environments
from dlpr.stages.result import STORE

REGULARIZERS = 0.01
"""Relative difference of regularizers up to which they are one: it changes no LPR by more, for
``H + c mu <= c (H + mu)`` where c > 1."""
SAME = 1e-6
"""Relative difference of ``|phi|^2`` up to which an environment is the same."""


def with_ratios(
    environments: Sequence[FlaggedEnvironment], tonight: Tonight, before: PastAudit | None
) -> tuple[list[FlaggedEnvironment], str]:
    """Environments with the ratio of their LPR to that of the baseline, where it has them.

    The same environment is one of equal file, frame, atom and ``mu |phi|^2``, which LPR and prior
    ratio tell.

    Returns
    -------
    environments : list of FlaggedEnvironment
    text : str
        What the ratios are, or why there are none.
    """
    kept = list(environments)
    if before is None:
        return kept, "There is no earlier audit whose LPR could be compared."
    why = _incomparable(tonight, before)
    if why:
        return kept, f"LPR does not compare with that of {before.name}: {why}."
    store = zarr.open_group(str(before.path / STORE), mode="r")
    mu = float(before.record.conventions["factor"]["mu"])
    # what the training set is may change: that is what is compared
    settings = {**tonight.settings, "train": before.record.conventions["settings"]["train"]}
    places: defaultdict[str, list[int]] = defaultdict(list)
    for k, one in enumerate(kept):
        places[one.set].append(k)
    changes = {name: changes_for(name, settings, before.record, "lpr") for name in places}
    why = "; ".join(next((told for told in changes.values() if told), [])[:3])
    n = 0
    for name, numbers in places.items():
        if changes[name] or name not in store:
            continue
        group = store[name]
        assert isinstance(group, zarr.Group)
        past = _past([kept[k] for k in numbers], Environments(name, group, mu), group)
        for k, old in zip(numbers, past, strict=True):
            ratio = _ratio(kept[k], old, float(tonight.conventions["factor"]["mu"]) / mu)
            if ratio is not None:
                kept[k] = kept[k].model_copy(update={"lpr_ratio": ratio})
                n += 1
    if not n and why:
        return kept, f"LPR does not compare with that of {before.name}: {why}."
    if not n:
        return kept, f"{before.name} had none of the environments that are shown."
    return kept, f"LPR over that of the same environment in {before.name}."


def _incomparable(tonight: Tonight, before: PastAudit) -> str:
    now, old = tonight.conventions, before.record.conventions
    mu, other = float(now["factor"]["mu"]), float(old["factor"]["mu"])
    if abs(mu - other) > REGULARIZERS * other:
        return f"the regularizer, scale included, was {other:.3g} and is {mu:.3g}"
    if mu == 0.0:
        return "without a regularizer no prior tells whether environments are the same"
    if now.get("references") != old.get("references"):
        return "the kernel's references are others"
    return ""


def _past(
    wanted: Sequence[FlaggedEnvironment], past: Environments, group: zarr.Group
) -> list[FlaggedEnvironment | None]:
    """The environments of equal file, frame and atom."""
    source, frame = (read(group, f"structure_source_{of}") for of in ("file", "frame"))
    names: list[str] = list(group["structure_source_file"].attrs["names"])  # type: ignore[arg-type]
    number = {name: k for k, name in enumerate(names)}
    places = np.full(len(wanted), -1)
    for k, one in enumerate(wanted):
        own = np.flatnonzero((source == number.get(one.file, -1)) & (frame == one.frame))
        if len(own) and one.atom < past.offset[own[0] + 1] - past.offset[own[0]]:
            places[k] = past.offset[own[0]] + one.atom
    found = past.describe(np.unique(places[places >= 0]), None)
    return [found.get(place) for place in places.tolist()]


def _ratio(now: FlaggedEnvironment, old: FlaggedEnvironment | None, scale: float) -> float | None:
    """Of LPR; None where there was none, or the environment is another."""
    if old is None or not (now.lpr > 0 and old.lpr > 0) or now.species != old.species:
        return None
    assert now.prior_ratio is not None  # there is a regularizer
    assert old.prior_ratio is not None
    prior, before = now.lpr / now.prior_ratio, old.lpr / old.prior_ratio  # mu / |phi|^2
    if abs(prior - scale * before) > SAME * prior:
        return None
    return now.lpr / old.lpr
