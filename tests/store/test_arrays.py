"""Zarr arrays: any chunking, damage, and what lies on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dlpr.errors import CorruptPartError, ResourceError
from dlpr.store.arrays import (
    check_metadata,
    checksums,
    chunk_files,
    create_array,
    create_group,
    map_chunk,
    store_files,
    write_rows,
)
from dlpr.store.folder import StageFolder


def store(path: Path, values: NDArray[Any], chunk_rows: int) -> zarr.Array[Any]:
    group = create_group(path, {"made": "by a test"})
    dimensions = ("row", "column", "depth")[: values.ndim]
    array = create_array(group, "x", values.shape, values.dtype, dimensions, chunk_rows)
    for start in range(0, len(values), chunk_rows):
        write_rows(array, start, values[start : start + chunk_rows], path)
    return array


def read(path: Path) -> NDArray[Any]:
    array = zarr.open_group(str(path), mode="r", use_consolidated=False)["x"]
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    chunk_rows=st.integers(1, 12),
    dtype=st.sampled_from(["float64", "float32", "int64", "int32", "uint8", "bool"]),
    seed=st.integers(0, 99),
)
def test_any_chunking_reads_back(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    chunk_rows: int,
    dtype: str,
    seed: int,
) -> None:
    path = tmp_path_factory.mktemp("arrays") / "x.zarr"
    values = np.random.default_rng(seed).integers(0, 2, shape).astype(dtype)
    store(path, values, chunk_rows)
    np.testing.assert_array_equal(read(path), values, strict=True)
    n_chunks = 0 if 0 in shape else -(-shape[0] // chunk_rows)
    assert len(chunk_files(path)) == n_chunks


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_every_flipped_bit_and_every_truncation_of_a_chunk_raises(
    tmp_path: Path, dtype: str
) -> None:
    values = np.arange(12).reshape(6, 2).astype(dtype)
    store(tmp_path / "x.zarr", values, 3)
    (chunk, _) = chunk_files(tmp_path / "x.zarr")
    good = chunk.read_bytes()
    assert len(good) == values.nbytes // 2 + 4
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << position % 8
        chunk.write_bytes(bad)
        with pytest.raises(ValueError, match="checksum"):
            read(tmp_path / "x.zarr")
        chunk.write_bytes(good[:position])
        with pytest.raises(ValueError, match=r"checksum|reshape"):
            read(tmp_path / "x.zarr")


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "uint8"])
def test_a_mapped_chunk_is_what_zarr_reads_and_read_only(tmp_path: Path, dtype: str) -> None:
    values = np.arange(10).reshape(5, 2).astype(dtype)
    store(tmp_path / "x.zarr", values, 3)
    first, last = (map_chunk(path, (3, 2), dtype) for path in chunk_files(tmp_path / "x.zarr"))
    np.testing.assert_array_equal(first, values[:3], strict=True)
    np.testing.assert_array_equal(last[:2], values[3:], strict=True)
    assert first.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_every_flipped_bit_and_every_truncation_of_a_mapped_chunk_raises(
    tmp_path: Path, dtype: str
) -> None:
    store(tmp_path / "x.zarr", np.arange(12).reshape(6, 2).astype(dtype), 6)
    (chunk,) = chunk_files(tmp_path / "x.zarr")
    good = chunk.read_bytes()
    map_chunk(chunk, (6, 2), dtype)
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            chunk.write_bytes(bad)
            with pytest.raises(ValueError, match=r"c\.0\.0 does not match its checksum"):
                map_chunk(chunk, (6, 2), dtype)
        chunk.write_bytes(good[:position])
        with pytest.raises(ValueError, match=r"checksum|reshape"):
            map_chunk(chunk, (6, 2), dtype)
    chunk.unlink()
    with pytest.raises(FileNotFoundError):
        map_chunk(chunk, (6, 2), dtype)


def test_changed_metadata_are_noticed_before_a_chunk_is_looked_for(tmp_path: Path) -> None:
    folder = StageFolder.create(tmp_path, "fake", {}, {}, 1)
    part = folder.path / "parts" / "000000.zarr"
    store(part, np.ones((6, 2)), 3)
    check_metadata(folder, 0)  # no receipt says anything yet
    folder.write_receipt(0, checksums(store_files(part), folder.path), {}, {})
    check_metadata(folder, 0)
    path = part / "x" / "zarr.json"
    path.write_text(path.read_text().replace('"column"', '"columm"'))
    with pytest.raises(CorruptPartError, match=r"x/zarr\.json \(task 0 of fake\)") as caught:
        check_metadata(folder, 0)
    assert (caught.value.folder, caught.value.task) == (str(folder.path), 0)


def test_checksums_are_of_the_content(tmp_path: Path) -> None:
    values = np.arange(5.0)
    store(tmp_path / "x.zarr", values, 3)
    found = checksums(chunk_files(tmp_path / "x.zarr"), tmp_path)
    assert found == {
        "x.zarr/x/c.0": google_crc32c.value(values[:3].tobytes()),
        "x.zarr/x/c.1": google_crc32c.value(np.array([3.0, 4.0, np.nan]).tobytes()),
    }


def test_an_absent_chunk_reads_as_nan(tmp_path: Path) -> None:
    store(tmp_path / "x.zarr", np.ones((6, 2)), 3)
    chunk_files(tmp_path / "x.zarr")[1].unlink()
    found = read(tmp_path / "x.zarr")
    assert np.isfinite(found[:3]).all()
    assert np.isnan(found[3:]).all()


@pytest.mark.parametrize(("dtype", "fill"), [("float64", np.nan), ("int32", 0), ("bool", False)])
def test_chunks_equal_to_the_fill_value_are_written_after_reopening(
    tmp_path: Path, dtype: str, fill: float
) -> None:
    path = tmp_path / "x.zarr"
    create_array(create_group(path, {}), "x", (4,), dtype, ("row",), 2)
    assert chunk_files(path) == []
    array = zarr.open_group(str(path), mode="r+")["x"]
    assert isinstance(array, zarr.Array)
    write_rows(array, 0, np.full(4, fill, dtype), path)
    assert len(chunk_files(path)) == 2


def test_inodes_names_and_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "x.zarr"
    array = store(path, np.ones((1000, 3)), 10)
    names = sorted(entry.relative_to(path).as_posix() for entry in path.rglob("*"))
    assert len(names) == 1 + 1 + 1 + 100, "zarr.json, x, x/zarr.json, and a file a chunk"
    assert "x/c.99.0" in names
    assert array.metadata.dimension_names == ("row", "column")  # type: ignore[union-attr]
    group = zarr.open_group(str(path), mode="r")
    assert group.attrs["made"] == "by a test"
    assert group.metadata.zarr_format == 3
    assert group.metadata.consolidated_metadata is None


def test_xarray_opens_it(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray")
    values = np.arange(6.0).reshape(3, 2)
    store(tmp_path / "x.zarr", values, 2)
    with xarray.open_zarr(tmp_path / "x.zarr", consolidated=False) as data:
        assert data["x"].dims == ("row", "column")
        np.testing.assert_array_equal(data["x"].values, values)


def test_a_group_replaces_nothing(tmp_path: Path) -> None:
    store(tmp_path / "x.zarr", np.ones(3), 2)
    with pytest.raises(ValueError, match="exists"):
        create_group(tmp_path / "x.zarr", {})
    assert read(tmp_path / "x.zarr").tolist() == [1.0] * 3


def test_full_disk_is_told_to_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = store(tmp_path / "x.zarr", np.ones(3), 2)

    def full(*_: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ResourceError, match="quota is used up"):
        write_rows(array, 0, np.zeros(2), tmp_path)
    monkeypatch.undo()
    assert read(tmp_path / "x.zarr").tolist() == [1.0] * 3
    assert not list(tmp_path.rglob("*.partial"))
