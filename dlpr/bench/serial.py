"""The script that one writes without dlpr: ASE, featomic and scikit-matter in one process.

``python -m dlpr.bench.serial FOLDER N`` reads ``train.xyz`` and the first N environments of
``test-*.xyz``, and prints one JSON object. The fit is made twice, so that what does not grow with
the test set can be told from what does.
"""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module
from pathlib import Path

import ase.io
import numpy as np
from numpy.typing import NDArray

from dlpr.bench.frames import ALPHA, SOAP
from dlpr.bench.peers import scikit_matter
from dlpr.stages.tasks import peak_nbytes


def main(folder: Path, n_environments: int) -> None:
    """Print seconds and peak memory of the training set with the fit, and of the test set."""
    calculator = import_module("featomic").SoapPowerSpectrum(**SOAP)
    local_prediction_rigidity = scikit_matter()

    def features(files: list[Path], most: int) -> list[NDArray[np.float64]]:
        found: list[NDArray[np.float64]] = []
        for file in files:
            for atoms in ase.io.iread(file):
                if sum(map(len, found)) >= most:
                    return found
                tensor = calculator.compute([atoms]).keys_to_samples("center_type")
                tensor = tensor.keys_to_properties(["neighbor_1_type", "neighbor_2_type"])
                found.append(np.array(tensor.block().values))
        return found

    marks = [time.perf_counter()]
    train = features([folder / "train.xyz"], sys.maxsize)
    marks.append(time.perf_counter())
    local_prediction_rigidity(train, train[:1], ALPHA)
    marks.append(time.perf_counter())
    held = peak_nbytes()
    test = features(sorted(folder.glob("test-*.xyz")), n_environments)
    lpr, _ = local_prediction_rigidity(train, test, ALPHA)
    marks.append(time.perf_counter())
    train_seconds, fit_seconds, test_seconds = np.diff(marks).tolist()
    report = {
        "environments": sum(map(len, lpr)),
        "fixed_seconds": train_seconds + fit_seconds,
        "test_seconds": test_seconds - fit_seconds,
        "fixed_nbytes": held,
        "peak_nbytes": peak_nbytes(),
    }
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
