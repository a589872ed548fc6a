"""How a process works with torch, so that bits are those of a plan; rows out of a torch module."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlpr.errors import InputError, JobError

CHUNK_NBYTES = 1 << 24
"""Bytes of gradients by all weights that torch holds at once."""
CHUNK_ROWS = 1024
"""Rows that go through a network at once."""
_turn = threading.RLock()


def imported(name: str, kind: str, package: str) -> Any:
    """Import a module of the extra, which knows no types without it.

    Raises
    ------
    JobError
        If it is not installed, with the command that does.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about one another
            return import_module(name)
    except ImportError as error:
        raise JobError(
            f"descriptor.{kind} needs {package}, which cannot be imported here ({error}). Install"
            f" it: pip install 'dlpr[torch]'{' mace-torch' if package == 'mace-torch' else ''}"
        ) from error


def made_by(packages: Sequence[str]) -> dict[str, str]:
    """What decides a model's last bits: versions of packages, instructions of the processor."""
    torch = imported("torch", "network", "torch")
    versions = {package: version(package) for package in packages}
    return {**versions, "cpu": torch.backends.cpu.get_cpu_capability()}


def check_made_by(planned: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse to work with another torch than the plan's.

    Raises
    ------
    JobError
        With both.
    """
    if here != planned:
        then, now = (", ".join(f"{k} {v}" for k, v in one.items()) for one in (planned, here))
        raise JobError(
            f"the features were planned with {then}; here are {now}, and results would differ in"
            " their last bits. Use the same versions and one kind of processor, or run the job"
            " again to plan anew."
        )


@contextmanager
def computing() -> Iterator[Any]:
    """Run a block with torch in one thread, in float64, without just-in-time optimization.

    These are the whole process's, and all can change bits: TorchScript optimizes a program after
    some runs of it. Threads take turns; the process's own settings come back at the end.
    """
    torch = imported("torch", "network", "torch")
    with _turn:
        n_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.jit.optimized_execution(False), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                yield torch
        finally:
            torch.set_num_threads(n_threads)
            torch.set_default_dtype(dtype)


def weights_digest(module: Any) -> str:
    """SHA-256 of all parameters and buffers of a module, with their names and shapes."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous().numpy()
        found.update(f"{name} {values.dtype} {values.shape};".encode())
        found.update(values.tobytes())
    return found.hexdigest()


def trainable(module: Any) -> dict[str, Any]:
    """Parameters of a module that a training changes, by name."""
    return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}


def layer_of(module: Any, layer: str, key: str) -> Any:
    """The layer of a name.

    Raises
    ------
    JobError
        If there is none, with the names that there are.
    """
    layers = dict(module.named_modules())
    layers.pop("")
    if layer not in layers:
        raise JobError(
            f"{key} is {layer!r}; {type(module).__name__} has the layers"
            f" {', '.join(layers) or '(none)'}. Correct the job file."
        )
    return layers[layer]


def layer_rows(layer: Any, run: Callable[[], Any], n_rows: int, key: str) -> NDArray[np.float64]:
    """Latent features: what enters a layer while its module runs.

    Of an affine layer with a bias, a column of ones follows: so the rows are the derivatives of
    what the layer puts out by its weights.

    Parameters
    ----------
    layer
        See `layer_of`.
    run
        Runs the module on n_rows environments.
    n_rows
        Environments.
    key
        Of the job file, for messages.

    Returns
    -------
    ndarray
        (n_rows, n_features)

    Raises
    ------
    JobError
        If not one row for each environment enters the layer, at once.
    """
    torch = imported("torch", "network", "torch")
    entered: list[Any] = []
    hook = layer.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    try:
        with torch.no_grad():
            run()
    finally:
        hook.remove()
    shapes = [tuple(one.shape) if torch.is_tensor(one) else type(one).__name__ for one in entered]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != n_rows:
        raise JobError(
            f"{key}: while {n_rows} environment(s) went through the model, the layer was entered"
            f" {len(shapes)} time(s), by {shapes[:3]}; needed is once, by an array ({n_rows},"
            " n_features). Name the layer whose input has a row for each environment."
        )
    rows: NDArray[np.float64] = entered[0].detach().to(torch.float64).numpy()
    if isinstance(layer, torch.nn.Linear) and layer.bias is not None:
        rows = np.column_stack([rows, np.ones(n_rows)])
    return rows


def weight_rows(module: Any, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Derivatives dy_i/dw of a network's outputs by all its trainable weights, Gauss-Newton's rows.

    Parameters
    ----------
    module
        Of one output for each row of its input.
    inputs : (n_rows, n_inputs)

    Returns
    -------
    ndarray
        (n_rows, n_weights), weights in the order of ``named_parameters``.

    Raises
    ------
    JobError
        If the network has not one output for a row.
    """
    torch = imported("torch", "network", "torch")
    weights = trainable(module)

    def output(weights: dict[str, Any], row: Any) -> Any:
        y = torch.func.functional_call(module, weights, (row[None],))
        if y.numel() != 1:
            raise JobError(
                f"{type(module).__name__} has the outputs {tuple(y.shape)} for one environment;"
                " derivatives by all weights need one. Correct the module, or name a layer."
            )
        return y.sum()

    gradient = torch.func.vmap(torch.func.grad(output), in_dims=(None, 0))
    n_weights = sum(weight.numel() for weight in weights.values())
    rows = np.empty((len(inputs), n_weights))
    step = max(1, CHUNK_NBYTES // (8 * max(1, n_weights)))
    for start in range(0, len(inputs), step):
        chunk = torch.from_numpy(np.ascontiguousarray(inputs[start : start + step]))
        found, stop = gradient(weights, chunk), 0
        for name in weights:
            begin, stop = stop, stop + weights[name].numel()
            rows[start : start + step, begin:stop] = found[name].reshape(len(chunk), -1).numpy()
    return rows


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Turn what a model raises into a message."""
    try:
        yield
    except (JobError, InputError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise InputError(
            f"{what} raised {type(error).__name__}: {text[:400]}. Correct the model, the job file"
            " or the structures."
        ) from error
