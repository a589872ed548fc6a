"""Environments that stand for all of a run: for a map, and for chemiscope."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlpr.audit.flagged import frames_of, write_environments
from dlpr.audit.record import SampleRecord
from dlpr.audit.tonight import Tonight
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.sample import sample
from dlpr.exports import Values
from dlpr.handles import Result

SAMPLE = "sample.json.gz"
MOST_ATOMS = 20_000
"""Atoms of the file for chemiscope: each night writes it anew."""


def sampled(steps: Pipeline, tonight: Tonight) -> SampleRecord:
    """What a run's sample is, but for environments without features."""
    folder = sample(steps, tonight.spec.sample.count)
    part, names = folder.read_part(0), folder.facts(0)["sets"]
    scale = tonight.view.scale
    described = {
        (number, place): one
        for number, name in enumerate(names)
        for place, one in tonight.environments[name]
        .describe(np.unique(part["environment"][part["set"] == number]), scale)
        .items()
    }
    keys = zip(part["set"].tolist(), part["environment"].tolist(), strict=True)
    kept = [(k, key) for k, key in enumerate(keys) if key in described]
    return SampleRecord(
        environments=[described[key] for _, key in kept],
        coordinates=part["coordinates"][[k for k, _ in kept]].tolist(),
        training=part["training"].tolist(),
        explained=part["explained"].tolist(),
        is_kernel=steps.job.model.kernel is not None,
    )


def write_sample(found: SampleRecord, title: str, result: Result, folder: Path) -> None:
    """Write ``sample.json.gz`` for chemiscope: the first of a sample, up to `MOST_ATOMS` atoms."""
    frames, n_atoms = [], 0
    for atoms in frames_of(found.environments, result):
        n_atoms += len(atoms)
        if n_atoms > MOST_ATOMS:
            break
        frames.append(atoms)
    own = found.environments[: len(frames)]
    axes = np.array(found.coordinates[: len(frames)])
    values: Values = {
        f"PCA {k + 1}": ("atom", axes[:, k], f"principal axis, {100 * part:.1f} % of the variance")
        for k, part in enumerate(found.explained)
    }
    if frames:
        write_environments(folder / SAMPLE, title, own, frames, values)
