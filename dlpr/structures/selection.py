"""The ``where`` language: which frames a job takes, by the entries of their ``info``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

import numpy as np
from ase.data import atomic_masses, chemical_symbols

from dlpr.errors import JobError
from dlpr.structures.parse import Record
from dlpr.structures.spatial import cell_volume

COMPUTED = frozenset({"n_atoms", "volume", "density_gcc", "species"})
"""Names that every frame has; an entry of info with such a name goes first (not for species)."""
_GRAM_PER_CC = 1.66053906660
"""of 1 u/Å³"""
_LONGEST = 2000
_DEEPEST = 60
_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: tuple[type[ast.cmpop], ...] = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, *_ORDER)
_HELP = (
    "allowed are: and, or, not, comparisons, in, numbers, text, the names of info entries, "
    "n_atoms, volume, density_gcc, species, has('key'), + - * /"
)


class Where:
    """A condition on frames.

    A name that a frame lacks makes what is said of it unknown, as in SQL: neither a comparison nor
    its negation holds (``not`` of unknown is unknown), ``and`` and ``or`` follow Kleene's logic,
    and a frame is taken if the whole is true. A division by zero and an overflow give unknown too.

    Parameters
    ----------
    text : str
        For example ``density_gcc > 2.9 and config_type not in ('surface', 'dimer')``.

    Attributes
    ----------
    text : str
    names : frozenset of str
        Entries of ``info`` that the text asks for, those in ``has('key')`` included, without
        `COMPUTED`.

    Raises
    ------
    JobError
        If the text is anything else than the language, with the place.
    """

    def __init__(self, text: str) -> None:
        self.text = text = text.replace("\n", " ").strip()
        if len(text) > _LONGEST:
            raise JobError(
                f"where: {len(text)} characters, at most {_LONGEST} are read; shorten it"
            )
        try:
            self._tree = ast.parse(text, mode="eval").body
        except SyntaxError as error:
            raise self._error((error.offset or 1) - 1, str(error.msg)) from error
        except (RecursionError, MemoryError, ValueError) as error:
            raise JobError(f"where: '{text[:40]}...' cannot be parsed; simplify it") from error
        self._found: set[str] = set()
        self._check(self._tree)
        self.names = frozenset(self._found - COMPUTED)

    def __call__(self, values: Mapping[str, Any]) -> bool:
        """Whether a frame with these values is taken; see `frame_values`."""
        return self._truth(self._tree, values) is True

    def _error(self, column: int, what: str) -> JobError:
        return JobError(
            f"where: {what}, at character {column + 1} of\n  {self.text}\n  {' ' * column}^ here; "
            f"correct it in the job ({_HELP})"
        )

    def _refuse(self, node: ast.expr, what: str) -> NoReturn:
        start = len(self.text.encode()[: node.col_offset].decode(errors="replace"))
        raise self._error(start, what)

    def _check(self, node: ast.expr, depth: int = 0) -> None:
        if depth > _DEEPEST:
            self._refuse(node, f"this is nested more than {_DEEPEST} deep")
        depth += 1
        match node:
            case ast.BoolOp(values=parts):
                self._check_all(parts, depth)
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=part):
                self._check(part, depth)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                self._check_all([left, right], depth)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                self._check(left, depth)
                for link, right in zip(ops, rights, strict=True):
                    if not isinstance(link, _COMPARISONS):
                        self._refuse(node, "this comparison is not part of the language")
                    if isinstance(link, ast.In | ast.NotIn) and isinstance(
                        right, ast.Tuple | ast.List
                    ):
                        self._check_all(right.elts, depth)
                    else:
                        self._check(right, depth)
            case ast.Constant(value=bool() | int() | float() | str()):
                pass
            case ast.Name(id=name):
                self._found.add(name)
            case ast.Call(
                func=ast.Name(id="has"), args=[ast.Constant(value=str(key))], keywords=[]
            ):
                self._found.add(key)
            case _:
                self._refuse(node, "this is not part of the language")

    def _check_all(self, nodes: Iterable[ast.expr], depth: int) -> None:
        for node in nodes:
            self._check(node, depth)

    def _truth(self, node: ast.expr, values: Mapping[str, Any]) -> bool | None:
        found = self._value(node, values)
        if found is None or isinstance(found, bool):
            return found
        self._refuse(node, f"true or false is needed here, {found!r} was found")

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        """Value of an expression; None: unknown."""
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self._entry(node, name, values)
            case ast.Call(args=[ast.Constant(value=key)]):
                return key in values
            case ast.BoolOp(op=op, values=parts):
                return _kleene((self._truth(p, values) for p in parts), isinstance(op, ast.Or))
            case ast.UnaryOp(op=ast.Not(), operand=part):
                truth = self._truth(part, values)
                return None if truth is None else not truth
            case ast.UnaryOp(operand=part):
                number = self._number(part, values)
                return None if number is None else -number
            case ast.BinOp(left=left, op=binary, right=right):
                a, b = self._number(left, values), self._number(right, values)
                if a is None or b is None or (isinstance(binary, ast.Div) and b == 0):
                    return None
                try:
                    return _ARITHMETIC[type(binary)](a, b)
                except OverflowError:
                    return None
            case ast.Compare(left=left, ops=ops, comparators=rights):
                links = zip(ops, [left, *rights], rights, strict=False)
                return _kleene((self._compare(*link, values) for link in links), False)
        raise AssertionError(f"unchecked node {ast.dump(node)}")

    def _entry(self, node: ast.expr, name: str, values: Mapping[str, Any]) -> Any:
        value = values.get(name)
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str | frozenset):
            return value
        self._refuse(node, f"'{name}' is {type(value).__name__} in a frame, and no single value")

    def _number(self, node: ast.expr, values: Mapping[str, Any]) -> int | float | None:
        found = self._value(node, values)
        if found is None or (isinstance(found, int | float) and not isinstance(found, bool)):
            return found
        self._refuse(node, f"a number is needed here, {found!r} was found")

    def _compare(
        self, op: ast.cmpop, left: ast.expr, right: ast.expr, values: Mapping[str, Any]
    ) -> bool | None:
        if isinstance(op, ast.In | ast.NotIn):
            held = self._contains(left, right, values)
            return None if held is None else held is isinstance(op, ast.In)
        a, b = self._value(left, values), self._value(right, values)
        if a is None or b is None:
            return None
        for node, value in ((left, a), (right, b)):
            if isinstance(value, frozenset):
                self._refuse(node, "species is a set; ask for it with in, as 'Si' in species")
        if isinstance(op, ast.Eq | ast.NotEq):
            return bool(a == b) is isinstance(op, ast.Eq)
        if isinstance(a, str) is not isinstance(b, str):
            self._refuse(left, f"text and a number have no order ({a!r} and {b!r})")
        return bool(_ORDER[type(op)](a, b))

    def _contains(self, left: ast.expr, right: ast.expr, values: Mapping[str, Any]) -> bool | None:
        a = self._value(left, values)
        if isinstance(right, ast.Tuple | ast.List):
            members = [self._value(item, values) for item in right.elts]
            same = (None if a is None or b is None else bool(a == b) for b in members)
            return _kleene(same, True)
        b = self._value(right, values)
        if a is None or b is None:
            return None
        if isinstance(b, frozenset) or (isinstance(a, str) and isinstance(b, str)):
            return a in b
        self._refuse(right, f"in needs a list, text or species on its right, {b!r} was found")


def _kleene(parts: Iterator[bool | None], decisive: bool) -> bool | None:
    """``or`` (decisive True) or ``and`` (False) of true, false and unknown, left to right."""
    unknown = False
    for part in parts:
        if part is decisive:
            return decisive
        unknown |= part is None
    return None if unknown else not decisive


def frame_values(record: Record) -> dict[str, Any]:
    """Values of the names that a frame has: its info and what is computed from its atoms."""
    species = frozenset(chemical_symbols[z] for z in np.unique(record.number) if 0 <= z <= 118)
    values: dict[str, Any] = {"n_atoms": len(record.number), **record.info, "species": species}
    volume = float(cell_volume(record.cell))
    if volume > 0.0 and np.isfinite(volume):
        values.setdefault("volume", volume)
        counts = np.bincount(record.number.clip(0, 118), minlength=119)
        mass = float((counts * atomic_masses[:119]).sum())
        values.setdefault("density_gcc", mass / volume * _GRAM_PER_CC)
    return values


def absent_names(names: Iterable[str], seen: Mapping[str, int]) -> list[str]:
    """Say which names no frame has.

    Parameters
    ----------
    names : iterable of str
        Names that a job uses: of `Where.names`, ``keys``, ``group_by``.
    seen : mapping
        How many frames have each key.

    Returns
    -------
    list of str
        One sentence per name that no frame has, with the nearest key that some have.
    """
    known = sorted({*(key for key, count in seen.items() if count), *COMPUTED})
    said = []
    for name in sorted(set(names)):
        if not seen.get(name):
            close = get_close_matches(name, known, n=1, cutoff=0.4)
            nearest = f"nearest: '{close[0]}'" if close else f"known: {', '.join(known)}"
            said.append(f"no frame has the key '{name}'; {nearest}")
    return said
