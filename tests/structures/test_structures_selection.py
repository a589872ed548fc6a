"""The where language against Python's own evaluation, and what it refuses."""

import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.errors import JobError
from dlpr.structures.parse import Record
from dlpr.structures.selection import Where, absent_names, frame_values

VALUES = {"a": 2, "b": -1.5, "n": 0, "s": "bulk", "t": "bulk_amo", "yes": True}


def numbers():
    leaf = st.sampled_from(["a", "b", "n", "3", "0.5", "-2"])
    return st.recursive(
        leaf,
        lambda part: st.one_of(
            st.tuples(part, st.sampled_from("+-*/"), part).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
            part.map(lambda p: f"-{p}"),
        ),
        max_leaves=4,
    )


def conditions():
    text = st.sampled_from(["s", "t", "'bulk'", "'amo'"])
    order = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])

    def comparison(part):
        chain = st.lists(st.tuples(order, part), min_size=1, max_size=2)
        return st.tuples(part, chain).map(lambda p: p[0] + "".join(f" {o} {x}" for o, x in p[1]))

    member = st.sampled_from(["in", "not in"])
    leaf = st.one_of(
        comparison(numbers()),
        comparison(text),
        st.tuples(text, member, text).map(" ".join),
        st.tuples(numbers(), member, st.just("(2, -1.5)")).map(" ".join),
        st.tuples(text, member, st.just("['bulk', 'x']")).map(" ".join),
        st.sampled_from(["yes", "has('a')", "has('zz')", "True", "a == 'bulk'"]),
    )
    return st.recursive(
        leaf,
        lambda part: st.one_of(
            st.tuples(part, st.sampled_from(["and", "or"]), part).map(
                lambda p: f"({p[0]}) {p[1]} ({p[2]})"
            ),
            part.map(lambda p: f"not ({p})"),
        ),
        max_leaves=5,
    )


@settings(max_examples=200, deadline=None)
@given(conditions())
def test_complete_values_give_what_python_gives(text):
    python = {**VALUES, "has": lambda key: key in VALUES, "__builtins__": {}}
    try:
        expected = eval(text, python)  # noqa: S307  (made by the strategy above)
    except ZeroDivisionError:
        return
    assert Where(text)(VALUES) is bool(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zz > 1", False),
        ("not zz > 1", False),
        ("zz != 1", False),
        ("zz not in (1, 2)", False),
        ("zz > 1 or a == 2", True),
        ("not (zz > 1 or a == 2)", False),
        ("zz > 1 and a == 3", False),
        ("not (zz > 1 and a == 3)", True),
        ("a in (zz, 2)", True),
        ("a not in (zz, 3)", False),
        ("a + zz > 0 or not a + zz > 0", False),
        ("1 < zz < 3", False),
        ("not has('zz')", True),
        ("has('zz') and zz > 'text'", False),
        ("a / n > 1 or not a / n > 1", False),
        (f"1{'0' * 400} * 1.5 > 0", False),
        ("zz", False),
    ],
)
def test_missing_names_and_division_by_zero_are_unknown(text, expected):
    assert Where(text)(VALUES) is expected


def test_names_are_those_of_info():
    where = Where("has('ref') and density_gcc > 2 and config_type == 'x' and 'Si' in species")
    assert where.names == {"ref", "config_type"}


def test_line_ends_of_a_folded_text_are_blanks():
    assert Where("a == 2\n  and s == 'bulk'\n")(VALUES) is True


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("a.real > 1", 1),
        ("a > 1 and s.upper() == 'X'", 11),
        ("__import__('os').system('x')", 1),
        ("open('x')", 1),
        ("has(s)", 1),
        ("has('a', 'b')", 1),
        ("a ** 9 > 1", 1),
        ("a % 2 == 0", 1),
        ("s[0] == 'b'", 1),
        ("a is 2", 1),
        ("[x for x in s]", 1),
        ("(lambda: 1) == 1", 2),
        ("f'{a}' == 'x'", 1),
        ("a == None", 6),
        ("a == b'x'", 6),
        ("a == (1, 2)", 6),
        ("(a := 3) > 2", 2),
        ("a > 1 if b else n", 1),
        ("s == 'é' and a.b", 14),
        ("~a > 1", 1),
    ],
)
def test_anything_else_is_refused_at_its_place(text, column):
    with pytest.raises(JobError, match=rf"where: .*character {column} of") as caught:
        Where(text)
    place = str(caught.value).splitlines()[2]
    assert place.index("^") == column + 1


@pytest.mark.parametrize("text", ["a >", "", "a = 2", "a > 1 b", "('a'", "a; b", "1\x00"])
def test_what_does_not_parse_is_refused(text):
    with pytest.raises(JobError, match="where"):
        Where(text)


@pytest.mark.parametrize(
    "text", ["-" * 1500 + "a", "(" * 500 + "a" + ")" * 500, "a+" * 500 + "a", "a" * 3000]
)
def test_deep_and_long_texts_are_refused(text):
    with pytest.raises(JobError, match="where"):
        Where(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s > 1", "no order"),
        ("s + 1 > 1", "a number is needed"),
        ("yes + 1 > 1", "a number is needed"),
        ("a", "true or false is needed"),
        ("s and yes", "true or false is needed"),
        ("1 in a", "in needs a list"),
        ("species == 'Si'", "species is a set"),
        ("v > 1", "'v' is ndarray"),
    ],
)
def test_values_of_a_wrong_kind_are_refused(text, words):
    values = {**VALUES, "species": frozenset({"Si"}), "v": np.arange(3)}
    with pytest.raises(JobError, match=words):
        Where(text)(values)


def record(info=None, cell=None):
    atoms = bulk("Si", cubic=True)
    box = atoms.cell.array if cell is None else cell
    number = atoms.numbers.astype(np.int64)
    number[0] = 8
    return Record(
        atoms.positions, number, box, atoms.pbc, np.nan, None, None, info or {}, frozenset(), "f", 0
    )


def test_computed_names():
    values = frame_values(record())
    assert (values["n_atoms"], values["species"]) == (8, {"Si", "O"})
    np.testing.assert_allclose(values["volume"], 5.43**3)
    mass = 7 * 28.085 + 15.999
    np.testing.assert_allclose(values["density_gcc"], mass / 5.43**3 / 0.602214076, rtol=1e-6)
    assert Where("'O' in species and 'C' not in species and n_atoms == 8")(values)
    given = frame_values(record({"density_gcc": 1.0}))
    assert given["density_gcc"] == 1.0
    empty = frame_values(record(cell=np.zeros((3, 3))))
    assert {"volume", "density_gcc"}.isdisjoint(empty)


def test_numpy_scalars_are_values():
    values = {"a": np.int64(2), "s": np.str_("x"), "yes": np.True_}
    assert Where("a == 2 and s == 'x' and yes and 1.5 < a")(values)


def test_absent_names_point_to_the_nearest():
    seen = {"config_type": 3, "unused": 0}
    (said,) = absent_names(["densty_gcc", "config_type"], seen)
    assert said == "no frame has the key 'densty_gcc'; nearest: 'density_gcc'"
    (said,) = absent_names(["configtype"], seen)
    assert said.endswith("nearest: 'config_type'")
    (said,) = absent_names(["q"], seen)
    assert "known: config_type, density_gcc" in said
    assert absent_names(["unused"], seen) != []
