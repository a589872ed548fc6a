"""What an audit says of errors beside rigidities: parts of the schema of ``audit.json``."""

from __future__ import annotations

from pydantic import Field

from dlpr.audit.part import Part


class EnrichmentRecord(Part):
    """How many of the largest errors are among the least rigid structures."""

    share: float = Field(description="of all structures, those of the largest errors")
    n_worst: int
    n_least: int = Field(description="the least rigid, 5 % of all")
    n_found: int = Field(description="of the worst, among the least rigid")
    factor: float = Field(description="times as many as chance would find")


class RankRecord(Part):
    """Do the least rigid structures of a group have the largest errors? group None: of all."""

    group: str | None
    n: int = Field(description="structures with a label and a finite rigidity")
    rank_correlation: float | None = Field(
        description="Spearman's, of 1/PR with absolute errors; None where all are equal"
    )
    enrichments: list[EnrichmentRecord]


class RigidityErrorRecord(Part):
    """Absolute errors of energies beside the PR of structures, both in the model's convention."""

    unit: str
    groups: list[RankRecord] = Field(description="that of all first")
    rigidity: list[float] = Field(description="of structures that are drawn")
    error: list[float]
    bin_rigidity: list[float] = Field(description="medians of bins of equal numbers of structures")
    bin_error: list[float]


class TrajectoryRecord(Part):
    """A file frame by frame; of a long one, several frames are one point."""

    file: str
    n_frames: int
    frames_per_point: int
    frames: list[int] = Field(description="the first frame of each point, from 0")
    minimum: list[float | None] = Field(description="lowest LPR of all environments")
    low: list[float | None] = Field(description="the 5 % quantile of LPR; median over frames")
    median: list[float | None] = Field(description="the median of LPR; median over frames")
    error: list[float | None] = Field(
        description="energy per atom, meV/atom, root mean square over frames; None: no label"
    )


class EnergyVolumeRecord(Part):
    """Structures that are periodic in all directions, on the plane of energy and volume."""

    n: int
    is_labelled: bool = Field(description="False: energies are predictions")
    volume: list[float] = Field(description="of structures that are drawn, Å³/atom")
    energy: list[float] = Field(description="eV/atom")
    rigidity: list[float] = Field(description="PR")


class ValidationRecord(Part):
    """Rigidities of a set beside its errors, along its trajectories, on the energy-volume plane."""

    rigidity_error: RigidityErrorRecord | None
    trajectories: list[TrajectoryRecord] = Field(description="those of the lowest LPR")
    n_trajectories: int = Field(description="all that there are")
    energy_volume: EnergyVolumeRecord | None
