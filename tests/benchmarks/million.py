"""A million environments of carbon through `dlpr run`, beside a serial script.

::

    python tests/benchmarks/million.py dlpr --environments 1000000 --workers 2
    python tests/benchmarks/million.py serial --environments 20000

Frames of 64,000 atoms and of 200 (half of the environments each), SOAP with n = 10, l = 12. Each
command prints one JSON object: seconds, seconds per environment, peak memory per process. The
serial script is what one writes with ASE, featomic and scikit-matter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import yaml

SOAP = {
    "cutoff": {"radius": 5.0, "smoothing": {"type": "ShiftedCosine", "width": 0.5}},
    "density": {"type": "Gaussian", "width": 0.3},
    "basis": {
        "type": "TensorProduct",
        "max_angular": 12,
        "radial": {"type": "Gto", "max_radial": 9},
    },
}
ALPHA = 1e-8
LARGE, SMALL = 64_000, 200


def carbon(n_atoms: int, rng: np.random.Generator) -> ase.Atoms:
    """Diamond, strained and rattled: 64, 200 or 64,000 atoms."""
    repeat = {64: (2, 2, 2), SMALL: (5, 5, 1), LARGE: (20, 20, 20)}[n_atoms]
    atoms = ase.build.bulk("C", "diamond", a=3.57 * rng.uniform(0.97, 1.12), cubic=True)
    atoms = atoms.repeat(repeat)
    atoms.positions += rng.normal(0, rng.uniform(0.05, 0.25), atoms.positions.shape)
    assert len(atoms) == n_atoms
    return atoms


def write_frames(folder: Path, n_environments: int) -> None:
    """Training set of 450 frames of 64 atoms; test set of the two sizes."""
    rng = np.random.default_rng(0)
    train = [carbon(64, rng) for _ in range(450)]
    ase.io.write(folder / "train.xyz", train, format="extxyz")
    n_large = n_environments // 2 // LARGE
    for k in range(n_large):
        ase.io.write(folder / f"large-{k:03d}.xyz", carbon(LARGE, rng), format="extxyz")
    n_small = (n_environments - n_large * LARGE) // SMALL
    for k in range(0, n_small, 500):
        frames = [carbon(SMALL, rng) for _ in range(min(500, n_small - k))]
        ase.io.write(folder / f"small-{k:06d}.xyz", frames, format="extxyz")


def run_dlpr(folder: Path, workers: int, memory: str) -> dict[str, object]:
    """`dlpr run` as a user types it."""
    job = {
        "output": str(folder / "results"),
        "train": {"files": "train.xyz"},
        "test": {"carbon": {"files": _files(folder)}},
        "descriptor": {"soap": SOAP},
        "model": {"linear": {"regularizer": ALPHA}},
        "cluster": {"local": {"workers": workers, "memory_per_worker": memory}},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "dlpr"]
    plan = subprocess.run([*command, "plan", "job.yaml"], cwd=folder, capture_output=True)
    start = time.perf_counter()
    done = subprocess.run([*command, "run", "job.yaml"], cwd=folder, capture_output=True)
    seconds = time.perf_counter() - start
    sys.stderr.write(plan.stdout.decode() + plan.stderr.decode())
    sys.stderr.write(done.stdout.decode() + done.stderr.decode())
    done.check_returncode()
    start = time.perf_counter()
    subprocess.run([*command, "run", "job.yaml"], cwd=folder, capture_output=True, check=True)
    again = time.perf_counter() - start
    events = [json.loads(line) for line in (folder / "results/events.jsonl").open()]
    costs = [event["receipt"]["cost"] for event in events if event["kind"] == "task"]
    return {
        "workers": workers,
        "seconds": seconds,
        "second_run_seconds": again,
        "task_seconds": sum(cost["seconds"] for cost in costs),
        "peak_nbytes_of_a_worker": max(cost["peak_nbytes"] for cost in costs),
    }


def _files(folder: Path) -> list[str]:
    return [name for name in ("large-*.xyz", "small-*.xyz") if any(folder.glob(name))]


def run_serial(folder: Path) -> dict[str, object]:
    """ASE, featomic and scikit-matter in one process."""
    import featomic
    from skmatter.metrics import local_prediction_rigidity

    from dlpr.stages.tasks import peak_nbytes

    start = time.perf_counter()
    calculator = featomic.SoapPowerSpectrum(**SOAP)

    def features(files: list[Path]) -> list[np.ndarray]:
        rows = []
        for file in files:
            for atoms in ase.io.iread(file):
                tensor = calculator.compute([atoms]).keys_to_samples("center_type")
                tensor = tensor.keys_to_properties(["neighbor_1_type", "neighbor_2_type"])
                rows.append(np.array(tensor.block().values))
        return rows

    x_train = features([folder / "train.xyz"])
    x_test = features([*sorted(folder.glob("large-*.xyz")), *sorted(folder.glob("small-*.xyz"))])
    lpr, _ = local_prediction_rigidity(x_train, x_test, ALPHA)
    return {
        "seconds": time.perf_counter() - start,
        "peak_nbytes_of_a_worker": peak_nbytes(),
        "environments": sum(map(len, lpr)),
    }


def main() -> None:
    """Make frames, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("dlpr", "serial"))
    parser.add_argument("--environments", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory-per-worker", default="4GiB")
    options = parser.parse_args()
    os.environ.pop("OPENBLAS_CORETYPE", None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_frames(folder, options.environments)
        if options.what == "dlpr":
            report = run_dlpr(folder, options.workers, options.memory_per_worker)
        else:
            report = run_serial(folder)
    report["environments"] = options.environments
    report["load"] = os.getloadavg()
    report["milliseconds_per_environment"] = 1e3 * report["seconds"] / options.environments
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
