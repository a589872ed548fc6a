"""The rooms of the house and who may enter which: ARCHITECTURE.md, checked on the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlpr

PACKAGE = Path(dlpr.__file__).parent
MODULES = {
    ".".join(("dlpr", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
MOST_LINES = 400
ENGINES = {"dask", "distributed", "dask_jobqueue"}
ROOMS = {
    "dlpr.core": {"numpy", "scipy", "threadpoolctl", "dlpr.core", "dlpr.errors"},
    "dlpr.structures": {"numpy", "scipy", "ase", "dlpr.structures", "dlpr.errors", "dlpr.units"},
    "dlpr.descriptors": {
        *("numpy", "scipy", "featomic", "metatensor", "zarr", "ase"),
        *("dlpr.descriptors", "dlpr.structures.frames", "dlpr.errors"),
    },
    "dlpr.fitted": {
        *("numpy", "ase", "dlpr.fitted", "dlpr.core", "dlpr.descriptors", "dlpr.errors"),
        *("dlpr.store.files", "dlpr.store.folder"),
        *("dlpr.structures.frames", "dlpr.structures.spatial"),
    },
    "dlpr.store": {"numpy", "zarr", "psutil", "google_crc32c", "dlpr.store", "dlpr.errors"},
    "dlpr.stages": {
        *("numpy", "zarr", "ase"),
        *("dlpr.stages", "dlpr.core", "dlpr.descriptors", "dlpr.structures", "dlpr.store"),
        *("dlpr.errors", "dlpr.units"),
    },
}
"""What a room may import beside the standard library."""


def is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def imports(path: Path) -> Iterator[str]:
    """Full names of all that a module imports, anywhere in it, but for type checkers."""
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else str(node.module)
        elif not is_type_checking(node):
            waiting += ast.iter_child_nodes(node)


def is_below(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_it_may(room: str) -> None:
    inside = [name for name in MODULES if is_below(name, room)]
    assert len(inside) > 1
    for module in inside:
        for name in imports(MODULES[module]):
            if name.partition(".")[0] not in sys.stdlib_module_names:
                allowed = any(is_below(name, place) for place in ROOMS[room])
                assert allowed, f"{module} imports {name}"


def test_only_the_engine_and_its_measurements_know_dask() -> None:
    found = {
        module
        for module, path in MODULES.items()
        if any(name.partition(".")[0] in ENGINES for name in imports(path))
    }
    assert found
    rooms = ("dlpr.engine", "dlpr.clusters", "dlpr.bench")
    assert {m for m in found if not any(is_below(m, room) for room in rooms)} == set()


def test_only_the_front_knows_the_terminal() -> None:
    for module, path in MODULES.items():
        if not any(is_below(module, room) for room in ("dlpr.cli", "dlpr.demo", "dlpr.bench")):
            names = {name.partition(".")[0] for name in imports(path)}
            assert not names & {"click", "rich"}, module


def test_the_engine_knows_no_kind_of_cluster() -> None:
    for module, path in MODULES.items():
        if is_below(module, "dlpr.engine"):
            assert not any(is_below(name, "dlpr.clusters") for name in imports(path)), module


@pytest.mark.parametrize("top", ["dlpr.cli", "dlpr.demo", "dlpr.bench", "dlpr.audit"])
def test_nobody_below_calls_the_front(top: str) -> None:
    for module, path in MODULES.items():
        front = is_below(module, top) or is_below(module, "dlpr.cli")
        if not front and module != "dlpr.__main__":
            assert not any(is_below(name, top) for name in imports(path)), module


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_short(module: str) -> None:
    assert len(MODULES[module].read_text().splitlines()) <= MOST_LINES


def test_importing_dlpr_imports_nothing_heavy() -> None:
    code = "import sys, dlpr; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "dlpr" in loaded
    heavy = {"ase", "featomic", "metatensor", "zarr", "scipy", "numpy", "pydantic", "click"}
    assert loaded & (heavy | ENGINES) == set()
