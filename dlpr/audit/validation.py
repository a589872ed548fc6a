"""Errors beside rigidities, along trajectories, and on the plane of energy and volume."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from dlpr.audit.errors import ENERGIES, QUANTITIES, structure_errors
from dlpr.audit.figures import MILLI, read
from dlpr.audit.record_validation import (
    EnergyVolumeRecord,
    EnrichmentRecord,
    RankRecord,
    RigidityErrorRecord,
    TrajectoryRecord,
    ValidationRecord,
)
from dlpr.audit.spec import Plot
from dlpr.core.ranking import Ranking
from dlpr.core.rows import FloatArray, row_factor
from dlpr.stages.result import STRUCTURE_LPR
from dlpr.stages.structures import StructureStore

SHARES = (0.01, 0.05)
"""What part of all structures counts as those of the largest errors."""
MOST_POINTS = 1000
"""Structures that are drawn of a set."""
MOST_STEPS = 500
"""Frames of a trajectory that are points of their own; of more, neighbours share one."""
MOST_FILES = 3
"""Trajectories of a set that are drawn."""
FEWEST_FRAMES = 10
"""Of a file that is a trajectory unless told otherwise."""
FEWEST = 10
"""Structures of a group, or of a plane, that tell something."""
_N_BINS = 10
_FEWEST_OF_BIN = 5

Indices = NDArray[np.int64]


def validation_of(
    group: zarr.Group, structures: StructureStore, plots: Sequence[Plot] | None
) -> ValidationRecord:
    """What the arrays over the structures of a set say, at the cost of sorting them.

    Parameters
    ----------
    group : zarr.Group
        The result of a set.
    structures : StructureStore
        The same set.
    plots : sequence of str, optional
        What its user wants to be drawn. By default a file of at least `FEWEST_FRAMES` frames of
        equal numbers of atoms is a trajectory, and a set without one is an energy-volume plane.
    """
    trajectories, n_trajectories = _trajectories(group, plots)
    wanted = not n_trajectories if plots is None else "energy_volume" in plots
    return ValidationRecord(
        rigidity_error=_rigidity_error(group),
        trajectories=trajectories,
        n_trajectories=n_trajectories,
        energy_volume=_energy_volume(group, structures) if wanted else None,
    )


def finding(record: ValidationRecord | None, measure: str, group: str | None) -> float | None:
    """Rank correlation, or enrichment of the first of `SHARES`, of a group; None: not known."""
    if record is None or record.rigidity_error is None:
        return None
    for one in record.rigidity_error.groups:
        if one.group == group:
            return one.enrichments[0].factor if measure == "enrichment" else one.rank_correlation
    return None


def _rigidity_error(group: zarr.Group) -> RigidityErrorRecord | None:
    attributes: Any = group.attrs["model"]
    convention = attributes["rows"]
    factor = row_factor(np.diff(read(group, "structure_offset")), convention)
    size, rigidity = MILLI * factor * np.abs(structure_errors(group)), read(group, "structure_pr")
    of_group = read(group, "structure_group")
    told = np.isfinite(size) & np.isfinite(rigidity)
    size, rigidity, of_group = size[told], rigidity[told], of_group[told]
    if len(size) < FEWEST:
        return None
    names: Any = group["structure_group"].attrs["names"]
    of_all = Ranking(rigidity, size)
    groups = [_ranks(None, of_all)]
    count = np.bincount(of_group, minlength=len(names))
    members = np.split(np.argsort(of_group, kind="stable"), np.cumsum(count)[:-1])
    several = np.count_nonzero(count) > 1
    for number in np.flatnonzero(count >= FEWEST) if several else ():
        own = members[number]
        groups.append(_ranks(names[number], Ranking(rigidity[own], size[own])))
    drawn = sampled(MOST_POINTS, of_all.least, of_all.worst)
    n_bins = min(_N_BINS, len(size) // _FEWEST_OF_BIN)
    bins = np.array_split(of_all.least, n_bins)
    return RigidityErrorRecord(
        unit=QUANTITIES[ENERGIES[convention]][1],
        groups=groups,
        rigidity=_short(rigidity[drawn]),
        error=_short(size[drawn]),
        bin_rigidity=_short(np.array([np.median(rigidity[one]) for one in bins])),
        bin_error=_short(np.array([np.median(size[one]) for one in bins])),
    )


def _ranks(name: str | None, ranking: Ranking) -> RankRecord:
    found = [ranking.enrichment(share) for share in SHARES]
    return RankRecord(
        group=name,
        n=found[0].n,
        rank_correlation=ranking.rank_correlation,
        enrichments=[
            EnrichmentRecord(
                share=one.share,
                n_worst=one.n_worst,
                n_least=one.n_least,
                n_found=one.n_found,
                factor=one.factor,
            )
            for one in found
        ],
    )


def _trajectories(
    group: zarr.Group, plots: Sequence[Plot] | None
) -> tuple[list[TrajectoryRecord], int]:
    """Those of the lowest LPR, and how many files are trajectories."""
    if plots is not None and "trajectory" not in plots:
        return [], 0
    source, n_atoms = read(group, "structure_source_file"), np.diff(read(group, "structure_offset"))
    order = np.argsort(source, kind="stable")
    files, start, n_frames = np.unique(source[order], return_index=True, return_counts=True)
    is_one = n_frames > 1
    if plots is None:
        sizes = n_atoms[order]
        equal = np.minimum.reduceat(sizes, start) == np.maximum.reduceat(sizes, start)
        is_one = equal & (n_frames >= FEWEST_FRAMES)
    lpr = read(group, STRUCTURE_LPR)
    lowest = np.fmin.reduceat(lpr[order, 0], start)
    ranked = np.argsort(np.where(np.isnan(lowest), np.inf, lowest), kind="stable")
    shown = ranked[is_one[ranked]][:MOST_FILES].tolist()
    names: Any = group["structure_source_file"].attrs["names"]
    frame, error = read(group, "structure_source_frame"), structure_errors(group) / n_atoms
    found = []
    for k in shown:
        own = order[start[k] : start[k] + n_frames[k]]
        found.append(_trajectory(names[files[k]], frame[own], lpr[own], MILLI * error[own]))
    return found, int(np.count_nonzero(is_one))


def _trajectory(file: str, frame: Indices, lpr: FloatArray, error: FloatArray) -> TrajectoryRecord:
    per_point = -(-len(frame) // MOST_STEPS)
    n_points = -(-len(frame) // per_point)

    def points(values: FloatArray) -> FloatArray:
        """(n_points, per_point); NaN where there is nothing."""
        whole = np.full(n_points * per_point, np.nan)
        whole[: len(values)] = values
        return whole.reshape(n_points, per_point)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of points without anything
        minimum = np.nanmin(points(lpr[:, 0]), axis=1)
        low, median = (np.nanmedian(points(column), axis=1) for column in lpr.T[1:])
        rms = np.sqrt(np.nanmean(np.square(points(error)), axis=1))
    return TrajectoryRecord(
        file=file,
        n_frames=len(frame),
        frames_per_point=per_point,
        frames=frame[::per_point].tolist(),
        minimum=_told(minimum),
        low=_told(low),
        median=_told(median),
        error=_told(rms),
    )


def _told(values: FloatArray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in _short(values)]


def _energy_volume(group: zarr.Group, structures: StructureStore) -> EnergyVolumeRecord | None:
    energy = read(group, "structure_energy_label")
    is_labelled = bool(np.isfinite(energy).any())
    if not is_labelled and "structure_energy" in group:
        energy = read(group, "structure_energy")
    rigidity, volume = read(group, "structure_pr"), structures.volume
    is_bulk = structures.over_structures("pbc").all(axis=1) & (volume > 0.0)
    known = np.flatnonzero(is_bulk & np.isfinite(energy) & np.isfinite(rigidity))
    if len(known) < FEWEST:
        return None
    drawn = known[sampled(MOST_POINTS, np.argsort(rigidity[known], kind="stable"))]
    n_atoms = np.diff(structures.structure_offset)[drawn]
    return EnergyVolumeRecord(
        n=len(known),
        is_labelled=is_labelled,
        volume=_short(volume[drawn] / n_atoms),
        energy=_short(energy[drawn] / n_atoms, 7),
        rigidity=_short(rigidity[drawn]),
    )


def sampled(n_wanted: int, *orders: Indices) -> Indices:
    """Which of many structures are drawn: a quarter are the first of each order, the rest evenly.

    Parameters
    ----------
    n_wanted : int
        At most.
    *orders : (n,) int64
        At most three; the rest is spread evenly over the first.

    Returns
    -------
    (n_wanted,) int64 or fewer
        Ascending, each once.
    """
    n = len(orders[0])
    if n <= n_wanted:
        return np.arange(n)
    quarter = n_wanted // 4
    evenly = np.linspace(0, n - 1, n_wanted - quarter * len(orders)).astype(np.int64)
    return np.unique(np.concatenate([*(one[:quarter] for one in orders), orders[0][evenly]]))


def _short(values: FloatArray, digits: int = 4) -> list[float]:
    """As many digits as a picture shows."""
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
