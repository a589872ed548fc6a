"""Patterns, fingerprints, decompression, the scan for frames, and the files that are refused."""

import bz2
import gzip
import hashlib
import lzma
import os
import time

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from dlpr.errors import InputError, JobError, StoreError
from dlpr.structures import text_frames
from dlpr.structures.files import Source, expand, fingerprint, read_blocks
from dlpr.structures.index import _decompress, index_file

OPEN = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


def frames(n_frames=5):
    """Frames of 1, 2, 3... atoms."""
    return [
        Atoms(f"Si{i + 1}", np.arange(3 * (i + 1)).reshape(-1, 3), cell=[9] * 3, pbc=True)
        for i in range(n_frames)
    ]


@pytest.fixture
def xyz(tmp_path):
    path = tmp_path / "train_a.extxyz"
    write(path, frames())
    return path


def indexed(path, index=":"):
    return index_file(Source(path, index), path.with_name("scratch"))


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        indexed(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


def names(patterns, base):
    return [(s.path.name, s.index) for s in expand(patterns, base)]


def test_patterns_are_files_and_sorted_globs_with_an_index(tmp_path):
    for name in ("b.xyz", "a.xyz", "c.traj", "odd@3"):
        (tmp_path / name).write_text("x")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "d.xyz").write_text("x")
    assert names(["c.traj", "*.xyz"], tmp_path) == [("c.traj", ":"), ("a.xyz", ":"), ("b.xyz", ":")]
    assert names(["*.xyz@::10"], tmp_path) == [("a.xyz", "::10"), ("b.xyz", "::10")]
    assert names(["a.xyz@5", "a.xyz@-2:", "a.xyz@:"], tmp_path)[:2] == [
        ("a.xyz", "5"),
        ("a.xyz", "-2:"),
    ]
    assert names(["odd@3"], tmp_path) == [("odd@3", ":")]
    assert names(["deep/**/*.xyz"], tmp_path) == [("d.xyz", ":")]
    assert names([str(tmp_path / "a.xyz")], tmp_path / "deep") == [("a.xyz", ":")]
    assert expand(["a.xyz"], tmp_path)[0].path == tmp_path / "a.xyz"


@pytest.mark.parametrize("pattern", ["train_b.extxyz", "nowhere/train_a.extxyz", "train_?.xyz"])
def test_a_missing_file_and_a_glob_without_match_name_what_is_there(xyz, pattern):
    with pytest.raises(InputError) as caught:
        expand([pattern], xyz.parent)
    assert pattern in str(caught.value)
    assert "train_a.extxyz" in str(caught.value)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; write .*/\*"):
        expand(["."], tmp_path)


@pytest.mark.parametrize("index", ["", "x", "1:2:3:4", "::0", "1.5"])
def test_an_index_that_ase_does_not_know_is_refused(xyz, index):
    with pytest.raises(JobError, match="is no index of frames"):
        expand([f"{xyz.name}@{index}"], xyz.parent)


def test_fingerprint_sees_the_ends_and_in_full_the_middle(tmp_path):
    path = tmp_path / "x"
    content = bytearray(np.random.default_rng(0).bytes(400_000))
    path.write_bytes(content)
    first = fingerprint(path, full=True)
    status = path.stat()
    ends = hashlib.sha256(content[: 64 << 10] + content[-(64 << 10) :]).hexdigest()
    assert first == {
        "size": 400_000,
        "mtime_ns": status.st_mtime_ns,
        "ends_sha256": ends,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    content[200_000] ^= 1
    time.sleep(0.05)  # the system's clock of files ticks some hundred times a second
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(path) == {k: v for k, v in first.items() if k != "sha256"}
    assert fingerprint(path, full=True)["sha256"] != first["sha256"]
    content[-1] ^= 1
    path.write_bytes(content)
    assert fingerprint(path)["ends_sha256"] != ends
    short = tmp_path / "short"
    short.write_bytes(b"abc")
    assert fingerprint(short)["ends_sha256"] == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(InputError, match="cannot be read"):
        fingerprint(tmp_path / "absent")


def test_byte_ranges_are_those_of_the_frames(xyz):
    found = indexed(xyz)
    text = xyz.read_bytes()
    assert found.format == "extxyz"
    assert found.data_path == xyz
    assert found.n_atoms.tolist() == [1, 2, 3, 4, 5]
    assert found.offset[0] == 0
    assert (found.offset[1:] == (found.offset + found.nbytes)[:-1]).all()
    assert found.offset[-1] + found.nbytes[-1] == len(text)
    for start, size, n_atoms in zip(found.offset, found.nbytes, found.n_atoms, strict=True):
        lines = text[start : start + size].splitlines()
        assert len(lines) == n_atoms + 2
        assert int(lines[0]) == n_atoms


@pytest.mark.parametrize("block", [1, 7, 100])
def test_the_scan_does_not_depend_on_the_blocks(xyz, block):
    whole, pieces = indexed(xyz), text_frames.ExtxyzScan(xyz)
    text = xyz.read_bytes()
    for start in range(0, len(text), block):
        pieces.feed(text[start : start + block])
    for a, b in zip(pieces.finish(), (whole.offset, whole.nbytes, whole.n_atoms), strict=True):
        assert a.tolist() == b.tolist()


def test_blank_lines_crlf_and_no_last_newline_are_allowed(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_bytes(b"1\n\nSi 0 0 0\n\n \n2\r\nhello\r\nSi 0 0 0\r\nSi 0 0 2")
    found = indexed(path)
    assert found.n_atoms.tolist() == [1, 2]
    assert path.read_bytes()[found.offset[1] :][: found.nbytes[1]].endswith(b"Si 0 0 2")


@pytest.mark.parametrize("suffix", OPEN)
def test_compressed_text_is_indexed_in_its_plain_copy(xyz, suffix):
    packed = xyz.with_name(f"train.xyz.{suffix}")
    with OPEN[suffix](packed, "wb") as file:
        file.write(xyz.read_bytes())
    found, plain = indexed(packed), indexed(xyz)
    assert found.path == packed
    assert found.data_path == xyz.with_name("scratch")
    assert found.data_path.read_bytes() == xyz.read_bytes()
    assert found.offset.tolist() == plain.offset.tolist()
    assert sorted(p.name for p in xyz.parent.iterdir()) == ["scratch", packed.name, xyz.name]


def test_two_threads_that_decompress_one_file_are_not_in_each_others_way(tmp_path):
    scratch = tmp_path / "scratch"

    def blocks():
        yield b"first, "
        _decompress(iter([b"first, ", b"second"]), scratch)
        yield b"second"

    _decompress(blocks(), scratch)
    assert scratch.read_bytes() == b"first, second"
    assert list(tmp_path.iterdir()) == [scratch]


def test_scratch_that_cannot_be_written_is_said(xyz):
    packed = xyz.with_name("train.xyz.gz")
    packed.write_bytes(gzip.compress(xyz.read_bytes()))
    with pytest.raises(StoreError, match="another scratch folder"):
        index_file(Source(packed), xyz.parent / "nowhere" / "scratch")


@pytest.mark.parametrize("suffix", OPEN)
@pytest.mark.parametrize("damage", ["truncated", "garbage"])
@pytest.mark.parametrize("name", ["train.xyz", "train.traj"])
def test_damaged_compression_is_refused_and_leaves_no_copy(tmp_path, suffix, damage, name):
    path = tmp_path / f"{name}.{suffix}"
    rows = "".join(f"Si {x:.9f} 0 0\n" for x in np.random.default_rng(0).random(2000))
    with OPEN[suffix](path, "wb") as file:
        file.write(f"2000\n\n{rows}".encode())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else os.urandom(5000))
    refused(path, suffix, "end early or are corrupt", "copy it again")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.xyz", "a.xyz.gz", "a.traj", "POSCAR", "a.unknown", "a"])
def test_an_empty_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    refused(path, "is empty (0 bytes")


def test_a_file_of_blank_lines_is_refused(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("\n \n")
    refused(path, "only blank lines")


@pytest.mark.parametrize("content", [b"\x00\x01\x02" * 100, b"\x93\xfe\xff" * 100 + b"\n"])
@pytest.mark.parametrize("name", ["a.xyz", "a.traj", "POSCAR", "a.cif", "a.dat"])
def test_binary_garbage_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    refused(path)


def test_endless_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_frames, "_LONGEST_LINE", 1000)
    path = tmp_path / "a.xyz"
    path.write_bytes(b"7" * 2000)
    refused(path, "is not text")


def test_a_number_of_many_digits_is_no_count(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_bytes(b"7" * 5000 + b"\n")
    refused(path, "frame 0", "a number of atoms is needed")


@pytest.mark.parametrize("declared", [2, 4, 5])
def test_a_wrong_atom_count_names_frame_line_and_both_counts(xyz, declared):
    lines = xyz.read_text().splitlines(keepends=True)
    assert lines[7] == "3\n"
    lines[7] = f"{declared}\n"
    xyz.write_text("".join(lines))
    refused(xyz, "frame 2 (line 8)", f"says {declared} atoms", "3 rows")


def test_a_bad_count_line_between_whole_frames_is_named(xyz):
    lines = xyz.read_text().splitlines(keepends=True)
    lines[7] = "three\n"
    xyz.write_text("".join(lines))
    refused(xyz, "frame 2 (line 8)", "'three'")


def test_a_truncated_last_frame_names_what_is_left(xyz):
    lines = xyz.read_text().splitlines(keepends=True)
    xyz.write_text("".join(lines[:-2]))
    refused(xyz, "frame 4 (line 19)", "says 5 atoms", "after 3 of them")


def test_foreign_text_is_no_xyz(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("# LAMMPS data file\n\n8 atoms\n")
    refused(path, "frame 0 (line 1)", "'# LAMMPS data file'")


@pytest.mark.parametrize(
    ("index", "selected"),
    [(":", [0, 1, 2, 3, 4]), ("::2", [0, 2, 4]), ("3", [3]), ("-1", [4]), ("-2:", [3, 4]),
     ("::-2", [4, 2, 0])],
)  # fmt: skip
def test_index_strings_select_as_ase_does(xyz, index, selected):
    assert indexed(xyz, index).selected.tolist() == selected


@pytest.mark.parametrize("index", ["5", "-6", "5:", "3:2"])
def test_an_index_that_selects_nothing_is_refused(xyz, index):
    with pytest.raises(InputError, match=r"has 5 frames \(0 to 4\).*selects none"):
        indexed(xyz, index)


def test_other_formats_are_counted_through_ase(tmp_path):
    path = tmp_path / "a.traj"
    write(path, frames(3))
    found = indexed(path, "1:")
    assert (found.format, found.n_atoms.tolist(), found.selected.tolist()) == (
        "traj",
        [1, 2, 3],
        [1, 2],
    )
    assert found.offset.tolist() == [-1, -1, -1]


def test_truncated_vasp_and_traj_are_refused(tmp_path):
    for name, kind in (("POSCAR", "vasp"), ("a.traj", "traj")):
        path = tmp_path / name
        write(path, bulk("Si") * (2, 2, 2), format=kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * 0.6)])
        refused(path)


def test_a_format_that_ase_does_not_read_is_refused(tmp_path):
    path = tmp_path / "notes.docx"
    path.write_text("hello")
    refused(path, "no format that ASE reads")


DUMP = """ITEM: TIMESTEP
{step}
ITEM: NUMBER OF ATOMS
{n}
ITEM: BOX BOUNDS pp pp pp
0 9
0 9
0 9
ITEM: ATOMS id type x y z
1 1 0 0 0
2 1 2 0 0
"""


@pytest.mark.parametrize(("declared", "dropped"), [(1, 0), (3, 0), (2, 1)])
def test_wrong_counts_in_a_lammps_dump_are_refused(tmp_path, declared, dropped):
    # ASE itself takes these for frames of another size
    path = tmp_path / "a.lammpstrj"
    lines = (DUMP.format(step=0, n=2) + DUMP.format(step=1, n=declared)).splitlines(True)
    path.write_text("".join(lines[: len(lines) - dropped]))
    refused(path, "frame 1 (line 15)", f"says {declared} atoms", f"{2 - dropped} rows")


def test_read_blocks_gives_the_plain_content(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"abc") + gzip.compress(b"def"))
    assert b"".join(read_blocks(path)) == b"abcdef"
