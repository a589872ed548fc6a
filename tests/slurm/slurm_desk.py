"""A user at a site with SLURM: profiles, runs, and what they do to their jobs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kills
import yaml
from waiting import until

PATIENCE = 120.0
WORKER = {
    "partition": "debug",
    "cores": 1,
    "memory": "1536MiB",
    "walltime": "00:20:00",
    "interface": "lo",
    "scheduler": {"place": "process"},
}


def has_slurm() -> bool:
    """Whether a SLURM answers here."""
    if shutil.which("sinfo") is None:
        return False
    done = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=30)
    return done.returncode == 0 and bool(done.stdout.strip())


def slurm(*command: str) -> str:
    """What a command of SLURM says."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@dataclass
class Desk:
    """One user's folder, profiles and clusters.

    Attributes
    ----------
    folder : Path
    expected : dict of str to bytes
        What an undisturbed run on this machine gives.
    """

    folder: Path
    expected: dict[str, bytes]

    @property
    def environment(self) -> dict[str, str]:
        return {
            **kills.environment(),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "DLPR_CLUSTERS": str(self.folder / "clusters"),
        }

    def profile(self, name: str, **changes: Any) -> None:
        """Add a profile of SLURM workers."""
        path = self.folder / "config" / "dlpr" / "clusters.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        profiles = yaml.safe_load(path.read_text()) if path.exists() else {}
        path.write_text(yaml.safe_dump({**profiles, name: {"slurm": {**WORKER, **changes}}}))

    def job(self, output: str, cluster: dict[str, Any] | None = None) -> Path:
        """A job file."""
        job = {**kills.JOB, "output": str(self.folder / output)}
        job["cluster"] = cluster or {"local": {"workers": 1, "memory_per_worker": "2GiB"}}
        path = self.folder / f"{output}.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def dlpr(self, *arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start `dlpr` with arguments."""
        return subprocess.Popen(
            [sys.executable, "-m", "dlpr", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            cwd=cwd or self.folder,
        )

    def said(self, *arguments: object, code: int = 0) -> str:
        """What `dlpr` prints."""
        return self.end(self.dlpr(*arguments), code)

    def end(self, process: subprocess.Popen[str], code: int = 0) -> str:
        """What a process has printed when it ends."""
        text, _ = process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == code, text[-3000:]
        return text

    def receipts(self, output: str) -> dict[str, bytes]:
        return kills.receipts(self.folder / output)

    def wait_for_receipts(self, output: str, count: int) -> dict[str, bytes]:
        """The receipts of a run when there are so many."""
        until(lambda: len(self.receipts(output)) >= count, PATIENCE)
        return self.receipts(output)

    def check(self, output: str, *before: dict[str, bytes]) -> None:
        """The result is the undisturbed run's; no task that was finished was done again."""
        after = self.receipts(output)
        for earlier in before:
            assert [name for name, text in earlier.items() if after.get(name) != text] == []
        assert kills.published(self.folder / output) == self.expected

    def state(self, name: str) -> dict[str, Any]:
        """What a cluster says of itself."""
        path = self.folder / "clusters" / name / "state.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def worker_jobs(self, name: str = "dlpr-", state: str = "RUNNING") -> list[str]:
        """Numbers of worker jobs of a state."""
        lines = slurm("squeue", "-h", "-o", "%i|%j|%T").splitlines()
        rows = [line.split("|") for line in lines]
        return [
            number
            for number, job, now in rows
            if job.startswith(name) and not job.endswith("-scheduler") and now == state
        ]

    def clear(self) -> None:
        """End all that is left."""
        for path in (self.folder / "clusters").glob("*"):
            subprocess.run(
                [sys.executable, "-m", "dlpr", "cluster", "stop", path.name],
                env=self.environment,
                capture_output=True,
                timeout=PATIENCE,
            )
        left = slurm("squeue", "-h", "-o", "%A|%j").split()
        ours = [line.split("|")[0] for line in left if line.split("|")[1].startswith("dlpr-")]
        subprocess.run(["scancel", *ours], capture_output=True, timeout=60)
        until(lambda: not slurm("squeue", "-h"), PATIENCE)
