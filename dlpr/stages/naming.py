"""What a task works on, in the words of the user's files."""

from __future__ import annotations

from itertools import islice

import numpy as np

from dlpr.stages.features import task_edges
from dlpr.stages.structures import open_structures
from dlpr.store.folder import StageFolder


def task_words(folder: StageFolder, task: int) -> str:
    """A task of a stage, with its environments and where they come from.

    Parameters
    ----------
    folder : StageFolder
    task : int

    Returns
    -------
    str
        ``task 3 of rows-1f2e (environments 12288 to 16383: frames 61 to 81 of carbon.xyz)``
    """
    words = f"task {task} of {folder.name}"
    features = folder.settings.get("features")
    if folder.stage == "features":
        features = folder.settings
    if features is None or "structures" not in folder.plan["inputs"]:
        return words
    if folder.stage == "references" and task == folder.n_tasks - 1:
        return words
    structures = folder.input("structures")
    store = open_structures(structures)
    edges = task_edges(structures, features)
    if folder.stage in ("derivatives", "forces"):
        edges = np.array(folder.settings["edges"])
    start, stop = edges[task : task + 2].tolist()
    first, last = (int(store.structure_of(at, at + 1)[0]) for at in (start, stop - 1))
    source, names = store.sources()
    frames = store.over_structures("source_frame")
    chosen = slice(first, last + 1)
    runs = []
    for number in dict.fromkeys(source[chosen].tolist()):
        inside = frames[chosen][source[chosen] == number]
        runs.append(f"frames {np.min(inside)} to {np.max(inside)} of {names[number]}")
    shown = ", ".join(islice(runs, 3)) + (" ..." if len(runs) > 3 else "")
    return f"{words} (environments {start} to {stop - 1}: {shown})"
