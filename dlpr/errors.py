"""What a user is told when something cannot go on.

Every message says what failed, where (file, frame, atom, key), the number found and the number
needed where there are numbers, and what to do next. The command line prints the message and exits
with ``exit_code``; a traceback is for faults of the program alone.
"""

from __future__ import annotations


class DlprError(Exception):
    """Base of all errors meant for users. Its single argument is the whole message."""

    exit_code = 1


class JobError(DlprError):
    """A job file, option or hyperparameter that cannot be used."""

    exit_code = 2


class InputError(DlprError):
    """A structure file, frame or array that cannot be used."""

    exit_code = 3


class StoreError(DlprError):
    """Something on disk that is absent, damaged, of another version, or cannot be written."""

    exit_code = 4


class CorruptPartError(StoreError):
    """The data of one finished task no longer match its receipt; the task can be done again."""

    def __init__(self, message: str, folder: str, task: int) -> None:
        super().__init__(message)
        self.folder = folder
        self.task = task

    def __reduce__(self) -> tuple[type[CorruptPartError], tuple[str, str, int]]:
        return type(self), (str(self), self.folder, self.task)


class OwnerError(StoreError):
    """The output folder belongs to another run that is alive."""


class ResourceError(DlprError):
    """More memory or disk is needed than there is."""

    exit_code = 5


class ClusterError(DlprError):
    """The scheduler or the workers cannot do what the plan needs."""

    exit_code = 6


class NumericsError(DlprError):
    """A matrix that cannot be factorized as asked."""

    exit_code = 7


class StoppedError(DlprError):
    """The run was asked to leave before its end."""

    exit_code = 75
