"""Files that may be opened, and errors of the system that Rust's libraries hide."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from hf_captioners.data.files import locked, regular_file, settle, system_errors, write_whole


def test_only_regular_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "broken").symlink_to("nothing")
    os.mkfifo(tmp_path / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name in ("file", "link"):
        assert regular_file(tmp_path / name, "vocabulary") == tmp_path / name
    for name in ("nothing", "broken"):
        with pytest.raises(FileNotFoundError, match=f"vocabulary not found: .*{name}"):
            regular_file(tmp_path / name, "vocabulary")
    for name in ("fifo", "socket", "."):
        with pytest.raises(OSError, match="expected a vocabulary, found something that is not a regular file"):
            regular_file(tmp_path / name, "vocabulary")
    server.close()


def test_a_full_disk_is_an_os_error() -> None:
    """`/dev/full` is a disk without room."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError) as error, system_errors("model"):
        Tokenizer(models.WordLevel({"a": 0})).save("/dev/full")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "model")


def test_safetensors_without_a_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        write_whole(tmp_path / "nothing" / "x", lambda path: save_file({"a": np.zeros(2)}, path))
    assert error.value.errno == errno.ENOENT


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """One writes the file while another is at it: both succeed, and the last one wins."""
    path = tmp_path / "x"

    def write_another(temporary: Path) -> None:
        temporary.write_text("first")
        write_whole(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    write_whole(path, write_another)
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_file_is_as_readable_as_others(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "x", lambda path: save_file({"a": np.zeros(2)}, path))
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / f".x.{'0' * 32}.tmp"
    left.mkdir()
    (left / "x").write_text("half")
    write_whole(tmp_path / "x", lambda path: path.write_text("whole"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_locked_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BlockingIOError, match="in use by another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), system_errors("model"):
        raise ValueError("mine")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_written_is_readable_as_the_mask_has_it(tmp_path: Path, mask: int) -> None:
    """safetensors makes files that their owner alone may read, whatever the mask."""
    before = os.umask(mask)
    try:
        save_file({"a": np.zeros(2)}, tmp_path / "bare")
        write_whole(tmp_path / "whole", lambda path: save_file({"a": np.zeros(2)}, path))
        (tmp_path / "folder").mkdir()
        save_file({"a": np.zeros(2)}, tmp_path / "folder" / "model")
        settle(tmp_path / "folder")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("bare", "whole", "folder/model")]
    assert modes == [0o600, 0o666 & ~mask, 0o666 & ~mask]
