"""The output folder: all or nothing, and never at the cost of what was there."""

from __future__ import annotations

import errno
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_captioners.conversion.writing import ConversionError, check_out_dir, new_folder, raise_problems

TYPE = "expansionnet_v2"


def previous_conversion(folder: Path, model_type: str = TYPE) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "model.safetensors").write_bytes(b"old")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestNewFolder:
    def test_appears_at_the_end(self, tmp_path: Path) -> None:
        out = tmp_path / "parent" / "model"
        with new_folder(out, TYPE) as folder:
            assert folder.parent == out.parent
            assert not out.exists()
            (folder / "config.json").write_text("{}")
        assert names(out) == ["config.json"]
        assert names(out.parent) == ["model"]

    def test_has_ordinary_permissions(self, tmp_path: Path) -> None:
        (tmp_path / "ordinary").mkdir()
        with new_folder(tmp_path / "model", TYPE) as folder:
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").touch(0o600)  # as safetensors makes it
        assert (tmp_path / "model").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
        modes = [(tmp_path / "model" / name).stat().st_mode for name in ("config.json", "model.safetensors")]
        assert modes[0] == modes[1]

    def test_an_empty_folder_is_used(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        with new_folder(tmp_path / "model", TYPE) as folder:
            (folder / "config.json").write_text("{}")
        assert names(tmp_path / "model") == ["config.json"]
        assert names(tmp_path) == ["model"]

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_nothing_is_left_after_an_error(self, tmp_path: Path, overwrite: bool) -> None:
        if overwrite:
            previous_conversion(tmp_path / "model")
        before = names(tmp_path)
        with pytest.raises(RuntimeError), new_folder(tmp_path / "model", TYPE, overwrite) as folder:
            (folder / "config.json").write_text("{}")
            raise RuntimeError
        assert names(tmp_path) == before
        if overwrite:
            assert (tmp_path / "model" / "model.safetensors").read_bytes() == b"old"

    def test_replaces_a_previous_conversion_whole(self, tmp_path: Path) -> None:
        out = previous_conversion(tmp_path / "model")
        with new_folder(out, TYPE, overwrite=True) as folder:
            (folder / "config.json").write_text("{}")
        assert names(out) == ["config.json"]
        assert names(tmp_path) == ["model"]

    def test_what_came_in_the_meantime_is_not_overwritten(self, tmp_path: Path) -> None:
        with pytest.raises(FileExistsError), new_folder(tmp_path / "model", TYPE):
            (tmp_path / "model").mkdir()
            (tmp_path / "model" / "thesis.txt").write_text("mine")
        assert names(tmp_path) == ["model"]
        assert names(tmp_path / "model") == ["thesis.txt"]

    def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = previous_conversion(tmp_path / "model")
        rename = Path.rename

        def failing(self: Path, target: Path) -> Path:
            if self.suffix == ".new":
                raise OSError("no space")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="no space"), new_folder(out, TYPE, overwrite=True):
            pass
        assert names(tmp_path) == ["model"]
        assert (out / "model.safetensors").read_bytes() == b"old"


KILLED = """
import os, signal, sys
from pathlib import Path
from hf_captioners.conversion import writing

def kill_at_second(self, target, rename=Path.rename, seen=[]):
    seen.append(target)
    if len(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

Path.rename = kill_at_second
with writing.new_folder(sys.argv[1], "expansionnet_v2", overwrite=True) as folder:
    (folder / "model.safetensors").write_bytes(b"new")
"""


class TestKilled:
    """Renames of a conversion that replaces another: the lock, what was there aside, what is new in its place."""

    @pytest.mark.parametrize("rename", [1, 2, 3])
    def test_the_next_run_clears_up_and_brings_back(self, tmp_path: Path, rename: int) -> None:
        out = previous_conversion(tmp_path / "model")
        run = subprocess.run([sys.executable, "-c", KILLED, str(out), str(rename)], check=False)
        assert run.returncode == -signal.SIGKILL
        visible = [name for name in names(tmp_path) if not name.startswith(".")]
        assert len(visible) == 1 and (tmp_path / visible[0] / "model.safetensors").read_bytes() == b"old"
        with pytest.raises(FileExistsError, match="is not empty"):  # found again, before any work
            check_out_dir(out, TYPE, overwrite=False)
        assert (out / "model.safetensors").read_bytes() == b"old"
        with new_folder(out, TYPE, overwrite=True) as folder:
            (folder / "model.safetensors").write_bytes(b"new")
        assert [name for name in names(tmp_path) if not name.endswith(".making")] == ["model"]
        assert (out / "model.safetensors").read_bytes() == b"new"

    def test_what_is_in_use_stays(self, tmp_path: Path) -> None:
        with new_folder(tmp_path / "model", TYPE) as first, new_folder(tmp_path / "model", TYPE) as second:
            assert first.is_dir() and first != second
            (tmp_path / f"model.old-{'0' * 32}").mkdir()
            check_out_dir(tmp_path / "model", TYPE, overwrite=False)
            assert not (tmp_path / "model").exists()  # whoever is at it may be between two renames

    def test_folders_of_others_stay(self, tmp_path: Path) -> None:
        for name in ("model.old", "model.old-1", ".model.new", ".model.x.new", f".models.{'0' * 32}.new"):
            (tmp_path / name).mkdir()
        before = names(tmp_path)
        with new_folder(tmp_path / "model", TYPE):
            pass
        assert names(tmp_path) == sorted([*before, "model"])


class TestFullDisk:
    def test_is_an_os_error_and_nothing_is_left(self, tmp_path: Path) -> None:
        """A limit on the size of files stands for the disk."""
        save = {"a": torch.zeros(1_000_000)}
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
        try:
            with pytest.raises(OSError) as error, new_folder(tmp_path / "model", TYPE) as folder:
                save_file(save, folder / "model.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert error.value.errno == errno.EFBIG and error.value.filename == str(tmp_path / "model")
        assert names(tmp_path) == []

    @pytest.mark.parametrize("name", ["config.json", None])
    def test_an_error_names_the_file_as_it_would_be_called(self, tmp_path: Path, name: str | None) -> None:
        with pytest.raises(OSError) as error, new_folder(tmp_path / "model", TYPE) as folder:
            raise OSError(errno.ENOSPC, "full", name and str(folder / name))
        assert error.value.errno == errno.ENOSPC
        assert Path(error.value.filename) == (tmp_path / "model" / name if name else tmp_path / "model")
        assert names(tmp_path) == []

    def test_errors_of_other_files_keep_their_names(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"tokens\.txt"), new_folder(tmp_path / "model", TYPE):
            raise FileNotFoundError(errno.ENOENT, "none", "tokens.txt")

    def test_an_error_while_the_folder_is_made_names_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(self: Path, *_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "no", str(self))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", refuse)
            with pytest.raises(PermissionError) as error, new_folder(tmp_path / "new" / "model", TYPE):
                pass
            assert error.value.filename == str(tmp_path / "new")
            with pytest.raises(PermissionError) as error, new_folder(tmp_path / "model", TYPE):
                pass


class TestCheckOutDir:
    def test_refuses_a_folder_with_content(self, tmp_path: Path) -> None:
        with pytest.raises(FileExistsError, match="model: is not empty; give another folder, or overwrite=True"):
            check_out_dir(previous_conversion(tmp_path / "model"), TYPE, overwrite=False)

    def test_a_place_where_nothing_can_be_made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(NotADirectoryError) as error:
            check_out_dir(tmp_path / "file" / "a" / "model", TYPE, overwrite=False)
        assert error.value.filename == str(tmp_path / "file")
        monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
        with pytest.raises(PermissionError) as refused:
            check_out_dir(tmp_path / "new" / "model", TYPE, overwrite=False)
        assert refused.value.filename == str(tmp_path)

    def test_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "model").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="is not a folder"):
                check_out_dir(tmp_path / "model", TYPE, overwrite)

    @pytest.mark.parametrize("config", [None, "{", "[]", '{"model_type": "bert"}'])
    def test_overwrite_replaces_nothing_but_a_conversion(self, tmp_path: Path, config: str | None) -> None:
        (tmp_path / "model.safetensors").write_bytes(b"")
        if config is not None:
            (tmp_path / "config.json").write_text(config)
        with pytest.raises(FileExistsError, match=r"config\.json is not of a converted expansionnet_v2; not replaced"):
            check_out_dir(tmp_path, TYPE, overwrite=True)

    def test_overwrite_spares_foreign_files_and_folders(self, tmp_path: Path) -> None:
        out = previous_conversion(tmp_path / "model")
        assert check_out_dir(out, TYPE, overwrite=True) == out.resolve()
        (out / "tokenizer.json").mkdir()
        with pytest.raises(FileExistsError, match=r"holds 'tokenizer\.json', which no conversion wrote"):
            check_out_dir(out, TYPE, overwrite=True)
        (out / "tokenizer.json").rmdir()
        (out / "notes.md").write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds 'notes\.md'"):
            check_out_dir(out, TYPE, overwrite=True)

    def test_a_link_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with new_folder(tmp_path / "link", TYPE) as folder:
            (folder / "config.json").write_text("{}")
        assert (tmp_path / "link").is_symlink()
        assert names(tmp_path / "real") == ["config.json"]


def test_raise_problems_shows_ten_and_the_number() -> None:
    raise_problems("x.pth", [])
    with pytest.raises(ConversionError) as error:
        raise_problems("x.pth", [f"p{index}" for index in range(12)])
    assert (
        str(error.value) == "x.pth: 12 problems: " + "; ".join(f"p{index}" for index in range(10)) + "; ... and 2 more"
    )
