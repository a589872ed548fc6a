"""Functions that a job names: code of the user, imported and run as it is."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlpr.errors import JobError

_log = logging.getLogger(__name__)


def imported(call: str, folder: str | None, key: str) -> Callable[..., Any]:
    """Import the function "module:function" of a job.

    Parameters
    ----------
    call : str
    folder : str, optional
        Where its module is, if not among the installed ones.
    key : str
        Where the job names it, for messages.

    Raises
    ------
    JobError
        If it cannot be imported, or is no function.
    """
    module, _, name = call.partition(":")
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)  # last: it hides nothing that is installed
        importlib.invalidate_caches()
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        _log.debug("importing %s", call, exc_info=True)
        raise JobError(
            f"{key}: {call} cannot be imported:"
            f" {type(error).__name__}: {error}. The module must be installed, or a file in the"
            f" folder of the job ({folder})."
        ) from error
    if not callable(function):
        raise JobError(
            f"{key}: {call} is of type {type(function).__name__}; it"
            " must be a function. Correct the job file."
        )
    found: Callable[..., Any] = function
    return found


def source_digest(function: Callable[..., Any]) -> str:
    """SHA-256 of the file of a function's module."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def check_source(call: str, found: str, planned: str | None, what: str) -> None:
    """Refuse a module whose file is another than when a plan was made.

    Raises
    ------
    JobError
    """
    if planned is not None and planned != found:
        raise JobError(
            f"the module of {call} is not the one that the {what} were planned with:"
            f" its file has the SHA-256 {found[:12]}, then it was {planned[:12]}. Run"
            " the job again, with the same file on all machines."
        )
