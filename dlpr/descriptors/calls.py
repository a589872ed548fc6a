"""Functions of the user that a job names as "module:function": found, imported, recognized."""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlpr.errors import JobError

_log = logging.getLogger(__name__)


def import_function(call: str, folder: str | None, place: str) -> Callable[..., Any]:
    """Import a function of the user: its module's code is run.

    Parameters
    ----------
    call
        "module:function".
    folder
        Where its module is, if not among the installed ones, which it does not hide.
    place
        Key of the job file, for messages.

    Raises
    ------
    JobError
        If the text has another form, or there is no such function.
    """
    if not re.fullmatch(r"[\w.]+:\w+", call):
        raise JobError(
            f"{place} is {call!r}; it must be text such as 'module:function'. Correct the job file."
        )
    module, _, name = call.partition(":")
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)  # last: it hides nothing that is installed
        importlib.invalidate_caches()
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:
        _log.debug("importing %s", call, exc_info=True)
        raise JobError(
            f"{place}: {call} cannot be imported: {type(error).__name__}: {error}. The module must"
            f" be installed, or a file in the folder of the job ({folder})."
        ) from error
    if not callable(function):
        raise JobError(
            f"{place}: {call} is of type {type(function).__name__}; it must be a function. Correct"
            " the job file."
        )
    found: Callable[..., Any] = function
    return found


def source_digest(function: Callable[..., Any]) -> str:
    """SHA-256 of the file of a function's module."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    path = getattr(module, "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""


def check_source(call: str, found: str, planned: str | None) -> None:
    """Refuse a module whose file is not the one that a plan was made with.

    Raises
    ------
    JobError
        With both digests.
    """
    if planned is not None and planned != found:
        raise JobError(
            f"the module of {call} is not the one that the features were planned with: its file"
            f" has the SHA-256 {found[:12]}, then it was {planned[:12]}. Run the job again, with"
            " the same file on all machines."
        )
