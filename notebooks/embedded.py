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
# # Which predictions can you trust? On this machine
#
# A machine-learned potential predicts a total energy as a sum over atoms. The **local prediction
# rigidity** (LPR) of an atom says how firmly the training data pin down its share: the
# uncertainty of the share goes as 1/sqrt(LPR). Where the LPR is low, distrust what the model says
# of that atom, and add training structures in which atoms like it occur, best in small cells of
# few kinds of atoms.
#
# Two models of silicon: *before* has seen crystals and four-fold coordinated amorphous networks
# alone, *after* also point defects, surfaces and quenched silicon. dlpr starts workers of its own
# here, and ends them when a run is done; `attach.ipynb` uses a cluster that stays.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
import yaml
from IPython.display import display

import dlpr
from dlpr.demo import story

FOLDER = Path(os.environ.get("DLPR_NOTEBOOK_FOLDER") or tempfile.mkdtemp(prefix="dlpr-notebook-"))
WORKERS = int(os.environ.get("DLPR_NOTEBOOK_WORKERS", "2"))

# %% [markdown]
# ## Two jobs
#
# The job files of `dlpr demo`, with its test sets joined into one whose groups are the kinds of
# structures. A job can be a file or, as here, a mapping; `dlpr run before.yaml` does the same in
# a terminal.

# %%
TEST = {"test": {"files": ["data/test_*.extxyz.gz"], "group_by": "config_type"}}
jobs = {
    name: dlpr.Job.from_dict({**yaml.safe_load(path.read_text()), "test": TEST}, base=FOLDER)
    for name, path in story.write_jobs(FOLDER, WORKERS).items()
}

# %% [markdown]
# ## Two runs
#
# Run this cell again, and it returns at once: what is done is kept in the folder. *Ratio* is the
# LPR over what the regularizer alone gives: 1 where the data say nothing.

# %%
results = {name: dlpr.run(job) for name, job in jobs.items()}
display(results["before"], results["after"])

# %% [markdown]
# ## The results, with xarray
#
# A group per test set; opening reads no data.

# %%
data = {
    name: xr.open_zarr(result.path, group="test", consolidated=False)
    for name, result in results.items()
}
display(data["after"])


# %% [markdown]
# Arrays over environments and arrays over structures are tied together by `structure_offset`:
# environments of structure s are `offset[s]:offset[s+1]`.


# %%
def group_of_environments(of_set: xr.Dataset) -> np.ndarray:
    """(n_environments,) name of the group of each environment's structure."""
    of_structure = np.array(of_set.structure_group.attrs["names"])[of_set.structure_group.values]
    return np.repeat(of_structure, np.diff(of_set.structure_offset.values))


columns = {}
for name, of_set in data.items():
    by_group = of_set.environment_lpr.to_series().groupby(group_of_environments(of_set))
    columns |= {f"{name}, {q:.0%}": by_group.quantile(q) for q in (0.05, 0.5, 0.95)}
table = pd.DataFrame(columns).sort_values("before, 50%")
table["gain of the median"] = table["after, 50%"] / table["before, 50%"]
display(table.style.format("{:.2g}").set_caption("Quantiles of the LPR by kind of structure"))

# %% [markdown]
# ## Before and after
#
# The LPR spans orders of magnitude: bins on a logarithmic axis. What was low rises where the
# training set gained structures of that kind. Liquid silicon is in neither training set: it gains
# through its likeness to quenched silicon and stays low. Those are the atoms to distrust, and the
# structures to add next.

# %%
lpr = {name: of_set.environment_lpr.values for name, of_set in data.items()}
group = group_of_environments(data["after"])
kinds = {"all environments": np.full(len(group), True)}
kinds |= {kind: group == kind for kind in ("surface", "liquid")}
bins = np.geomspace(min(map(np.min, lpr.values())), max(map(np.max, lpr.values())), 40)
colors = {"before": "0.65", "after": "tab:blue"}

figure, axes = plt.subplots(len(kinds), sharex=True, figsize=(7, 6), layout="constrained")
for ax, (kind, chosen) in zip(axes, kinds.items(), strict=True):
    for name, values in lpr.items():
        ax.hist(values[chosen], bins, color=colors[name], alpha=0.7, label=name)
    ax.set_title(f"{kind} ({np.count_nonzero(chosen)})", loc="left")
    ax.set_ylabel("environments")
axes[0].legend(frameon=False)
axes[-1].set_xscale("log")
axes[-1].set_xlabel("local prediction rigidity (dimensionless)")
plt.show()

# %% [markdown]
# ## The atoms to look at first
#
# The lowest LPR after, with the file, the frame and the number of the atom in it.

# %%
after = data["after"]
offset = after.structure_offset.values
lowest = np.argsort(lpr["after"])[:10]
structure = np.searchsorted(offset, lowest, side="right") - 1
files = np.array(after.structure_source_file.attrs["names"])
display(
    pd.DataFrame(
        {
            "LPR": lpr["after"][lowest],
            "prior ratio": after.environment_prior_ratio.values[lowest],
            "group": group[lowest],
            "file": [Path(path).name for path in files[after.structure_source_file[structure]]],
            "frame": after.structure_source_frame.values[structure],
            "atom": lowest - offset[structure],
        }
    )
)
