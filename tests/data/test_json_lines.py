"""Files of JSON lines: appended to, cut off by a kill, and read."""

from __future__ import annotations

import errno
import os
import random

import pytest

from hf_captioners.data import json_lines
from hf_captioners.data.json_lines import JsonLines, NameSet, read_json_lines

RECORDS = [{"image": "a.jpg", "caption": "ein Hund läuft"}, {"image": "b\udc80.jpg", "error": "no\nfile"}]


def test_every_cut_leaves_whole_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    with JsonLines(path) as lines:
        for record in RECORDS:
            lines.append(record)
    content = path.read_bytes()
    assert content.count(b"\n") == 2
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert list(read_json_lines(path)) == RECORDS[:whole]
        with JsonLines(path) as lines:
            for record in RECORDS[whole:]:
                lines.append(record)
        assert path.read_bytes() == content


def test_long_line_without_an_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"image": 1}\n' + b"x" * 3_000_000)
    JsonLines(path).close()
    assert path.read_bytes() == b'{"image": 1}\n'


def test_full_disk_takes_nothing_away(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path)
    lines.append(RECORDS[0])

    class Full:
        def __init__(self, file):
            self.file, self.truncate, self.seek = file, file.truncate, file.seek

        def write(self, line):
            self.file.write(line[:5])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = lines._file
    lines._file = Full(file)
    with pytest.raises(OSError, match=r"No space left.*a\.jsonl"):
        lines.append(RECORDS[1])
    lines._file = file
    lines.append(RECORDS[1])
    lines.close()
    assert list(read_json_lines(path)) == RECORDS


@pytest.mark.parametrize("line, message", [("{", "not JSON"), ("[1]", "expected an object, found list")])
def test_damaged_lines_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"image": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: {message}"):
        list(read_json_lines(path))


def test_no_file_or_no_regular_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        JsonLines(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        list(read_json_lines(tmp_path / "none"))


def test_names_against_a_set():
    names = {f"folder/{number}.jpg" for number in range(3000)} | set(range(100))
    compact = NameSet(names)
    assert len(compact) == len(names)
    for name in [*names, "folder/3000.jpg", "5", 100, -1, "\udc80"]:
        assert (name in compact) == (name in names)
    assert "a" not in NameSet()


def test_names_that_are_added_one_by_one(monkeypatch):
    monkeypatch.setattr(json_lines, "_NEW_NAMES", 4)
    draw = random.Random(0)
    names, expected = NameSet(["0", "5"]), {"0", "5"}
    for _ in range(60):
        name = str(draw.randrange(30))
        assert names.add(name) == (name not in expected)
        expected.add(name)
        assert len(names) == len(expected) and all(
            (str(place) in names) == (str(place) in expected) for place in range(30)
        )
