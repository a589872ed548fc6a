"""Sizes in bytes as people write them, and as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpr.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("4GiB", 2**32),
        ("4 GB", 4 * 10**9),
        (" 1.5 kib ", 1536),
        (".5MB", 500_000),
        ("1e3 MB", 10**9),
        ("4096", 4096),
        (4096, 4096),
        (4096.0, 4096),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_sizes(text: object, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "4G", "4 giga", "-1", "0", "0.2", "1e999", "nan", "1,5GB", 0, -1, True, None, [4]],
)
def test_sizes_refused(text: object) -> None:
    with pytest.raises(ValueError, match="needs a size of at least one byte"):
        parse_bytes(text)


@given(st.integers(1, 2**60))
def test_sizes_shown_read_back(n_bytes: int) -> None:
    shown = format_bytes(n_bytes)
    assert abs(parse_bytes(shown) - n_bytes) <= 0.051 * max(n_bytes, 1)
    assert len(shown) <= 10


def test_sizes_as_shown() -> None:
    shown = [format_bytes(n) for n in (0, 17, 1023, 1024, 2**20 - 1, 2**32, 1.5 * 2**40)]
    assert shown == ["0 B", "17 B", "1023 B", "1.0 KiB", "1.0 MiB", "4.0 GiB", "1.5 TiB"]
