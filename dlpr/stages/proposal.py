"""What to label next: structures of a pool, picked one by one for what they do for targets.

A label counts by its energy: each candidate has the one row that its energy would add to the loss,
with the weight that the loss has for its group, as if the loss were squared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.core.candidates import Candidates
from dlpr.core.proposal import RULES, propose
from dlpr.core.rows import FloatArray, square_norm
from dlpr.stages.loss import weights_of
from dlpr.stages.structures import open_structures
from dlpr.store.files import Json
from dlpr.store.folder import StageFolder

SEED = 0
"""Of the picks at random."""


def plan(
    work: Path,
    candidates: StageFolder,
    targets: Mapping[str, StageFolder],
    spec: Json,
    numerics: Json,
) -> StageFolder:
    """A task for each rule of `dlpr.core.proposal`: what is wanted, and what it is held against.

    Parameters
    ----------
    candidates : StageFolder
        A finished "whitened" of the pool.
    targets : mapping of str to StageFolder
        By the name of their set: finished "targets", or "whitened" where structures are meant.
    spec : dict
        ``count`` of picks, ``objective``, and ``n_targets``, the most there are of all sets.
    """
    settings = {
        **spec,
        "sets": list(targets),
        "rules": list(RULES),
        "seed": SEED,
        "numerics": {"threads": numerics["factor_threads"], "kernel": numerics["kernel"]},
    }
    inputs = {
        "candidates": candidates,
        "pool": candidates.input("rows").input("structures"),
        "train": candidates.input("factor").input("rows").input("structures"),
        **{_targets_of(name): folder for name, folder in targets.items()},
    }
    return StageFolder.create(work, "proposal", settings, inputs, len(RULES))


def _targets_of(name: str) -> str:
    """The input that has the targets of a set; no set has such a name."""
    return f"targets of {name}"


def run(folder: StageFolder, task: int) -> tuple[dict[str, Any], Json]:
    """Pick by one rule: structures of the pool, and the objective before and after each."""
    settings = folder.settings
    chunks, structure = _candidates(folder)
    targets = _targets(folder)
    found = propose(
        *(targets, chunks, settings["count"]),
        *(settings["objective"], settings["rules"][task], settings["seed"]),
    )
    arrays = {"structure": structure[found.picks], "curve": found.curve}
    facts = {"n_candidates": len(structure), "n_targets": len(targets)}
    return folder.write_part(task, arrays), facts


def _candidates(folder: StageFolder) -> tuple[list[Candidates], NDArray[np.int64]]:
    """Rows of the loss, and the structures that they belong to."""
    whitened, is_new = folder.input("candidates"), _is_new(folder)
    weight = weights_of(whitened.input("factor").settings["loss"])
    chunks, structures = [], [np.empty(0, np.int64)]
    for task, receipt in enumerate(whitened.receipts()):
        part = whitened.read_part(task)
        own = is_new[part["place"]]
        rows = part["rows"] if own.all() else part["rows"][own]
        factor = np.sqrt(weight("energy", receipt.facts["group"]))
        if factor != 1.0:
            rows = factor * rows
        chunks.append(Candidates(rows, np.arange(len(rows) + 1)))
        structures.append(part["place"][own])
    return chunks, np.concatenate(structures)


def _is_new(folder: StageFolder) -> NDArray[np.bool_]:
    """(n_structures,) of the pool: False where one repeats another or one of the training set."""
    train, pool = (
        open_structures(folder.input(name)).over_structures("digest") for name in ("train", "pool")
    )
    _, first = np.unique(np.concatenate([train, pool]), axis=0, return_index=True)
    is_new = np.zeros(len(train) + len(pool), bool)
    is_new[first] = True
    return is_new[len(train) :]


def _targets(folder: StageFolder) -> FloatArray:
    """The least rigid of all sets, (n_targets, n_columns); of equals the first ones."""
    worst, variance = None, np.empty(0)
    for rows in _target_rows(folder):
        worst = rows if worst is None else np.concatenate([worst, rows])
        variance = np.append(variance, square_norm(rows))
        order = np.argsort(-variance, kind="stable")[: folder.settings["n_targets"]]
        worst, variance = worst[order], variance[order]
    assert worst is not None
    return worst


def _target_rows(folder: StageFolder) -> Iterator[FloatArray]:
    for name in folder.settings["sets"]:
        of_set = folder.input(_targets_of(name))
        for task in range(of_set.n_tasks):
            yield of_set.read_part(task, ("rows",))["rows"]


def open_picks(folder: StageFolder) -> dict[str, tuple[NDArray[np.int64], FloatArray]]:
    """Structures of the pool and the objective before and after each, by the rule of the picks."""
    found = {}
    for task, rule in enumerate(folder.settings["rules"]):
        part = folder.read_part(task)
        found[rule] = part["structure"], part["curve"]
    return found
