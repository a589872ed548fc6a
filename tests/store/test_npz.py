"""Arrays of a part: aligned, mapped, read-only, and every byte of them checked."""

from __future__ import annotations

import io
import mmap
import os
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpr.store.files import read_arrays, write_arrays

ARRAYS: dict[str, Any] = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "count": np.arange(10, dtype=np.int64),
    "nothing": np.empty((0, 3)),
}


def test_npz_bytes_depend_on_the_arrays_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write_arrays(tmp_path / "a.npz", ARRAYS)
    monkeypatch.setattr("time.time", lambda: 1e9)
    second = write_arrays(tmp_path / "b.npz", {k: v.copy() for k, v in ARRAYS.items()})
    assert first == second
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


DTYPES = ["float64", "float32", "int64", "int32", "uint8", "bool", "<U5"]


@settings(deadline=None, max_examples=50)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=4),
    dtype=st.sampled_from(DTYPES),
    order=st.sampled_from("CF"),
    names=st.lists(st.text("ab.1", min_size=1, max_size=70), min_size=4, max_size=4, unique=True),
)
def test_arrays_come_back_aligned_read_only_and_where_they_lie(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: list[list[int]],
    dtype: str,
    order: Literal["C", "F"],
    names: list[str],
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "x.npz"
    rng = np.random.default_rng(1)
    arrays = {
        name: np.asarray(rng.integers(0, 2, shape).astype(dtype), order=order)
        for name, shape in zip(names, shapes, strict=False)
    }
    checks = write_arrays(path, arrays)
    found = read_arrays(path, checks)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert found[name].flags.f_contiguous == array.flags.f_contiguous
        assert found[name].ctypes.data % 64 == 0 or not array.size
        assert not found[name].flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            found[name].flags.writeable = True
        assert isinstance(_owner(found[name]), mmap.mmap)
    with np.load(path) as other:  # what the rest of the world reads
        assert list(other) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(other[name], array, strict=True)


def _owner(array: Any) -> Any:
    """What holds the bytes of an array."""
    while isinstance(array, np.ndarray | memoryview):
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return array


def test_some_arrays_of_a_file_are_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    checks = write_arrays(path, ARRAYS)
    assert list(read_arrays(path, checks, ("count", "unknown"))) == ["count"]
    assert read_arrays(path, checks, ()) == {}
    flipped = bytearray(path.read_bytes())
    flipped[flipped.index(ARRAYS["matrix"].tobytes())] ^= 1
    path.write_bytes(flipped)
    np.testing.assert_array_equal(read_arrays(path, checks, ("count",))["count"], ARRAYS["count"])
    with pytest.raises(ValueError, match="content of matrix does not match"):
        read_arrays(path, checks, ("matrix",))


def test_checks_are_those_of_the_bytes_that_numpy_writes(tmp_path: Path) -> None:
    plain = io.BytesIO()
    np.save(plain, ARRAYS["matrix"])
    checks = write_arrays(tmp_path / "x.npz", ARRAYS)
    assert checks["matrix"] == google_crc32c.value(plain.getvalue())


def test_a_file_that_is_replaced_keeps_its_arrays_for_those_who_have_it(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    before = read_arrays(path, write_arrays(path, {"x": np.zeros(9)}))["x"]
    after = read_arrays(path, write_arrays(path, {"x": np.ones(9)}))["x"]
    path.unlink()
    assert (before.tolist(), after.tolist()) == ([0.0] * 9, [1.0] * 9)


def test_objects_are_never_pickled(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        write_arrays(tmp_path / "x.npz", {"x": np.array([{}])})
    assert list(tmp_path.iterdir()) == []


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    arrays = {"count": np.arange(10, dtype=np.int8)}
    checks = write_arrays(path, arrays)
    good = path.read_bytes()
    harmless = 0
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            path.write_bytes(bad)
            try:
                found = read_arrays(path, checks=checks)
            except (ValueError, OSError):
                continue
            harmless += 1
            np.testing.assert_equal(found, arrays, err_msg=f"byte {position}, bit {bit}")
    assert harmless < 4 * len(good), "the zip format's own dates, attributes and versions"


def test_a_flipped_shape_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    checks = write_arrays(path, {"x": np.arange(1000.0)})
    path.write_bytes(path.read_bytes().replace(b"(1000,)", b"(0000,)"))
    with pytest.raises(ValueError, match="content of x does not match"):
        read_arrays(path, checks)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files_are_noticed(tmp_path: Path, part: float) -> None:
    path = tmp_path / "x.npz"
    checks = write_arrays(path, ARRAYS)
    os.truncate(path, int(part * path.stat().st_size))
    with pytest.raises(ValueError, match=r".+"):
        read_arrays(path, checks)


def test_another_file_of_the_same_size_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    checks = write_arrays(path, ARRAYS)
    write_arrays(path, {**ARRAYS, "matrix": ARRAYS["matrix"] + 1})
    with pytest.raises(ValueError, match="content of matrix does not match"):
        read_arrays(path, checks)
    write_arrays(path, {**ARRAYS, "another": np.ones(1)})
    with pytest.raises(ValueError, match="not those that were written"):
        read_arrays(path, checks, ("count",))
