"""Which stages of a job are finished already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from dlpr.engine.executors import Note
from dlpr.engine.pipeline import Pipeline
from dlpr.engine.workspace import Workspace
from dlpr.store.folder import Receipt, StageFolder


class _Missing(Exception):
    """A stage has something to do."""


class _Idle:
    """An executor that does nothing, and says so."""

    def run(
        self, folder: StageFolder, tasks: Sequence[int], nbytes: int, note: Note = print
    ) -> Iterator[Receipt]:
        raise _Missing

    def require(self, nbytes: int) -> None:
        """Nothing will run."""

    def close(self) -> None:
        """Nothing was started."""


def reused(steps: Pipeline) -> list[str]:
    """Stages of the job that are finished already, up to the first that is not."""
    workspace = Workspace(steps.workspace.output, _Idle())
    with suppress(_Missing):
        Pipeline(steps.job, workspace, steps.kernel).result()
        return list(workspace.used)
    return list(workspace.used)[:-1]
