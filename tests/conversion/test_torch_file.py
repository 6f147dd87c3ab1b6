"""Files of `torch.save`: every format and protocol is read; claims are checked before they are believed."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_captioners.conversion.safe_load import CheckpointError, load_checkpoint

FORMATS = [(zipped, protocol) for zipped in (True, False) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


@pytest.mark.parametrize(("zipped", "protocol"), FORMATS)
def test_equals_what_was_saved(tmp_path: Path, zipped: bool, protocol: int) -> None:
    base = torch.arange(24.0)
    state = {
        "transposed": base.view(4, 6).T,
        "part": base[3:11:2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(3, requires_grad=True)),
        "attribute": torch.nn.Parameter(torch.ones(2)),
        **{str(dtype): torch.arange(7).to(dtype) for dtype in DTYPES},
    }
    state["attribute"].kind = "mine"
    options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": zipped}
    torch.save({"model": state}, tmp_path / "x.pth", **options)
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.uint64])
def test_newer_dtypes(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(5).to(dtype)
    torch.save({"a": tensor}, tmp_path / "x.pth")
    assert load_checkpoint(tmp_path / "x.pth")["a"].view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()


def rewritten(tmp_path: Path, change: Any, **options: Any) -> Path:
    """A file of torch.save, with each member passed through `change(name, content)`."""
    torch.save({"a": torch.ones(4)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as old, zipfile.ZipFile(tmp_path / "y.pth", "w", **options) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return tmp_path / "y.pth"


def test_rewritten_without_alignment(tmp_path: Path) -> None:
    assert load_checkpoint(rewritten(tmp_path, lambda name, content: content))["a"].tolist() == [1, 1, 1, 1]


def test_a_pickle_that_is_deflated(tmp_path: Path) -> None:
    path = rewritten(
        tmp_path,
        lambda name, content: bytes(10**7) if name.endswith(".pkl") else content,
        compression=zipfile.ZIP_DEFLATED,
    )
    assert path.stat().st_size < 20_000
    with pytest.raises(CheckpointError, match=r"'x/data\.pkl' is compressed or encrypted; torch.save writes neither"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: content[:8] if name.endswith("data/0") else content, "16 bytes, but there are 8"),
        (lambda name, content: None if name.endswith("data/0") else content, "16 bytes, but there are 0"),
        (lambda name, content: b"big" if name.endswith("byteorder") else content, "another order of bytes"),
        (lambda name, content: None if name.endswith(".pkl") else content, "with 0 data.pkl"),
        (lambda name, content: content[:-1] if name.endswith(".pkl") else content, "y.pth"),
    ],
)  # fmt: skip
def test_damaged(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(rewritten(tmp_path, change))


def test_code_of_torchscript(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="is a TorchScript archive with code"):
        load_checkpoint(tmp_path / "x.pth")


def test_storages_that_overlap(tmp_path: Path) -> None:
    """Two entries of the directory that point at the same bytes."""
    torch.save({"a": torch.ones(64), "b": torch.zeros(64)}, tmp_path / "x.pth")
    content = bytearray((tmp_path / "x.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        first = archive.getinfo("x/data/0").header_offset
    entry = content.rindex(b"x/data/1") - 46
    content[entry + 42 : entry + 46] = struct.pack("<I", first)
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="storages that overlap"):
        load_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, (2, 10**12), (0, 0)), r"claims shape \[2, 1000000000000\]"),
        ((15, (2,), (1,)), "claims shape"),
        ((-1, (2,), (1,)), "which no tensor has"),
        ((0, (2,), (-1,)), "which no tensor has"),
        ((0, (True,), (1,)), "which no tensor has"),
        ((0, (2, 2), (1,)), "has 2 sizes and 1 strides"),
        ((0, (1,) * 65, (1,) * 65), "has 65 sizes"),
        ((0, (2**64,), (1,)), "which no tensor has"),
        ((0, [2], (1,)), "from something that is no storage"),
    ],
)
def test_tensors_that_cannot_be(tmp_path: Path, arguments: Any, message: str) -> None:
    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (torch.ones(4).untyped_storage(), *arguments, False, None)

    torch.save({"a": Tensor()}, tmp_path / "x.pth")
    # the storage is of bytes: 16 of them
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.pth")


def test_legacy_files_cut_at_every_place(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    for length in range(0, len(content), 5):
        (tmp_path / "x.pth").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            load_checkpoint(tmp_path / "x.pth")


def test_names_in_pickles_are_not_imported(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1), "b": 1}, buffer)
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pth")
    for name in ("this.s", "antigravity.x"):
        module, attribute = name.split(".")
        code = f"c{module}\n{attribute}\n)R.".encode()

        def change(member: str, content: bytes, code: bytes = code) -> bytes:
            return code if member.endswith(".pkl") else content

        with pytest.raises(CheckpointError, match=rf"holds a {module}.{attribute}, and objects are not loaded"):
            load_checkpoint(rewritten(tmp_path, change))
