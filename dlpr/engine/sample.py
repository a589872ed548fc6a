"""The sample of a job's environments that an audit shows on a map."""

from __future__ import annotations

from dlpr.engine.pipeline import Pipeline
from dlpr.job import SetSpec
from dlpr.stages import sample as sample_stage
from dlpr.stages.sample import TRAIN
from dlpr.store.folder import StageFolder


def sample(steps: Pipeline, count: int) -> StageFolder:
    """Environments of all test sets, and of the training set; or of this alone."""
    own = [name for name, spec in steps.job.test.items() if isinstance(spec, SetSpec)]
    names = [*(sorted(own) or sorted(steps.job.test)), TRAIN]
    sets = {name: steps.ingest(name) for name in names}
    features = {name: steps.feature_settings(name) for name in names}
    work, rows, numerics = steps.workspace.work, steps.rows(), steps.numerics()
    plan = sample_stage.plan(work, sets, features, rows, count, numerics)
    return steps.workspace.finish("sample", plan)
