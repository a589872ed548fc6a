"""Functions of the user that a job names as "module:function": found, imported, recognized.

A process that lives on imports a module again where its file has changed, so that what it computes
is that of the code whose digest stands in the plan.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dlpr.descriptors.digests import file_digest
from dlpr.errors import JobError

_log = logging.getLogger(__name__)
_imported: dict[str, str] = {}
"""SHA-256 of the files of users' modules as they were when this process imported them."""


def imported(call: str, folder: str | None, key: str) -> Callable[..., Any]:
    """Import a function: its module's code is run.

    Parameters
    ----------
    call : str
        "module:function".
    folder : str, optional
        Where its module is, if not among the installed ones, which it does not hide.
    key : str
        Where the job names it, for messages.

    Raises
    ------
    JobError
        If the text has another form, or there is no such function.
    """
    if not re.fullmatch(r"[\w.]+:\w+", call):
        raise JobError(
            f"{key} is {call!r}; it must be text such as 'module:function'. Correct the job file."
        )
    module, _, name = call.partition(":")
    if folder is not None and folder not in sys.path:
        sys.path.append(folder)  # last: it hides nothing that is installed
        importlib.invalidate_caches()
    try:
        function = _imported_anew(module, name)
    except Exception as error:
        _log.debug("importing %s", call, exc_info=True)
        raise JobError(
            f"{key}: {call} cannot be imported: {type(error).__name__}: {error}. The module must"
            f" be installed, or a file in the folder of the job ({folder})."
        ) from error
    if not callable(function):
        raise JobError(
            f"{key}: {call} is of type {type(function).__name__}; it must be a function. Correct"
            " the job file."
        )
    found: Callable[..., Any] = function
    return found


def source_digest(
    function: Callable[..., Any], options: object = None, folder: str | None = None
) -> str:
    """SHA-256 of the file of an imported function's module, as it was then; empty without one.

    Where text in its options, in lists and mappings too, is the path of a file, absolute or from
    the job's folder, that of all these files together: what is in them may decide what it returns.
    Folders, and files that the function finds by itself, are not looked at.
    """
    home = getattr(function, "__module__", None) or ""
    own = _imported.get(home, _digest(home))
    named = [file_digest(path, str(path)) for path in _files(options, folder or "")]
    return hashlib.sha256(" ".join([own, *named]).encode()).hexdigest() if named else own


def _files(options: object, folder: str) -> Iterator[Path]:
    """Files that options name."""
    if isinstance(options, Mapping):
        options = [options[key] for key in sorted(options)]
    if isinstance(options, list):
        for one in options:
            yield from _files(one, folder)
    elif isinstance(options, str):
        with suppress(OSError):  # text that is too long for a name, or in a closed folder
            if (path := Path(folder, options)).is_file():
                yield path


def check_source(call: str, found: str, planned: str | None, what: str) -> None:
    """Refuse a module, or files of its options, that are not those that a plan was made with.

    Raises
    ------
    JobError
        With both digests.
    """
    if planned is not None and planned != found:
        raise JobError(
            f"the module of {call}, or a file that its options name, is not the one that the"
            f" {what} were planned with: the SHA-256 is {found[:12]}, then it was {planned[:12]}."
            " Run the job again, with the same files on all machines."
        )


def _imported_anew(module: str, name: str) -> Any:
    """What a module has under a name, by its file as it is now."""
    found = getattr(importlib.import_module(module), name)
    home = getattr(found, "__module__", None) or module
    if _imported.get(home, _digest(home)) != _digest(home):
        for one in dict.fromkeys((home, module)):
            importlib.reload(sys.modules[one])
        found = getattr(sys.modules[module], name)
    _imported[home] = _digest(home)
    return found


def _digest(module: str) -> str:
    """SHA-256 of the file of a module that is imported; empty where it has none."""
    path = getattr(sys.modules.get(module), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else ""
