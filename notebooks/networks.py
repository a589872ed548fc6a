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
# # Which local energies of a neural network can you trust?
#
# A network on SOAP columns is trained here on total energies of silicon, and dlpr computes the
# **local prediction rigidity** of its atoms: from all its weights (Chong et al., JCTC 2023,
# sec. 6), and from its last layer alone (Chong et al., Faraday Discuss. 2024, sec. 3). It is held
# against the spread of a committee, another model, the way of the training, and the size of the
# training set. Needs `pip install 'dlpr[torch]'`.

# %%
import os
import sys
import tempfile
from pathlib import Path

import ase.io
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import xarray as xr
from IPython.display import display
from scipy.stats import spearmanr

import dlpr
from dlpr.demo import story

FOLDER = Path(os.environ.get("DLPR_NOTEBOOK_FOLDER") or tempfile.mkdtemp(prefix="dlpr-notebook-"))
WORKERS = int(os.environ.get("DLPR_NOTEBOOK_WORKERS", "2"))
EPOCHS = int(os.environ.get("DLPR_NOTEBOOK_EPOCHS", "600"))
MU = 1e-4
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)

# %% [markdown]
# ## A network, and jobs that name it
#
# The job names a function that builds the network and a file with its weights, which is loaded as
# weights alone. `layer` names the layer whose input are the latent features; without it, the rows
# are derivatives of the local energies by all weights.

# %%
NETS = '''
import torch


class Net(torch.nn.Module):
    """SOAP columns to two layers of sigmoids to an energy, without biases."""

    def __init__(self, n_inputs, hidden=12):
        super().__init__()
        sizes = [n_inputs, hidden, hidden]
        layers = [torch.nn.Linear(a, b, bias=False) for a, b in zip(sizes, sizes[1:])]
        self.hidden = torch.nn.ModuleList(layers)
        self.readout = torch.nn.Linear(hidden, 1, bias=False)

    def forward(self, x):
        x = 10.0 * x / x.norm(dim=-1, keepdim=True)
        for layer in self.hidden:
            x = torch.sigmoid(layer(x))
        return self.readout(x)
'''
story.write_jobs(FOLDER, WORKERS)
(FOLDER / "nets.py").write_text(NETS)
sys.path.append(str(FOLDER))
from nets import Net  # noqa: E402

SOAP = {
    "cutoff": {"radius": 4.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.5},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 3,
        "radial": {"type": "Gto", "max_radial": 4},
    },
}
frames = [
    atoms
    for name in ("base", "extra")
    for atoms in ase.io.read(FOLDER / f"data/train_{name}.extxyz.gz", ":")
]
rng = np.random.default_rng(0)
N_FRAMES = len(frames)
frames = [frames[k] for k in rng.permutation(N_FRAMES)]
energy = np.array([atoms.get_potential_energy() / len(atoms) for atoms in frames])
for n in (N_FRAMES // 4, N_FRAMES // 2, N_FRAMES):
    ase.io.write(FOLDER / f"train_{n}.extxyz", frames[:n])


def job(output, descriptor, n=N_FRAMES):
    return dlpr.Job.from_dict(
        {
            "output": output,
            "train": {"files": f"train_{n}.extxyz"},
            "test": {"test": {"files": ["data/test_*.extxyz.gz"], "group_by": "config_type"}},
            "descriptor": descriptor,
            "model": {
                "linear": {
                    "regularizer": MU,
                    "centre_species": "shared",
                    "scale": "none",
                    "baseline": {"isolated": {"Si": float(energy.mean())}},
                }
            },
            "store_test_features": True,
            "cluster": {"local": {"workers": WORKERS}},
        },
        base=FOLDER,
    )


def network(state, layer=None):
    made = {"call": "nets:Net", "options": {"n_inputs": X["test"].shape[1]}, "state": state}
    return {"network": {**made, "input": {"soap": SOAP}, "layer": layer}}


def lpr_of(*arguments):
    return dlpr.run(job(*arguments)).lpr("test")


# %% [markdown]
# ## Training
#
# The network learns energies per atom, with an explicit L2 term: the loss is the one whose Hessian
# dlpr takes, with the same regularizer. The rows of SOAP come from dlpr too.

# %%
soap = job("soap", {"soap": SOAP})
X = {
    name: torch.from_numpy(np.concatenate([part[:] for part in dlpr.featurize(soap, name).open()]))
    for name in ("train", "test")
}
n_atoms = torch.tensor([len(atoms) for atoms in frames])
target = torch.from_numpy(energy - energy.mean())
structure = torch.repeat_interleave(torch.arange(N_FRAMES), n_atoms)


def train(seed, chosen, keep=()):
    """Train on some structures; keep the weights of some epochs, and of the last."""
    torch.manual_seed(seed)
    net = Net(X["train"].shape[1])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for epoch in range(EPOCHS):
        if epoch in keep:
            torch.save(net.state_dict(), FOLDER / f"net_{epoch}.pt")
        optimizer.zero_grad()
        local = net(X["train"])[:, 0]
        mean = torch.zeros(N_FRAMES).index_add(0, structure, local) / n_atoms
        loss = 0.5 * ((mean - target)[chosen] ** 2).sum()
        loss += 0.5 * MU * sum((weight**2).sum() for weight in net.parameters())
        loss.backward()
        optimizer.step()
        schedule.step()
    error = (mean - target)[chosen].square().mean().sqrt().item()
    with torch.no_grad():
        return net, net(X["test"])[:, 0].numpy(), error


everything = torch.arange(N_FRAMES)
EARLY = EPOCHS // 4
net, local, error = train(0, everything, keep=(0, EARLY))
torch.save(net.state_dict(), FOLDER / "net.pt")
display(
    pd.Series(
        {"weights": sum(p.numel() for p in net.parameters()), "RMSE (meV/atom)": 1000 * error},
        name="trained on all structures",
    ).round(1)
)

# %% [markdown]
# ## The committee
#
# Five networks, each from weights of its own and four fifths of the structures. The spread of their
# local energies falls as the rigidity grows: of all weights, and of the last layer.

# %%
members = [
    train(1 + k, torch.from_numpy(np.sort(rng.choice(N_FRAMES, N_FRAMES * 4 // 5, False))))[1]
    for k in range(5)
]
spread = np.std(members, axis=0, ddof=1)
lpr = {"all weights": lpr_of("all", network("net.pt"))}
lpr["last layer"] = lpr_of("last", network("net.pt", "readout"))

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for ax, (name, values) in zip(axes, lpr.items(), strict=True):
    order = np.array_split(np.argsort(values), 12)
    ax.loglog(values, spread, ".", color="0.8", markersize=3)
    median = [[np.median(v[one]) for one in order] for v in (values, spread)]
    ax.loglog(*median, "o-", color="tab:blue", label="medians of twelfths")
    rank = spearmanr(values, spread)[0]
    ax.set(xlabel="LPR", title=f"{name}: rank correlation {rank:.2f}")
axes[0].set_ylabel("spread of local energies in a committee (eV)")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Two models
#
# A ridge on the same SOAP columns shares the energies out in another way. Where both models are
# rigid, they agree: the smaller of the two LPR says how far the share of an atom is a matter of the
# model (JCTC 2023, fig. 8b).

# %%
linear = dlpr.run(soap)
of_linear = xr.open_zarr(linear.path, group="test", consolidated=False)
other = of_linear.environment_energy.values
off = np.abs((local - local.mean()) - (other - other.mean()))
smaller = np.minimum(lpr["all weights"], of_linear.environment_lpr.values)
order = np.array_split(np.argsort(smaller), 12)

figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
ax.loglog(smaller, off, ".", color="0.8", markersize=3)
ax.loglog(*[[np.median(v[one]) for one in order] for v in (smaller, off)], "o-", color="tab:red")
ax.set(xlabel="smaller LPR of network and ridge", ylabel="difference of local energies (eV)")
plt.show()

# %% [markdown]
# ## Along a training, and against the size of the training set
#
# A job for every checkpoint, and for every training set with the network that was trained on it.
# With weights at random the last layer has much of the trend already (Faraday Discuss. 2024,
# fig. 3); the table says how near the final one an early epoch is, and a smaller training set.

# %%
along = {
    f"epoch {epoch}": lpr_of("last", network(f"net_{epoch}.pt", "readout")) for epoch in (0, EARLY)
}
along[f"epoch {EPOCHS}"] = lpr["last layer"]
sizes = {}
for n in (N_FRAMES // 4, N_FRAMES // 2):
    torch.save(train(0, everything[:n])[0].state_dict(), FOLDER / f"net_of_{n}.pt")
    sizes[f"{n} structures"] = lpr_of("last", network(f"net_of_{n}.pt", "readout"), n)
sizes[f"{N_FRAMES} structures"] = lpr["last layer"]

order = np.argsort(lpr["last layer"])
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for ax, found in zip(axes, (along, sizes), strict=True):
    for color, (name, values) in zip(
        ("0.75", "tab:orange", "tab:blue"), found.items(), strict=True
    ):
        ax.semilogy(values[order], ".", markersize=2, color=color, label=name)
    ax.set_xlabel("atoms, by the final LPR")
    ax.legend(frameon=False, markerscale=5)
axes[0].set_ylabel("LPR of the last layer")
plt.show()
display(
    pd.DataFrame(
        {
            "median LPR": {name: np.median(v) for name, v in {**along, **sizes}.items()},
            "rank correlation with the final": {
                name: spearmanr(v, lpr["last layer"])[0] for name, v in {**along, **sizes}.items()
            },
        }
    ).style.format("{:.2g}")
)
