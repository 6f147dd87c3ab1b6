"""Files that may be opened, and errors of the system that Rust's libraries hide."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from hf_captioners.data.files import regular_file, system_errors, write_whole


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


def test_other_errors_pass() -> None:
    with pytest.raises(ValueError, match="mine"), system_errors("model"):
        raise ValueError("mine")
