"""Pictures of calibrations and of scans over the regularizer, drawn without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import JobError
from dlpr.store.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dlpr.regularizer_scan import RegularizerScan
    from dlpr.uncertainty import SetCalibration

SUFFIXES = (".svg", ".png", ".pdf")
"""What the name of a picture may end in."""
COLORS = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
"""Of Okabe and Ito: they differ for every kind of colour vision."""
MOST_POINTS = 5000
"""Points that a picture draws one by one; of more, so many are drawn, evenly chosen."""
FEW_DECADES = 100.0
"""Ends of an axis of less than this ratio have few powers of ten between them."""
STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.9",
    "legend.frameon": False,
    "svg.hashsalt": "dlpr",
}
"""Of every picture but the demo's."""
_METADATA: Any = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {},
}


def check_picture(path: Path) -> Path:
    """The absolute path of a picture that is still to be drawn.

    Raises
    ------
    JobError
        If its name ends in nothing that can be drawn.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise JobError(f"{path}: a picture's name ends in one of: {', '.join(SUFFIXES)}.")
    return path.absolute()


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written to ``path`` when the block ends: equal ones, equal bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    suffix = check_picture(path).suffix.lower()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with atomic_file(path) as file:
            figure.savefig(file, format=suffix[1:], dpi=160, metadata=_METADATA[suffix])


def plot_reliability(path: Path, found: SetCalibration) -> Path:
    """Draw squared errors against estimated variances, and errors against estimates (FD24 fig. 1).

    The estimates are those of the calibration's first method.
    """
    with _figure(path, 11.0, 4.8) as figure:
        left, right = figure.subplots(1, 2)
        _draw_bins(left, found)
        _draw_errors(right, found)
        figure.suptitle(f"{found.name}: calibrated by {found.fits[0].method}", x=0.01, ha="left")
    return path


def _draw_bins(ax: Axes, found: SetCalibration) -> None:
    bins, square = found.reliability, found.fits[0].scale ** 2
    variance = square * bins.variance
    # a bar down to 0 has no place on a logarithmic axis
    below = np.minimum(bins.standard_error, 0.95 * bins.squared_error)
    bars = np.stack([below, bins.standard_error])
    ax.errorbar(variance, bins.squared_error, yerr=bars, fmt="o", color=COLORS[0], capsize=2)
    ends = _ends(np.concatenate([variance, bins.squared_error]))
    ax.plot(ends, ends, "--", color="0.3", label="squared error = estimate")
    ax.set(xscale="log", yscale="log", xlim=ends, title=f"{len(variance)} bins of equal count")
    ax.set_xlabel(f"estimated variance, ({found.unit})²")
    ax.set_ylabel(f"mean squared error, ({found.unit})²")
    ax.legend(loc="upper left")


def _draw_errors(ax: Axes, found: SetCalibration) -> None:
    told = (found.unit_variance > 0) & (found.unit_variance < np.inf)
    sigma = found.fits[0].sigma(found.unit_variance[told])
    error = np.abs(found.errors[told])
    shown = np.unique(np.linspace(0, len(sigma) - 1, MOST_POINTS).astype(np.int64))
    ax.scatter(sigma[shown], error[shown], s=6, color=COLORS[0], alpha=0.4, linewidths=0)
    ends = _ends(sigma)
    for k, style in zip((1, 2, 3), ("-", "--", ":"), strict=True):
        ax.plot(ends, k * ends, style, color="black", linewidth=1.2, label=f"{k} σ")
    bottom = max(float(np.quantile(error, 0.01)), 1e-3 * float(error.max()))
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=(0.5 * bottom, 2.0 * error.max()))
    ax.set(xlabel=f"estimate σ ({found.unit})", ylabel=f"|error| ({found.unit})")
    ax.set_title(f"{len(sigma)} structures")
    ax.legend(loc="upper left")
    _label_decade(ax, ends)


def _label_decade(ax: Axes, ends: NDArray[np.float64]) -> None:
    """Name 1, 2 and 5 of a decade on an axis of x that is too short for powers of ten alone."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.xaxis.set_minor_formatter(NullFormatter())
    if ends[1] < FEW_DECADES * ends[0]:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter("{x:g}")


def plot_scan(path: Path, found: RegularizerScan) -> Path:
    """Draw errors and quantiles of the LPR against the regularizer (JCTC23 SI)."""
    x = found.regularizer
    with _figure(path, 7.0, 7.4) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True)
        top.plot(x, found.train_rmse, "s-", color=COLORS[1], markersize=4, label="training rows")
        top.plot(x, found.rmse, "o-", color=COLORS[0], markersize=4, label=found.name)
        top.set(yscale="log", ylabel=f"RMSE ({found.unit})")
        low, middle, high = found.shown.T
        bottom.fill_between(x, low, high, color=COLORS[2], alpha=0.25, label="5 % to 95 %")
        bottom.plot(x, middle, "o-", color=COLORS[2], markersize=4, label="median")
        bottom.set(xscale="log", yscale="log", xlabel="regularizer", ylabel=f"LPR of {found.name}")
        for ax in (top, bottom):
            ax.axvline(x[found.best], color="black", linewidth=1.2, label="best")
            if found.job_regularizer:
                ax.axvline(found.job_regularizer, color="0.5", linestyle=":", label="the job's")
            ax.legend()
    return path


def _ends(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A logarithmic axis that has room for all values."""
    return np.array([values.min() / 1.5, values.max() * 1.5])
