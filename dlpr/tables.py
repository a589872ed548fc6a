"""Tables of results as text: the same for terminals, notebooks and files."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any

from ase.data import chemical_symbols

from dlpr.stages.summary import QUANTILES
from dlpr.store.files import Json

SHOWN = tuple(QUANTILES.index(q) for q in (0.05, 0.5, 0.95))
"""Places of the quantiles that tables and pictures show."""

_OF = (0.95, 1.0)
"""Quantiles of errors that tables show."""


@dataclass(frozen=True)
class TextTable:
    """Columns, the number of those that are names rather than numbers, and rows of text."""

    title: str
    columns: tuple[str, ...]
    n_names: int
    rows: list[list[str]]
    caption: str = ""

    def to_html(self) -> str:
        """The table for a notebook."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return (
            f"<table><caption>{html.escape(self.title)}. {html.escape(self.caption)}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def rigidity_table(summary: dict[str, list[Json]]) -> TextTable:
    """Per set, group and species: counts, and quantiles of LPR and prior ratio."""

    def quantiles(found: list[float] | None) -> list[str]:
        return ["-" if found is None else f"{found[k]:.3g}" for k in SHOWN]

    def committee(row: Json) -> list[str]:
        variance, correlation = row["committee_variance"], row["rank_correlation"]
        sigma = "-" if variance is None else f"{1e3 * variance[SHOWN[1]] ** 0.5:.3g}"
        return [sigma, "-" if correlation is None else f"{correlation:.3f}"]

    has_committee = any("rank_correlation" in row for rows in summary.values() for row in rows)
    rows = [
        [
            name,
            row["group"],
            chemical_symbols[row["species"]],
            *(str(row[key]) for key in ("n_environments", "n_inf", "n_unseen")),
            *quantiles(row["lpr"]),
            *quantiles(row["prior_ratio"])[:2],
            *(committee(row) if has_committee else ()),
        ]
        for name, of_set in summary.items()
        for row in of_set
    ]
    numbers: tuple[str, ...] = (
        *("environments", "inf", "unseen"),
        *("LPR 5 %", "50 %", "95 %", "ratio 5 %", "50 %"),
    )
    caption = (
        "ratio: LPR over what the regularizer alone gives, 1 where the data say nothing; "
        "inf: environments without features; "
        "unseen: central or neighbour species that no training structure has"
    )
    if has_committee:
        numbers += ("σ/meV 50 %", "Spearman")
        caption += (
            "; σ: of the committee's energies of an environment; Spearman: ranks of LPR with those "
            "of σ², -1 where they tell the same"
        )
    return TextTable(
        "Local prediction rigidity", ("set", "group", "species", *numbers), 3, rows, caption
    )


def folds_in_words(about: Json) -> str:
    """How the structures of a training set were parted, of ``by``, ``folds`` and ``seed``."""
    n = len(about["folds"])
    if about["by"] == "group":
        return f"each of {n} groups left out in turn"
    spread = ", each group spread evenly over them" if about["by"] == "stratified" else ""
    return f"{n} folds of structures (seed {about['seed']}){spread}"


def cross_validation_table(about: Json) -> TextTable:
    """Errors of held-out rows: of all, mean over folds; of energies per atom by group and fold.

    Parameters
    ----------
    about : dict
        Attributes of the store of a cross-validation.
    """
    spreads = {one["quantity"]: one for one in about["spread"]}
    detailed = about["summary"][0]["quantity"] if about["summary"] else ""
    rows = []
    for row in about["summary"]:
        of = row["quantity"]
        is_whole = row["fold"] is None and row["group"] is None
        if not is_whole and of != detailed:
            continue
        among = "all" if is_whole else row["group"] or f"fold {row['fold']}"
        numbers = (
            row["mae"],
            row["rmse"],
            *(row["quantiles"][row["levels"].index(q)] for q in _OF),
        )
        rows.append([of, among, str(row["n"]), *(f"{x:.3g}" for x in numbers), row["unit"]])
        if is_whole and of in spreads:
            one = spreads[of]
            means = [f"{one[f'{x}_mean']:.3g} ± {one[f'{x}_std']:.2g}" for x in ("mae", "rmse")]
            rows.append([of, "mean of folds", str(one["n_folds"]), *means, "", "", row["unit"]])
    return TextTable(
        f"Cross-validation of the training set: {folds_in_words(about)}",
        ("error of", "structures", "n", "MAE", "RMSE", "95 % below", "largest", "unit"),
        2,
        rows,
        "each fold predicted by a fit of all others, from the same rows; ±: standard deviation "
        "over folds",
    )


def cost_table(rows: list[dict[str, Any]]) -> TextTable:
    """Per stage: tasks, time, bytes, files, peak memory."""
    from dlpr.units import format_bytes

    cells = [
        [
            row["stage"],
            str(row["n_tasks"]),
            f"{row['seconds']:.1f}",
            f"{row['core_hours']:.4f}",
            format_bytes(row["nbytes"]),
            str(row["n_files"]),
            format_bytes(row["peak_nbytes"]),
        ]
        for row in rows
    ]
    cells.append(
        [
            "all",
            str(sum(row["n_tasks"] for row in rows)),
            f"{sum(row['seconds'] for row in rows):.1f}",
            f"{sum(row['core_hours'] for row in rows):.4f}",
            format_bytes(sum(row["nbytes"] for row in rows)),
            str(sum(row["n_files"] for row in rows)),
            format_bytes(max((row["peak_nbytes"] for row in rows), default=0)),
        ]
    )
    numbers = ("tasks", "task seconds", "core-hours", "data", "files", "peak memory")
    caption = "from the receipts, those of reused stages included; peak memory of one process"
    return TextTable("Work", ("stage", *numbers), 1, cells, caption)
