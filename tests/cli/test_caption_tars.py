"""`hf-captioners caption --out OUT --write-tar`: the archives of the pictures, with the captions of stdout added."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_captioners.cli import main
from hf_captioners.data.json_lines import JsonLines

BROKEN = "sub/n4.png"
MEMBERS = [
    ["n0.png", "n0.cls", "n1.b.png", "n1.b.json"],
    ["n2.png", "notes", "sub/n3.png", BROKEN, "sub/n4.cls"],
    ["n5.png"],
]


def content_of(name: str) -> bytes:
    if not name.endswith(".png") or name == BROKEN:
        return name.encode()
    file = io.BytesIO()
    draw = np.random.default_rng(list(name.encode()))
    Image.fromarray(draw.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def pack(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """A tar, a compressed one and a zip."""
    paths = [tmp_path / "in" / name for name in ("0.tar", "1.tar.gz", "2.zip")]
    paths[0].parent.mkdir()
    for path, names in zip(paths[:2], MEMBERS[:2], strict=True):
        pack(path, {name: content_of(name) for name in names})
    with zipfile.ZipFile(paths[2], "w") as archive:
        archive.writestr("n5.png", content_of("n5.png"))
    return paths


class Killed(BaseException):
    pass


def dying(records: int) -> Any:
    """Function that appends so many records to a file, and ends the process in the last of them."""
    append, left = JsonLines.append, [records]

    def append_and_die(lines: JsonLines, record: Any) -> None:
        append(lines, record)
        left[0] -= 1
        if not left[0]:
            raise Killed

    return append_and_die


@pytest.fixture
def run(tiny_captioner_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    def run_here(*arguments: Any) -> tuple[int, bytes, str]:
        capfdbinary.readouterr()
        options = ["--model", tiny_captioner_dir, "--batch-size", 2, "--max-new-tokens", 6]
        status = main.main(["caption", *map(str, [*arguments, *options])])
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return run_here


@pytest.fixture
def expected(run: Any, shards: list[Path]) -> dict[str, dict[str, bytes]]:
    """By their names, the members of each tar in their order, with stdout's captions behind the pictures."""
    records = [json.loads(line) for line in run(*shards)[1].splitlines()]
    captions = {record["image"]: f"{record['caption']}\n".encode() for record in records if "error" not in record}
    assert len(captions) == 5 and len(set(captions.values())) > 2
    tars: dict[str, dict[str, bytes]] = {}
    for number, (path, names) in enumerate(zip(shards, MEMBERS, strict=True)):
        members = tars[f"{number}.tar"] = {}
        for name in names:
            members[name] = content_of(name)
            if f"{path}/{name}" in captions:
                members[name.replace(".png", ".txt")] = captions[f"{path}/{name}"]
    return tars


def tars_of(out: Path) -> dict[str, dict[str, bytes]]:
    tars = {}
    for path in sorted(out.glob("*.tar*")):
        with tarfile.open(path, "r:") as archive:
            tars[path.name] = {member.name: archive.extractfile(member).read() for member in archive}
            assert len(tars[path.name]) == len(archive.getnames())
    return tars


def in_order(tars: dict[str, dict[str, bytes]]) -> list[Any]:
    return [(name, list(members.items())) for name, members in tars.items()]


@pytest.mark.parametrize("killed_behind", [None, 1, 4])
def test_members_and_captions_whatever_stops_the_run(run, shards, expected, tmp_path, monkeypatch, killed_behind):
    out = tmp_path / "captioned"
    if killed_behind is not None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(JsonLines, "append", dying(killed_behind))
            run(*shards, "--out", out, "--write-tar")
        done = tars_of(out)
        assert done == {name: expected[name] for name in done} and len(done) == (killed_behind == 4)
    status, records, err = run(*shards, "--out", out, "--write-tar")
    assert (status, records) == (1, b"") and f"{out}: {5 - (killed_behind or 0)} captioned, 1 failed" in err
    assert in_order(tars_of(out)) == in_order(expected)
    first = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "0.tar").unlink()  # it is made again, without captioning
    assert "0 captioned, 0 failed, 6 skipped" in run(*shards, "--out", out, "--write-tar")[2]
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == first


def test_failed_ones_are_captioned_again_in_their_tar(run, shards, expected, tmp_path):
    out = tmp_path / "captioned"
    run(*shards, "--out", out, "--write-tar")
    mended = {BROKEN: content_of("n5.png")}
    pack(shards[1], {name: content_of(name) for name in MEMBERS[1]} | mended)
    status, _, err = run(*shards, "--out", out, "--write-tar", "--retry-failed")
    assert status == 0 and "1 captioned, 0 failed, 5 skipped" in err
    expected["1.tar"] |= {**mended, "sub/n4.txt": expected["2.tar"]["n5.txt"]}
    assert tars_of(out) == expected


def test_two_processes(run, shards, expected, tmp_path, monkeypatch):
    out = tmp_path / "captioned"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        run(*shards, "--out", out, "--write-tar")
    assert main.main(["caption", "--merge", str(out)]) == 1  # of the broken one
    assert tars_of(out) == expected
    assert len((out / ".run" / "captions.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["in/0.tar", "--write-tar"], "--write-tar goes with --out FOLDER"),
        (["in/0.tar", "--write-tar", "--out", "a.jsonl"], "--write-tar goes with --out FOLDER"),
        (
            ["in", "--write-tar", "--out", "out"],
            "in/notes.png is no zip or tar archive; captions are added to these only",
        ),
        (["in/0.tar", "same/0.tar", "--write-tar", "--out", "out"], "would both become out/0.tar; rename one of them"),
        (["in/0.tar", "--write-tar", "--out", "in"], "is there, and not from such a run"),
        (["same/0.tar", "--write-tar", ".cls", "--out", "out"], "same/0.tar has n0.cls already; give another suffix"),
        (["in/0.tar", "--write-tar", "in/1.tar", "--out", "out"], "expected a suffix of captions such as .txt or"),
        (["in/0.tar", "--write-tar", ".png", "--out", "out"], "expected a suffix of captions"),
        (["--dataset", "in", "--write-tar", "--out", "out"], "--write-tar goes with archives, not with a data set"),
    ],
)
def test_mistakes_come_before_any_work(run, shards, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("same").mkdir()
    Path("same/0.tar").write_bytes(shards[0].read_bytes())
    Path("in/notes.png").touch()
    status, out, err = run(*arguments)
    assert (status, out) == (2, b"") and message in err
    assert not Path("out").exists()
