"""AUDIT.yaml: what it may say, and what is said of one that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from audit_cases import Nights

from dlpr.audit.spec import STANDARD, AuditSpec
from dlpr.errors import JobError

POOL = {"files": "hot.xyz"}
LPR = {"of": "lpr", "set": "md", "quantile": 0.05, "at_least": 10}
FOLDS = {"cross_validation": {"folds": 3}}


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path)


def test_a_file_becomes_the_job_of_its_work_folder(nights: Nights) -> None:
    nights.data["pool"] = {"files": "hot.xyz"}
    nights.data["history"] = "kept/audits"
    spec = AuditSpec.load(nights.save())
    job = spec.job()
    assert job.path(job.output) == nights.path / "kept/audits/work"
    assert list(job.test) == ["md", "pool"]
    assert job.base == nights.path
    assert spec.checks == STANDARD
    assert job.descriptor == spec.descriptor


@pytest.mark.parametrize(
    "other", [{"model": {"linear": {"regularizer": 0.0}}}, {"loss": {"energy": 0, "forces": 1}}]
)
def test_a_pool_has_picks_where_there_can_be_some(nights: Nights, other: dict[str, Any]) -> None:
    found = nights.spec(pool=POOL).picks
    assert found is not None
    assert (found.count, found.objective, found.targets.count) == (20, "mean_variance", 1000)
    assert nights.spec(pool=POOL, solver="auto", **other).picks is None


def test_what_is_resolved_means_the_same(nights: Nights) -> None:
    checks = [LPR, {"of": "drift", "at_most": 0.2}, {**LPR, "at_least": {"times": 0.8}}]
    more = {
        "uncertainty": {"set": "md"},
        "validation": {"plots": {"md": ["energy_volume"]}},
        "pool": POOL,
        "next": {"targets": {"sets": ["md"], "of": "structures"}},
    }
    spec = nights.spec(checks=checks, baseline={"last": 3}, **more)
    again = AuditSpec.from_dict(spec.resolved(), nights.path)
    assert again == spec
    assert again.job() == spec.job()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"checks": [{**LPR, "quantil": 0.1}]}, ["checks.0.quantil", "did you mean `quantile`?"]),
        ({"checks": [LPR, {**LPR, "quantile": 5}]}, ["checks.1.quantile: found 5", "from 0 to 1"]),
        ({"checks": [{**LPR, "of": "lpx"}]}, ["checks.0.of: found 'lpx'", "prior_ratio"]),
        ({"checks": [{**LPR, "at_most": 3}]}, ["checks.0", "exactly one of: at_least, at_most"]),
        ({"checks": [{"of": "lpr", "at_most": 3}]}, ["exactly one of: quantile, share_below"]),
        ({"checks": [{**LPR, "at_least": {"time": 2}}]}, ["checks.0.at_least.time", "`times`"]),
        ({"checks": [{**LPR, "set": "mm"}]}, ["no set 'mm'", "known here: md"]),
        ({"checks": [{**LPR, "set": "train"}]}, ["train: train"]),
        ({"checks": [{**LPR, "of": "structure_pr", "species": "Si"}]}, ["species belongs to lpr"]),
        ({"checks": [{**LPR, "of": "uncertainty"}]}, ["uncertainty: {set: NAME}"]),
        ({"checks": [{"of": "lost", "at_most": {"times": 2}}]}, ["needs a number"]),
        ({"checks": [{"of": "outliers", "at_most": {"times": 2}}]}, ["needs a number"]),
        ({"checks": [{"of": "lost", "at_most": 0, "within": 0.1}]}, ["within belongs to near_"]),
        ({"checks": [{"of": "lost", "at_most": 0, "beyond": 6}]}, ["beyond belongs to outliers"]),
        ({"checks": [{"of": "outliers", "at_most": 0, "set": "train"}]}, ["train: train"]),
        (
            {"checks": [{"of": "rmse", "quantity": "forces", "at_most": 2}]},
            ["test_forces: true"],
        ),
        ({"checks": [{**LPR, "of": "error", "quantity": "energi"}]}, ["checks.0.quantity"]),
        ({"checks": [{**LPR, "quantity": "energy_per_cell"}]}, ["belongs to rmse, mae, error"]),
        (
            {"checks": [{**LPR, "of": "error", "quantity": "force_magnitude"}]},
            ["checks.0.quantity", "test_forces: true"],
        ),
        ({"checks": [{"of": "enrichment", "species": "Si", "at_least": 2}]}, ["species belongs"]),
        ({"validation": {"plots": {"film": []}}}, ["validation.plots.film", "known here: md"]),
        (
            {"validation": {"plots": {"md": ["trajektory"]}}},
            ["validation.plots.md.0: found 'trajektory'", "energy_volume"],
        ),
        (
            {"checks": [{"of": "cv_rmse", "at_most": 2}]},
            ["checks.0.of", "cross_validation: {folds"],
        ),
        (
            {"checks": [{"of": "cv_mae", "quantity": "forces", "at_most": 2}], **FOLDS},
            ["checks.0.quantity", "what the loss has, energy, and no forces"],
        ),
        (
            {"checks": [{"of": "cv_mae", "set": "md", "at_most": 2}], **FOLDS},
            ["no set 'md' with cv_mae; known here: train"],
        ),
        ({"cross_validation": {"fold": 3}}, ["cross_validation.fold", "did you mean `folds`?"]),
        ({"uncertainty": {"set": "film"}}, ["no test set 'film'", "known here: md"]),
        ({"baseline": {"las": 2}}, ["baseline.las", "`last`"]),
        ({"busy": "waits"}, ["busy: found 'waits'; needs wait or refuse"]),
        ({"histori": "a"}, ["did you mean `history`?"]),
        ({"output": "results"}, ["output: unknown key"]),
        ({"test": {"pool": {"files": "md_000.xyz"}}}, ["pool is the set of candidates"]),
        ({"pool": {"file": "hot.xyz"}}, ["pool.file", "did you mean `files`?"]),
        ({"next": {"count": 5}}, ["next: picks need candidates; name their files in pool"]),
        (
            {"pool": POOL, "next": {}, "loss": {"energy": 0, "forces": 1}},
            ["next: a label counts by its energy", "leave next out"],
        ),
        (
            {"pool": POOL, "next": {}, "model": {"linear": {"regularizer": 0.0}}},
            ["next: with model.linear.regularizer 0"],
        ),
        (
            {"pool": POOL, "next": {"targets": {"sets": ["film"]}}},
            ["next.targets.sets: there is no test set 'film'; known here: md"],
        ),
        ({"pool": POOL, "next": {"objective": "best"}}, ["next.objective: found 'best'"]),
        ({"pool": POOL, "next": {"targets": {"count": 0}}}, ["next.targets.count: found 0"]),
        ({"flag": {"count": -1}}, ["flag.count: found -1"]),
    ],
)
def test_a_mistake_is_named_with_its_place(
    nights: Nights, change: dict[str, Any], parts: list[str]
) -> None:
    nights.data |= change
    path = nights.save()
    with pytest.raises(JobError) as caught:
        AuditSpec.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: the audit cannot be used:")
    for part in parts:
        assert part in message
