"""A record of an audit with all that is hard to show, and the page that is made of it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.build import bulk

from dlpr.audit.flagged import FLAGGED
from dlpr.audit.page import write_page
from dlpr.audit.record import (
    AuditRecord,
    CheckRecord,
    CrossValidationRecord,
    ErrorRecord,
    FlaggedEnvironment,
    FoldRecord,
    GroupRecord,
    NextRecord,
    OutlineRecord,
    PickRecord,
    Quantiles,
    SampleRecord,
    SeriesRecord,
    SetRecord,
    SpreadRecord,
    WorkRecord,
)
from dlpr.audit.record_validation import (
    EnergyVolumeRecord,
    EnrichmentRecord,
    RankRecord,
    RigidityErrorRecord,
    TrajectoryRecord,
    ValidationRecord,
)

HOSTILE = (
    """<script>alert("1")</script> '&amp; $\\alpha$ {{ 7 * 7 }} <img src=x onerror=alert(2)>"""
)
LEVELS = [0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0]
INF = float("inf")


def quantiles(middle: float) -> Quantiles:
    height = [0.05, 0.3, 1.0, 0.6, 0.05]
    return Quantiles(
        levels=LEVELS,
        values=[middle * 10.0**k for k in range(-4, 5)],
        outline=OutlineRecord(low=middle * 1e-3, high=middle * 1e3, height=height),
    )


NOTHING = Quantiles(levels=LEVELS, values=[])


def group(name: str | None, species: int | None, middle: float) -> GroupRecord:
    return GroupRecord(
        group=name,
        species=species,
        n_environments=1234,
        n_inf=1,
        n_unseen=2,
        lpr=quantiles(middle),
        prior_ratio=quantiles(1e3 * middle),
        uncertainty=Quantiles(levels=LEVELS[:5], values=[1.0, 2.0, 3.0, 4.0, 5.0]),
    )


def error(name: str | None) -> ErrorRecord:
    return ErrorRecord(
        quantity="energy per atom",
        unit="meV/atom",
        group=name,
        n=12,
        mae=3.25,
        rmse=INF,
        bias=-0.5,
        percentiles=quantiles(2.0),
    )


def rank(name: str | None, rho: float | None, n: int = 100) -> RankRecord:
    shares = [(0.01, 1), (0.05, 5)]
    enrichments = [
        EnrichmentRecord(share=share, n_worst=k, n_least=5, n_found=1, factor=n / (5 * k))
        for share, k in shares
    ]
    return RankRecord(group=name, n=n, rank_correlation=rho, enrichments=enrichments)


def validation(n_frames: int = 80) -> ValidationRecord:
    """Of structures whose errors go with their rigidity."""
    pr = np.logspace(-6, 2, 50).tolist()
    error = [0.0, *(3.0 / np.sqrt(pr[1:])).tolist()]
    lpr: list[float | None] = [1e-3, 0.0, None, *np.logspace(-1, -4, n_frames - 3).tolist()]
    trajectory = TrajectoryRecord(
        file=f"/data/{HOSTILE}/run.xyz",
        n_frames=3 * n_frames,
        frames_per_point=3,
        frames=list(range(0, 3 * n_frames, 3)),
        minimum=lpr,
        low=[v and 3 * v for v in lpr],
        median=[v and 10 * v for v in lpr],
        error=[None, 0.0, *([2.0, 3.0] * n_frames)[: n_frames - 2]],
    )
    return ValidationRecord(
        rigidity_error=RigidityErrorRecord(
            unit="meV/atom",
            groups=[rank(None, 0.7), rank(HOSTILE, None)],
            rigidity=pr,
            error=error,
            bin_rigidity=[1e-5, 1e-2, 10.0],
            bin_error=[900.0, 30.0, 1.0],
        ),
        trajectories=[trajectory],
        n_trajectories=4,
        energy_volume=EnergyVolumeRecord(
            n=700,
            is_labelled=True,
            volume=np.linspace(10, 30, 50).tolist(),
            energy=np.square(np.linspace(-1, 1, 50)).tolist(),
            rigidity=[0.0, *pr[1:]],
        ),
    )


def held_out() -> CrossValidationRecord:
    """Two folds, the second without a label."""
    spread = SpreadRecord(
        quantity="energy per atom",
        unit="meV/atom",
        n_folds=2,
        mae_mean=3.0,
        mae_std=0.5,
        rmse_mean=4.25,
        rmse_std=0.75,
    )
    return CrossValidationRecord(
        by="stratified",
        seed=0,
        folds=[
            FoldRecord(name="0", n_structures=20, errors=[error(None)]),
            FoldRecord(name="1", n_structures=20, errors=[]),
        ],
        errors=[error(None), error(HOSTILE)],
        spread=[spread],
    )


def one_set(name: str, role: Any, groups: list[GroupRecord], **more: Any) -> SetRecord:
    counts = {"n_files": 3, "n_new_files": 1, "n_changed_files": 0, "n_structures": 40}
    return SetRecord(name=name, role=role, groups=groups, n_environments=1234, **counts, **more)


def flagged(number: int) -> FlaggedEnvironment:
    return FlaggedEnvironment(
        set="film",
        file=f"/data/{HOSTILE}/film-{number}.extxyz",
        frame=number,
        atom=3,
        species=14,
        group=HOSTILE,
        lpr=(0.0, 1e-7, INF)[number % 3],
        prior_ratio=1.5,
        uncertainty=(None, 250.0)[number % 2],
        flags=["central_species", "something_new"],
    )


def check(name: str, verdict: Any, **more: Any) -> CheckRecord:
    given = {
        "set": "film",
        "measure": "lpr.q0.05",
        "expected": ">= 0.1",
        "found": 0.01,
        "bound": 0.1,
    }
    meaning = "What it says; look at `files`."
    return CheckRecord(name=name, verdict=verdict, meaning=meaning, **{**given, **more})


def series(measure: str, values: list[float | None], is_logarithmic: bool) -> SeriesRecord:
    audits = [f"2026-11-{k + 1:02d}T02-00-00Z" for k in range(len(values))]
    return SeriesRecord(
        measure=measure, set="film", audits=audits, values=values, is_logarithmic=is_logarithmic
    )


def sample(n: int) -> SampleRecord:
    """Environments whose LPR has doubled or halved, is unknown, infinite or as it was."""
    ratios = (2.0, 0.5, None, 1.0)
    environments = [flagged(k).model_copy(update={"lpr_ratio": ratios[k % 4]}) for k in range(n)]
    points = np.random.default_rng(2).normal(size=(2 * n, 3)).tolist()
    return SampleRecord(
        environments=environments,
        coordinates=points[:n],
        training=points[n:],
        explained=[0.6, 0.2, 0.1],
        is_kernel=False,
    )


def empty_record(**more: Any) -> AuditRecord:
    """Nothing to say."""
    given: dict[str, Any] = {
        "name": "2026-11-30T02-00-05Z",
        "title": "Silicon",
        "begun": "2026-11-30T02:00:05+00:00",
        "ended": "2026-11-30T02:07:00+00:00",
        "verdict": "pass",
        "baseline": None,
        "conventions": {},
    }
    lists: dict[str, Any] = {name: [] for name in ("checks", "sets", "flagged", "series", "work")}
    return AuditRecord(**{**given, **lists, **more})


def full_record(n_flagged: int = 30) -> AuditRecord:
    """Something of everything, hostile names and values that no axis holds among it."""
    film = one_set(
        "film",
        "test",
        [
            group(None, None, 0.1),
            *(group(HOSTILE, None, 0.2), group("bulk", None, 0.4)),
            *(group(None, 14, 0.1), group(None, 32, 0.3)),
            *(group(HOSTILE, 14, 0.2), group("bulk", 32, 0.4)),
        ],
        errors=[error(None), error(HOSTILE), error("bulk")],
        validation=validation(),
    )
    silent = group(None, None, 1.0).model_copy(
        update={"lpr": NOTHING, "prior_ratio": NOTHING, "uncertainty": None}
    )
    checks = [
        check("films hold", "pass", measure="drift", found=None, bound=None),
        check("films are known", "fail", flagged=list(range(10))),
        check(
            HOSTILE, "warn", group=HOSTILE, species=14, found=INF, baseline=12345.6, flagged=[29]
        ),
    ]
    proposed = NextRecord(
        objective="mean_variance",
        before=9.0,
        picks=[
            PickRecord(file=HOSTILE, frame=k, group=HOSTILE, objective=8.0 - k) for k in range(3)
        ],
        baselines={"random": [9.0, 8.5, 8.4], "d_optimal": [8.0, 7.5, 7.0]},
    )
    return empty_record(
        verdict="fail",
        baseline="2026-11-29T02-00-05Z",
        checks=checks,
        sets=[one_set("train", "train", [silent]), film, one_set("pool", "pool", [])],
        flagged=[flagged(k) for k in range(n_flagged)],
        series=[
            series("lpr.q0.05", [0.3, None, 0.1, 0.01], True),
            series(f"lpr.q0.05 {HOSTILE} Si", [1.0, INF, 2.0], True),
            series("drift", [0.0, 0.0, 0.0], False),
            series("n_environments", [10.0], False),
        ],
        work=[
            WorkRecord(stage="rows", n_tasks=2, n_computed=0, reason="reused", seconds=0.0),
            WorkRecord(stage=HOSTILE, n_tasks=9, n_computed=4, reason=HOSTILE, seconds=1.25),
        ],
        next=proposed,
        sample=sample(40),
        ratios=f"LPR over that of {HOSTILE}.",
        cross_validation=held_out(),
        conventions={"versions": {"dlpr": "0.5.0"}, "inputs": {HOSTILE: HOSTILE}},
    )


def write_frames(folder: Path, n: int = 30) -> None:
    """Environments of two species as `write_flagged` leaves them; the last is an isolated atom."""
    rng = np.random.default_rng(0)
    frames = []
    for k in range(n):
        atoms = bulk("Si", cubic=True) if k < 20 else bulk("Si", cubic=True)[:1]
        atoms.rattle(0.1, seed=k)
        atoms.numbers[:3] = 32
        atoms.numbers[3:4] = 1
        atoms.set_array("lpr", 10.0 ** rng.uniform(-6, 0, len(atoms)))
        atoms.arrays["lpr"][:2] = (0.0, INF)[: len(atoms)]
        atoms.set_array("is_flagged", np.arange(len(atoms)) // (len(atoms) - 1 or 1))
        atoms.pbc = k % 2 == 0 and len(atoms) > 1
        atoms.info["cutoff"] = 4.5
        frames.append(atoms)
    ase.io.write(folder / FLAGGED, frames)


def full_page(folder: Path) -> Path:
    write_frames(folder)
    return write_page(full_record(), folder)


class Parsed(HTMLParser):
    """A page taken apart; whatever is opened must be closed, in order."""

    EMPTY = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What is read, in one line."""
        return " ".join(" ".join(self.words).split())

    def values(self, *names: str) -> list[str]:
        """Of some attributes."""
        return [attrs[name] for _, attrs in self.tags for name in names if name in attrs]
