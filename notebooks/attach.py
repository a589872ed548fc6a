# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A run on a cluster that stays
#
# Attach to a cluster of `dlpr cluster start`, submit a run, watch it, open its result, plot. The
# cluster can be on this machine or of SLURM jobs: nothing below tells them apart. Set at the top,
# or by environment variables:
#
# * `DLPR_NOTEBOOK_CLUSTER`: its name.
# * `DLPR_NOTEBOOK_PROFILE`: the profile of `~/.config/dlpr/clusters.yaml` to start it with where it
#   does not run. What this notebook starts, it stops at its end.
# * `DLPR_NOTEBOOK_FOLDER`: for data and results, on a file system that the workers see.

# %%
import html
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from ase.io import read
from IPython.display import Pretty, display

import dlpr
from dlpr.demo import story
from dlpr.demo.tersoff import coordination
from dlpr.engine.events import Event

CLUSTER = os.environ.get("DLPR_NOTEBOOK_CLUSTER", "notebook")
PROFILE = os.environ.get("DLPR_NOTEBOOK_PROFILE", "here")
FOLDER = Path(os.environ.get("DLPR_NOTEBOOK_FOLDER") or Path.home() / "dlpr-notebook")
started_here = False

# %% [markdown]
# ## Attach
#
# `dlpr.connect` finds the scheduler and the credentials by the cluster's name, on any host with
# the same file system, and gives an encrypted `distributed.Client`.


# %%
def cluster(*words: str) -> Pretty:
    """What a command ``dlpr cluster ...`` says."""
    done = subprocess.run(
        [sys.executable, "-m", "dlpr", "cluster", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stdout)
    return Pretty(done.stdout)


try:
    client = dlpr.connect(CLUSTER)
except dlpr.DlprError as error:
    display(Pretty(str(error)))
    display(cluster("start", CLUSTER, "--profile", PROFILE, "--wait", "10min"))
    started_here = True
    client = dlpr.connect(CLUSTER)
display(client)

# %% [markdown]
# ## Submit a run
#
# A thread waits for the run, the cluster works, and the notebook stays free. A *listener* is told
# of every event: a stage begun, a task done. This one keeps where each stage is, and what was
# noted (why there are no workers, for instance).


# %%
class Progress:
    """Where every stage of a run is."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, int]] = {}
        self.notes: list[str] = []
        self.lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self.lock:
            if event.kind == "note":
                self.notes.append(event.text)
            else:
                self.stages[event.stage] = (event.n_done, event.n_tasks)

    def _repr_html_(self) -> str:
        with self.lock:
            rows = "".join(
                f"<tr><td style='text-align:left'>{stage}</td>"
                f"<td><progress value={n_done} max={n_tasks}></progress></td>"
                f"<td>{n_done} of {n_tasks}</td></tr>"
                for stage, (n_done, n_tasks) in self.stages.items()
            )
            notes = map(html.escape, self.notes[-3:])
            return f"<table>{rows}</table>" + "".join(f"<p>{note}</p>" for note in notes)


FOLDER.mkdir(parents=True, exist_ok=True)
job = story.write_jobs(FOLDER, workers=2)["after"]
progress = Progress()
background = ThreadPoolExecutor(max_workers=1)
run = background.submit(dlpr.run, job, client=client, listeners=(progress,))

# %% [markdown]
# ## Who works
#
# While the run goes on. Workers of SLURM may come later than the scheduler, and this waits for the
# first; `dlpr cluster status NAME` says what SLURM says. Run the cell again for the news.

# %%
client.wait_for_workers(1)
workers = client.scheduler_info(n_workers=-1)["workers"]
facts = {
    address: {
        "name": worker["name"],
        "threads": worker["nthreads"],
        "memory limit (GiB)": worker["memory_limit"] / 2**30,
        "in use (GiB)": worker["metrics"]["memory"] / 2**30,
        "executing": worker["metrics"]["task_counts"].get("executing", 0),
    }
    for address, worker in workers.items()
}
display(pd.DataFrame.from_dict(facts, orient="index"))

# %% [markdown]
# ## Watch it
#
# Interrupting this cell stops the watching and not the run; an error of the run appears here.

# %%
shown = display(progress, display_id=True)
while not run.done():
    time.sleep(0.5)
    shown.update(progress)
result = run.result()
shown.update(progress)
display(result)

# %% [markdown]
# ## Closing leaves the cluster up
#
# The result is on disk. The next notebook, or `dlpr run JOB --cluster NAME`, finds the cluster
# ready.

# %%
client.close()
display(cluster("status", CLUSTER))

# %% [markdown]
# ## Open the result, and plot it
#
# Environments come in the order of the source file's atoms, so that they can be set beside
# anything that is known of them: here the height of an atom in a slab of silicon. Towards both
# surfaces the LPR falls by two orders of magnitude: the training data say less of what such an
# atom contributes. It is lowest some layers down, among atoms with all four bonds: counting bonds
# would not have found them.

# %%
surface = xr.open_zarr(result.path, group="surface", consolidated=False)
display(surface)

# %%
slabs = read(FOLDER / "data" / "test_surface.extxyz.gz", ":")
height = np.concatenate([slab.positions[:, 2] - slab.positions[:, 2].mean() for slab in slabs])
neighbours = np.concatenate([coordination(slab, story.BOND) for slab in slabs])
lpr = surface.environment_lpr.values

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for label, chosen in {
    "four neighbours": neighbours == 4,
    "another number of neighbours": neighbours != 4,
}.items():
    ax.scatter(height[chosen], lpr[chosen], s=14, label=label)
ax.set_yscale("log")
ax.set_xlabel("height above the middle of the slab (Å)")
ax.set_ylabel("local prediction rigidity")
figure.legend(loc="outside upper center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# ## At the end
#
# A cluster that nobody uses ends by itself, after the time that its profile or `--idle` says.

# %%
if started_here:
    display(cluster("stop", CLUSTER))
