"""What gradients need of memory, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from descriptors_cases import FAR, HYPERS, LODE, RADIAL

MEMORY = """
import sys
from pathlib import Path
from descriptors_cases import HYPERS, random_piece
from test_descriptors_gradients import Linear
from test_descriptors_gradients_memory import deep
from dlpr.descriptors import descriptor
from dlpr.descriptors.gradients import derivative_nbytes, derivative_rows

def read(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])

kind, (n_atoms, max_angular, calls) = sys.argv[1], map(int, sys.argv[2:])
made = descriptor(deep(kind, max_angular), [6])
model = Linear(made)
wanted = {"forces": True, "stress": made.lacks("stress") is None}
piece = random_piece(n_atoms, [6], 1, density=0.3)
for _ in range(20):
    first = piece if calls > 1 else random_piece(3, [6], 0)
    derivative_rows(made, first, model, **wanted)
before = read("VmRSS")
for _ in range(calls):
    rows = derivative_rows(made, piece, model, **wanted)
sizes = (3 * n_atoms + 6, n_atoms, 0.53, n_atoms / 0.3)
promised = derivative_nbytes(made, *sizes, model.raw_widths, **wanted)
print((read("VmRSS") if calls > 1 else read("VmHWM")) - before, promised, rows.forces.nbytes)
"""


def deep(kind, max_angular):
    """A section with a basis of some size."""

    def of(hypers):
        basis = {**hypers["basis"], "max_angular": max_angular}
        basis["radial"] = {**basis["radial"], "max_radial": max_angular}
        return {**hypers, "basis": basis}

    soap, lode = {"soap": of(HYPERS)}, {"lode": {**FAR["lode"], **of(LODE)}}
    pair = {"radial": RADIAL}
    return {"soap": soap, "lode": lode, "parts": {"parts": {"a": soap, "b": lode, "c": pair}}}[kind]


def run_alone(kind, *arguments):
    folder = str(Path(__file__).parent)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([folder, *sys.path]))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return map(int, done.stdout.split())


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("kind", ["soap", "lode", "parts"])
def test_memory_stays_within_the_promise(kind):
    used, promised, returned = run_alone(kind, 60, 8, 1)
    assert returned < used <= promised < 4 * used


@needs_proc
@pytest.mark.parametrize("kind", ["soap", "parts"])
def test_calls_leave_no_memory_behind(kind):
    growth, _, _ = run_alone(kind, 24, 1, 50)
    assert growth < 2**19
