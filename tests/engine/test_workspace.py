from dlpr.engine.workspace import differences


def test_differences_are_named_with_both_values() -> None:
    assert differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 1}, "e": [0]}) == [
        "b.c: 1 -> 2",
        "b.d: null -> 3",
        "e: [0] -> null",
    ]
