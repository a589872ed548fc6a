"""What is expected against what was found, and the environments behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from dlpr.audit.changes import changes_for, lost_environments, setting_changes
from dlpr.audit.cross_validation import worst_structures
from dlpr.audit.culprits import Flagged, culprits, least_rigid
from dlpr.audit.history import PastAudit
from dlpr.audit.near import WITHIN, Descriptors, near_repeats
from dlpr.audit.outliers import BEYOND, outliers
from dlpr.audit.record import CheckRecord, Verdict
from dlpr.audit.repeats import repeats
from dlpr.audit.spec import EVERY, HELD_OUT, NEAR, OF_DATA, REPEATS, Check, LastOnes, Relative
from dlpr.audit.tonight import Target, Tonight, View
from dlpr.audit.words import MEANING, expected, measure_of, name_of, unit_of
from dlpr.core.drift import drift
from dlpr.job import SetSpec

Baselines = Mapping[str | LastOnes, list[PastAudit]]


@dataclass(frozen=True)
class Finding:
    """What there is, before it is judged."""

    value: float | None
    before: float | None = None
    text: str = ""
    """What to know about tonight"""
    is_comparable: bool = True
    """False: there is no baseline that it could be held against"""
    baselines: list[str] = field(default_factory=list)
    structures: NDArray[np.int64] | None = None
    """What it is about, where it names structures"""


class Judge:
    """Judges the checks of an audit.

    Parameters
    ----------
    tonight : Tonight
    baselines : mapping
        Audits that checks are held against, by what the spec calls them.
    """

    def __init__(self, tonight: Tonight, baselines: Baselines) -> None:
        self._tonight, self._baselines = tonight, baselines
        self._spec, self._view = tonight.spec, tonight.view
        self.flagged = Flagged(tonight)
        self._views: dict[str, View] = {}

    def records(self) -> list[CheckRecord]:
        """All checks, one by one, with the environments behind those that do not hold.

        Of what is shown at most, each of these has an equal part; failures come first.
        """
        targets = [one for check in self._spec.checks for one in self._targets(check)]
        findings = [self._find(one) for one in targets]
        records = [_judged(*one) for one in zip(targets, findings, strict=True)]
        failed, warned = (
            [k for k, one in enumerate(records) if one.verdict == verdict]
            for verdict in ("fail", "warn")
        )
        flag, n_open = self._spec.flag, len(failed) + len(warned)
        for k in (*failed, *warned):
            n = min(flag.per_check, max(1, flag.count // n_open))
            places = culprits(self._tonight, targets[k], n, findings[k].structures)
            flagged = self.flagged.add(targets[k].set, places)
            records[k] = records[k].model_copy(update={"flagged": flagged})
        return records

    def flag_worst(self) -> None:
        """Fill what room is left with the least rigid environments, each test set alike."""
        count = self._spec.flag.count
        for k, name in enumerate(self._spec.test):
            share = -(-self.flagged.room // (len(self._spec.test) - k))
            worst = self._tonight.environments[name].worst(count if share else 0, least_rigid)
            self.flagged.add(name, self.flagged.new(name, worst)[:share])

    def _targets(self, check: Check) -> Iterator[Target]:
        if check.of == "settings":
            yield Target(check, "")
            return
        for name in self._sets(check) if check.set == EVERY else [check.set]:
            groups: list[str | None] = [check.group]
            if check.group == EVERY:
                groups = list(self._tonight.structures[name].group_names)
            for group in groups:
                for species in self._species(check, name, group):
                    yield Target(check, name, group, species)

    def _sets(self, check: Check) -> list[str]:
        """What "*" stands for: candidates of a pool are there to be of low rigidity."""
        if check.of in HELD_OUT:
            return ["train"]
        if check.of in ("leakage", "near_leakage"):
            return [name for name, one in self._spec.test.items() if isinstance(one, SetSpec)]
        if check.of == "outliers":
            return [name for name in self._spec.test if self._view.sets[name].errors]
        return list(self._tonight.structures) if check.of in OF_DATA else list(self._spec.test)

    def _species(self, check: Check, name: str, group: str | None) -> list[int | None]:
        if check.species == EVERY:
            return [*self._view.distributions.species(name, "lpr", group)]
        return [None if check.species is None else atomic_numbers[check.species]]

    def _find(self, target: Target) -> Finding:
        check = target.check
        if check.of in REPEATS:
            return self._repeats(target)
        if check.of == "outliers":
            return self._outliers(target)
        if not check.needs_baseline:
            value = self._view.figure(target)
            text = "There is nothing to measure." if value is None else self._worst_of(target)
            return Finding(value, text=text)
        of = check.bound.of if isinstance(check.bound, Relative) else None
        audits = self._baselines[of or self._spec.baseline]
        if check.of == "settings":
            return self._settings(audits)
        audits, why = self._comparable(audits, target.set, check.of)
        if not audits:
            return Finding(self._view.figure(target), text=why, is_comparable=False)
        if check.of == "lost":
            return self._lost(target, audits[-1])
        return self._compared(target, audits)

    def _worst_of(self, target: Target) -> str:
        """The structures behind held-out errors, which have no environments to be shown."""
        if target.check.of not in HELD_OUT:
            return ""
        return worst_structures(self._tonight.cross_validation, target.check, target.group)

    def _comparable(
        self, audits: list[PastAudit], name: str, of: str
    ) -> tuple[list[PastAudit], str]:
        """The audits whose figures of a set mean the same as tonight's; why there are none."""
        if not audits:
            return [], "There is no earlier audit to hold it against."
        known = [one for one in audits if any(own.name == name for own in one.record.sets)]
        if not known:
            return [], f"{audits[-1].name} had no set {name}: there is nothing to hold it against."
        settings = self._tonight.settings
        why = [changes_for(name, settings, one.record, of) for one in known]
        found = [one for one, changes in zip(known, why, strict=True) if not changes]
        return found, f"Not comparable with {known[-1].name}: {'; '.join(why[-1][:3])}."

    def _compared(self, target: Target, audits: list[PastAudit]) -> Finding:
        """A distance from the baseline, or a figure beside the median of theirs."""
        names = [audit.name for audit in audits]
        if target.check.of == "drift":
            return self._drift(target, audits)
        own = [self._view_of(audit).figure(target) for audit in audits]
        values = [value for value in own if value is not None]
        value = self._view.figure(target)
        if not values:
            text = f"{names[-1]} had nothing like it to hold it against."
            return Finding(value, text=text, is_comparable=False, baselines=names)
        return Finding(value, float(np.median(values)), baselines=names)

    def _drift(self, target: Target, audits: list[PastAudit]) -> Finding:
        names = [audit.name for audit in audits]
        place = (target.set, "lpr", target.group, target.species)
        now = self._view.distributions.of(*place)
        before = self._view_of(audits[0]).distributions.of(*place)
        for audit in audits[1:]:
            before.merge(self._view_of(audit).distributions.of(*place))
        if not (now.n_finite and before.n_finite):
            text = "One of the two has no environments to compare."
            return Finding(None, text=text, is_comparable=False, baselines=names)
        found = drift(before, now)
        text = (
            f"The median is {10**found.shift:.3g} times that of the baseline; values lie "
            f"{found.wasserstein:.3g} decades apart on average."
        )
        return Finding(found.ks, text=text, baselines=names)

    def _lost(self, target: Target, before: PastAudit) -> Finding:
        view = self._view_of(before)
        lost = lost_environments(self._view.sets[target.set], view.sets[target.set])
        told = ", ".join(f"{n} of {of} of group {group}" for group, (n, of) in lost.items())
        total = float(sum(n for n, _ in lost.values()))
        return Finding(total, text=f"Here: {told}." if lost else "", baselines=[before.name])

    def _settings(self, audits: list[PastAudit]) -> Finding:
        if not audits:
            text = "There is no earlier audit to hold it against."
            return Finding(None, text=text, is_comparable=False)
        changes = setting_changes(self._tonight.settings, audits[-1].record)
        told = f"Here: {'; '.join(changes[:4])}." if changes else ""
        return Finding(float(len(changes)), text=told, baselines=[audits[-1].name])

    def _view_of(self, audit: PastAudit) -> View:
        if audit.name not in self._views:
            self._views[audit.name] = View.of(audit)
        return self._views[audit.name]

    def _repeats(self, target: Target) -> Finding:
        check, names = target.check, [target.set]
        if check.of in ("leakage", "near_leakage"):
            names.append("train")
        stores = [self._tonight.structures[name] for name in names]
        if check.of not in NEAR:
            found = repeats(*stores)
            return _named(found.structures, found.text)
        results, rows = self._tonight.results, self._tonight.rows
        points = [
            Descriptors.of(store, results.get(name), rows)
            for name, store in zip(names, stores, strict=True)
        ]
        found = near_repeats(*points, within=check.within or WITHIN)
        return _named(found.structures, found.text)

    def _outliers(self, target: Target) -> Finding:
        name, check = target.set, target.check
        if not self._view.sets[name].errors:
            return Finding(None, text="There is nothing to measure.")
        found = outliers(
            self._tonight.results[name],
            self._tonight.structures[name],
            is_fitted=self._spec.test.get(name) == "train",
            beyond=check.beyond or BEYOND,
            of_group=target.group,
        )
        return _named(found.structures, found.text)


def _named(structures: NDArray[np.int64], text: str) -> Finding:
    """So many structures, and which."""
    n = len(structures)
    return Finding(float(n), text=f"Here: {text}." if n else "", structures=structures)


def _judged(target: Target, found: Finding) -> CheckRecord:
    check, value = target.check, found.value
    bound = _bound(check, found)
    return CheckRecord(
        name=name_of(check, target.set, target.group, target.species),
        set=target.set,
        group=target.group,
        species=target.species,
        measure=measure_of(check),
        unit=unit_of(check),
        expected=expected(check, found.baselines),
        found=None if value is None or not np.isfinite(value) else value,
        bound=bound,
        baseline=found.before,
        verdict=_verdict(check, found, bound),
        meaning=" ".join([MEANING[check.of], found.text]).strip(),
    )


def _bound(check: Check, found: Finding) -> float | None:
    """What the figure is held against; None where nothing is comparable."""
    if not found.is_comparable:
        return None
    if not isinstance(check.bound, Relative):
        return check.bound
    assert found.before is not None
    return check.bound.times * found.before


def _verdict(check: Check, found: Finding, bound: float | None) -> Verdict:
    if bound is None:
        return "pass"
    if found.value is None:
        return check.on_failure
    holds = found.value >= bound if check.at_least is not None else found.value <= bound
    return "pass" if holds else check.on_failure
