"""Two jobs that differ in their training set, and what their rigidities tell.

After sec. 4 (figure 4) of Chong et al., J. Chem. Theory Comput. 2023, doi:10.1021/acs.jctc.3c00704:
a model of crystals and perfect amorphous networks knows little about an atom with a broken bond,
until structures with such atoms join its training set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import JobError, StoreError
from dlpr.handles import Result
from dlpr.job import Job, load_job
from dlpr.stages.result import STORE
from dlpr.store.files import atomic_file
from dlpr.tables import TextTable

if TYPE_CHECKING:
    from ase import Atoms
    from distributed import Client

JOBS = {
    "before": "trained on crystals and four-fold coordinated amorphous networks alone",
    "after": "the training set has gained point defects, surfaces and quenched silicon",
}
SETS = {
    "crystal": "crystal",
    "amorphous": "amorphous",
    "vacancy": "vacancy",
    "divacancy": "divacancy",
    "interstitial": "interstitial",
    "surface": "surface",
    "amorphous_defect": "quenched",
    "liquid": "liquid",
}
"""Test sets, and what tables and pictures call them."""
BOND = 2.85
"""Å; atoms closer than this are bonded."""
DATA = Path(__file__).parent / "data"

_TRAIN = {
    "train_base": "crystals and four-fold coordinated amorphous networks",
    "train_extra": "vacancies, interstitials, surfaces, quenched amorphous silicon",
}
_JOB = """\
# {name}.yaml of `dlpr demo`: silicon,
# {what}.
# Change what you like, then: dlpr run {name}.yaml
output: {name}
train:
  group_by: config_type
  files:
{train}
test:
{test}
descriptor:
  soap:                              # featomic's own hyperparameters
    cutoff: {{radius: 4.0, smoothing: {{type: ShiftedCosine, width: 0.5}}}}
    density: {{type: Gaussian, width: 0.5, center_atom_weight: 1.0}}
    basis: {{type: TensorProduct, max_angular: 4, radial: {{type: Gto, max_radial: 6}}}}
model:
  linear: {{regularizer: 1.0e-7, rows: mean, scale: rms}}
cluster:
  local: {{workers: {workers}, threads_per_worker: 1}}
"""

Floats = NDArray[np.float64]


def job_text(name: str, workers: int) -> str:
    """The job file "before" or "after"."""
    train = [
        f"    - {f'data/{file}.extxyz.gz':<27}  # {what}"
        for file, what in list(_TRAIN.items())[: 1 + list(JOBS).index(name)]
    ]
    test = [f"  {key}: {{files: [data/test_{key}.extxyz.gz]}}" for key in SETS]
    return _JOB.format(
        name=name, what=JOBS[name], train="\n".join(train), test="\n".join(test), workers=workers
    )


def write_jobs(folder: Path, workers: int) -> dict[str, Path]:
    """Write the two job files and copy the data beside them; what is there already stays.

    Parameters
    ----------
    folder : Path
    workers : int
        That the jobs ask for.

    Returns
    -------
    dict of str to Path
        The job files. One that a user has changed is left as it is.

    Raises
    ------
    JobError
        If a job was changed so much that its results cannot be set beside the other's.
    """
    import yaml

    for source in sorted(DATA.iterdir()):
        _write(folder / "data" / source.name, source.read_bytes())
    paths = {}
    for name in JOBS:
        path = paths[name] = folder / f"{name}.yaml"
        text = job_text(name, workers)
        if path.exists():
            found, own = load_job(path), Job.from_dict(yaml.safe_load(text), base=folder)
            if (found.test, found.output) != (own.test, own.output):
                raise JobError(
                    f"{path} has other test sets or another output than the demo needs. "
                    f"`dlpr run {path}` runs it; for the demo, give another --output or remove it."
                )
            if found.settings() != own.settings():
                continue
        _write(path, text.encode())
    return paths


def _write(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        with atomic_file(path) as file:
            file.write(data)


@contextmanager
def shared_client(paths: dict[str, Path]) -> Iterator[Client | None]:
    """A client of one embedded cluster for both jobs; None where both have results already.

    Without a client, `dlpr.run` starts a cluster of its own if there is anything to do.
    """
    from dlpr.clusters import starter
    from dlpr.core.blas import blas_kernel

    jobs = [load_job(path) for path in paths.values()]
    if all((job.path(job.output) / STORE / "zarr.json").exists() for job in jobs):
        yield None
        return
    running = starter(jobs[0].cluster, jobs[0].base).start(blas_kernel())
    try:
        yield running.client
    finally:
        running.close()


@dataclass(frozen=True)
class TestSet:
    """The structures of one test set and their rigidities before and after.

    Attributes
    ----------
    name : str
    frames : list of Atoms
    lpr, ratio : (2, n_atoms) array
        LPR and prior ratio, before and after, in the order of the frames' atoms.
    """

    name: str
    frames: list[Atoms]
    lpr: Floats
    ratio: Floats

    @cached_property
    def coordination(self) -> NDArray[np.int64]:
        """(n_atoms,) neighbours within `BOND`."""
        from dlpr.demo.tersoff import coordination

        return np.concatenate([coordination(frame, BOND) for frame in self.frames])

    def atoms(self, four_fold: bool) -> NDArray[np.intp]:
        """The atoms with four neighbours, or those with another number."""
        return np.flatnonzero((self.coordination == 4) == four_fold)

    def medians(self, four_fold: bool) -> Floats:
        """Median LPR before and after; NaN if there is no such atom."""
        atoms = self.atoms(four_fold)
        return np.median(self.lpr[:, atoms], axis=1) if len(atoms) else np.full(2, np.nan)

    def gain(self, four_fold: bool) -> float:
        """Median LPR after over that before."""
        before, after = self.medians(four_fold)
        return float(after / before)


def read_sets(folder: Path) -> dict[str, TestSet]:
    """The test sets of both results, beside their structures.

    Raises
    ------
    StoreError
        If a result has other atoms than the data.
    """
    from ase.io import read

    read_frames: Any = read
    results = [Result(folder / name) for name in JOBS]
    sets = {}
    for name in SETS:
        path = folder / "data" / f"test_{name}.extxyz.gz"
        frames = read_frames(path, ":")
        n_atoms = sum(map(len, frames))
        lpr = [result.lpr(name) for result in results]
        if any(len(values) != n_atoms for values in lpr):
            raise StoreError(
                f"{path} has {n_atoms} atoms, the results {' and '.join(str(len(x)) for x in lpr)}."
                f" Remove {folder} and run the demo again."
            )
        ratio = [_column(result, name, "environment_prior_ratio") for result in results]
        sets[name] = TestSet(name, frames, np.stack(lpr), np.stack(ratio))
    return sets


def _column(result: Result, name: str, array: str) -> Floats:
    values: Any = result.open(name)[array]
    return np.asarray(values[:], np.float64)


def show_factor(factor: float) -> str:
    """A factor with two digits."""
    return f"{factor:.1f}" if factor < 10 else f"{factor:.0f}"


def comparison_table(sets: dict[str, TestSet]) -> TextTable:
    """Per test set and coordination: atoms, medians of LPR and of prior ratio, gain."""
    rows = []
    for name, found in sets.items():
        for four_fold in (True, False):
            atoms = found.atoms(four_fold)
            if len(atoms) == 0:
                continue
            before, after = found.medians(four_fold)
            ratios = np.median(found.ratio[:, atoms], axis=1)
            rows.append(
                [
                    SETS[name] if four_fold else "",
                    "four" if four_fold else "other",
                    str(len(atoms)),
                    f"{before:.1e}",
                    f"{after:.1e}",
                    f"x {show_factor(found.gain(four_fold))}",
                    *(f"{ratio:.1e}" for ratio in ratios),
                ]
            )
    numbers = ("atoms", "LPR\nbefore", "LPR\nafter", "gain", "ratio\nbefore", "ratio\nafter")
    return TextTable(
        "Local prediction rigidity before and after",
        ("test set", "bonds", *numbers),
        2,
        rows,
        f"medians; bonds: neighbours within {BOND} Å; ratio: LPR over what the regularizer "
        "alone gives, 1 where the data say nothing; quenched: the set amorphous_defect",
    )


def story_lines(sets: dict[str, TestSet]) -> list[str]:
    """What the numbers say, in a few sentences."""
    surface, quenched, liquid = (sets[n] for n in ("surface", "amorphous_defect", "liquid"))
    (low, high), perfect = surface.medians(False), sets["crystal"].medians(True)
    gain = surface.gain(False)
    return [
        "Before, the model has seen crystals and perfect amorphous networks. It gives a surface "
        f"atom with a broken bond an energy all the same, but the LPR there is {low:.1e}, "
        f"{perfect[0] / low:.0f} times below the crystal's: the data hardly say how large that "
        "atom's share is. (LPR is at least 1 where a whole training structure is made of one "
        "environment.)",
        f"After, with structures that have such atoms, it is {high:.1e}: {show_factor(gain)} times "
        f"as firm, the share's uncertainty {show_factor(np.sqrt(gain))} times smaller (it goes as "
        "1/sqrt(LPR)). The crystal, which lacked little, gains "
        f"{show_factor(sets['crystal'].gain(True))} times.",
        "Liquid silicon is in neither training set, the honest control: through its likeness to "
        f"quenched silicon its miscoordinated atoms gain {show_factor(liquid.gain(False))} times "
        f"(those of quenched silicon {show_factor(quenched.gain(False))}), yet at "
        f"{liquid.medians(False)[1]:.1e} they stay {high / liquid.medians(False)[1]:.0f} times "
        "below the surface's. Where many kinds of atoms share one energy, its sum tells little of "
        "each; small cells of few kinds tell more.",
    ]


def write_slab(path: Path, surface: TestSet) -> Path:
    """Write the first slab as extended xyz with its rigidities, for OVITO.

    The columns ``log10_lpr_*`` suit a colour map; ``coordination`` has the neighbours.
    """
    import io

    from ase.io import write

    write_frames: Any = write
    frame: Any = surface.frames[0].copy()  # type: ignore[no-untyped-call]
    for name in list(frame.arrays):
        if name not in ("numbers", "positions"):
            del frame.arrays[name]
    frame.set_array("coordination", surface.coordination[: len(frame)])
    for name, values in zip(JOBS, surface.lpr[:, : len(frame)], strict=True):
        frame.set_array(f"lpr_{name}", values)
        frame.set_array(f"log10_lpr_{name}", np.log10(values))
    text = io.StringIO()
    write_frames(text, frame, format="extxyz")
    _write(path, text.getvalue().encode())
    return path
