"""LMDB databases without the library: what the library wrote (`fixtures/lmdb`), and what it would die of."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.lmdb_file import LmdbError, LmdbFile, is_lmdb

FIXTURE = Path(__file__).parents[1] / "fixtures" / "lmdb" / "regions.mdb.gz"
PAGE = 4096


@pytest.fixture
def content():
    """A database of lmdb 0.9: 33 keys in 6 leaves under a branch, 6 pages of long values, one key deleted."""
    return gzip.decompress(FIXTURE.read_bytes())


@pytest.fixture
def write(tmp_path):
    def written(content):
        path = tmp_path / "regions.mdb"
        path.write_bytes(content)
        return path

    return written


def test_keys_in_the_library_s_order(content, write):
    with LmdbFile(write(content)) as file:
        assert file.keys == sorted([*(str(number).encode() for number in range(1, 33)), b"keys"])
        assert len(file[b"keys"]) > 100
        with pytest.raises(KeyError):
            file[b"99"]


def test_a_folder(content, tmp_path):
    (tmp_path / "data.mdb").write_bytes(content)
    assert is_lmdb(tmp_path)
    with LmdbFile(tmp_path) as file:
        assert len(file.keys) == 33


def test_nothing_in_it(content, write):
    """The root of a database without entries is the largest number; both meta pages say so here."""
    place = 16 + 24 + 2 * 48 - 8
    for page in (0, PAGE):
        content = content[: page + place] + b"\xff" * 8 + content[page + place + 8 :]
    assert LmdbFile(write(content)).keys == []


@pytest.mark.parametrize("content", [b"", b"words", bytes(200), b"\x93NUMPY" * 50])
def test_no_database(write, content):
    path = write(content)
    assert not is_lmdb(path)
    with pytest.raises(LmdbError, match=r"regions\.mdb: no LMDB database"):
        LmdbFile(path)


def test_cut_off(content, write):
    """Any page that is missing is named, and what is still there is read; the library is killed by that."""
    whole = {key: LmdbFile(write(content))[key] for key in LmdbFile(write(content)).keys}
    seen = set()
    for pages in range(2, len(content) // PAGE):
        path = write(content[: pages * PAGE + 100])
        bad_rows = BadRows("skip")
        file = LmdbFile(path, bad_rows)
        for key in file.keys:
            try:
                assert file[key] == whole[key]
            except LmdbError as error:
                seen.add("value")
                assert "cut off, its value is behind the end of the file" in str(error)
        if bad_rows.count:
            seen.add("page")
            with pytest.raises(LmdbError, match=r"cut off, page \d+ of its tree is behind the end"):
                LmdbFile(path)
    assert seen == {"value", "page"}


@pytest.mark.parametrize("number", [0, 0x7, 0x1234, 0xFFFF])
def test_damage_is_an_error_and_nothing_else(content, write, number):
    """Kinds, sizes and places at the heads of all pages, set to other numbers: values, or an LmdbError."""
    refused = 0
    for page in range(0, len(content), PAGE):
        for place in (10, 12, 16, 24, 40):
            changed = bytearray(content)
            struct.pack_into("<H", changed, page + place, number)
            try:
                file = LmdbFile(write(changed))
                for key in file.keys:
                    file[key]
            except LmdbError:
                refused += 1
    assert refused > 5


def test_a_page_twice(content, write):
    """A branch whose second child is its first: a tree that never ends in the library's eyes."""
    metas = [struct.unpack_from("<QQQ", content, page + 16 + 24 + 2 * 48 - 8) for page in (0, PAGE)]
    root = max(metas, key=lambda meta: meta[2])[0]
    first, second = struct.unpack_from("<HH", content, root * PAGE + 16)
    changed = bytearray(content)
    changed[root * PAGE + second : root * PAGE + second + 6] = changed[root * PAGE + first : root * PAGE + first + 6]
    with pytest.raises(LmdbError, match="is in its tree twice"):
        LmdbFile(write(bytes(changed)))
