"""The demo's pictures, drawn by Matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlpr.demo.story import BOND, JOBS, SETS, TestSet, show_factor
from dlpr.store.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"before": "#a9adb3", "after": "#2f7fbf"}
LPR_RANGE = 3e-4, 2e-1
"""Of the slab's colours."""
_STYLE: Any = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
_FEW = 60  # atoms of which each is drawn


@contextmanager
def _figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written to ``path`` when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with atomic_file(path) as file:
            figure.savefig(file, format="png", dpi=160)


def plot_violins(path: Path, sets: dict[str, TestSet]) -> Path:
    """Distributions of the LPR per test set, before and after; defect atoms apart."""
    from matplotlib.patches import Patch

    panels = {
        four_fold: [found for found in sets.values() if len(found.atoms(four_fold))]
        for four_fold in (True, False)
    }
    logarithms = np.log10(np.concatenate([found.lpr for found in sets.values()], axis=1))
    bottom, top = np.floor(logarithms.min()), np.ceil(logarithms.max())
    with _figure(path, 12.5, 5.8) as figure:
        axes = figure.subplots(
            1, 2, sharey=True, gridspec_kw={"width_ratios": [len(x) for x in panels.values()]}
        )
        for ax, (four_fold, of_panel) in zip(axes, panels.items(), strict=True):
            _draw_violins(ax, of_panel, four_fold, float(top))
            what = "with four neighbours" if four_fold else "with another number of neighbours"
            ax.set_title(f"Atoms {what}", loc="left", fontweight="bold")
        axes[0].set_ylim(bottom, top + 0.4)
        axes[0].set_yticks(
            np.arange(bottom, top + 1),
            [f"$10^{{{exponent:.0f}}}$" for exponent in np.arange(bottom, top + 1)],
        )
        axes[0].set_ylabel("local prediction rigidity (dimensionless)")
        trained = {
            "before": "trained on crystals and perfect amorphous networks",
            "after": "also on defects and surfaces",
        }
        figure.legend(
            handles=[Patch(color=COLORS[name], label=f"{name}: {trained[name]}") for name in JOBS],
            title=f"bars: medians;  ×: their gain;  (n): atoms;  neighbours: within {BOND} Å",
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
    return path


def _draw_violins(ax: Axes, of_panel: list[TestSet], four_fold: bool, top: float) -> None:
    rng = np.random.default_rng(0)
    for k, found in enumerate(of_panel):
        atoms = found.atoms(four_fold)
        medians = np.log10(found.medians(four_fold))
        halves = zip(JOBS, (-1, 1), np.log10(found.lpr[:, atoms]), medians, strict=True)
        for name, side, values, median in halves:
            violin = ax.violinplot(
                values,
                [k + 0.02 * side],
                widths=0.86,
                showextrema=False,
                side="low" if side < 0 else "high",
            )
            bodies: Any = violin["bodies"]
            for body in bodies:
                body.set(facecolor=COLORS[name], edgecolor="none", alpha=0.85)
            ax.plot([k + 0.02 * side, k + 0.3 * side], [median] * 2, color="black", linewidth=1.6)
            if len(values) < _FEW:
                x = k + side * rng.uniform(0.05, 0.2, len(values))
                ax.scatter(x, values, s=7, color="black", alpha=0.55, linewidths=0)
        gain = f"× {show_factor(found.gain(four_fold))}"
        ax.text(k, top + 0.12, gain, ha="center", va="bottom", fontweight="bold")
    counts = [len(found.atoms(four_fold)) for found in of_panel]
    labels = [f"{SETS[x.name]}\n({n})" for x, n in zip(of_panel, counts, strict=True)]
    ax.set_xticks(range(len(of_panel)), labels)
    ax.set_xlim(-0.6, len(of_panel) - 0.4)
    ax.tick_params(axis="x", length=0)
    ax.grid(axis="y", color="0.9")


def plot_slab(path: Path, surface: TestSet) -> Path:
    """The first slab seen along x, its atoms coloured by LPR, before and after."""
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MultipleLocator

    frame = surface.frames[0]
    x, y, z = np.asarray(frame.positions).T
    order = np.argsort(x)  # the nearest last
    size = np.full(len(x), 1.75)
    with _figure(path, 10.0, 5.0) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for ax, name, lpr in zip(axes, JOBS, surface.lpr, strict=True):
            circles = EllipseCollection(
                size,
                size,
                np.zeros(len(x)),
                units="xy",
                offsets=np.stack([y, z], axis=1)[order],
                offset_transform=ax.transData,
                array=lpr[: len(x)][order],
                norm=LogNorm(*LPR_RANGE),
                cmap="viridis",
                edgecolors="black",
                linewidths=0.5,
            )
            ax.add_collection(circles)
            ax.set_xlim(y.min() - 1.5, y.max() + 1.5)
            ax.set_ylim(z.min() - 2.0, z.max() + 2.0)
            ax.set_aspect("equal")
            ax.xaxis.set_major_locator(MultipleLocator(5.0))
            ax.yaxis.set_major_locator(MultipleLocator(5.0))
            ax.set_xlabel("y (Å)")
            ax.set_title(f"{name}: Si(100) slab, seen along x", loc="left", fontweight="bold")
        axes[0].set_ylabel("z (Å)")
        figure.colorbar(
            circles,
            ax=list(axes),
            extend="both",
            fraction=0.05,
            label="local prediction rigidity (dimensionless)",
        )
    return path
