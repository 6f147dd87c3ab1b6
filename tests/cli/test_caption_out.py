"""`hf-captioners caption --out`: the records of stdout, whatever stopped the run and however many wrote them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from contracts.killed_captioning import caption_until_killed
from PIL import Image

from hf_captioners.cli import main
from hf_captioners.inference import record_tables

BROKEN = "n07.png"
NAMES = [f"n{number:02d}.png" for number in range(12)]


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return {name: b"no picture" if name == BROKEN else picture(seed) for seed, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pictures: dict[str, bytes]) -> list[str]:
    """A folder, a zip and a Parquet file, each with the same pictures."""
    root = tmp_path_factory.mktemp("sources")
    (root / "photos").mkdir()
    for name, content in pictures.items():
        (root / "photos" / name).write_bytes(content)
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for name, content in pictures.items():
            archive.writestr(name, content)
    cells = [{"bytes": content, "path": name} for name, content in pictures.items()]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), root / "photos.parquet")
    return [str(root / name) for name in ("photos", "photos.zip", "photos.parquet")]


@pytest.fixture
def run(tiny_captioner_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    def run_here(*arguments: Any) -> tuple[int, list[dict[str, Any]], str]:
        capfdbinary.readouterr()
        options = ["--model", tiny_captioner_dir, "--batch-size", 5, "--max-new-tokens", 6]
        status = main.main(["caption", *map(str, [*arguments, *options])])
        out, err = capfdbinary.readouterr()
        return status, [json.loads(line) for line in out.decode().splitlines()], err.decode()

    return run_here


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_source_has_the_same_captions_in_the_file_as_on_stdout(run, sources, tmp_path):
    status, expected, _ = run(*sources)
    assert status == 1 and len(expected) == 3 * len(NAMES)
    captions = [record.get("caption") for record in expected]
    assert captions[:12] == captions[12:24] == captions[24:] and captions.count(None) == 3
    out, summary = tmp_path / "captions.jsonl", tmp_path / "summary.json"
    status, records, err = run(*sources, "--out", out, "--summary", summary)
    assert (status, records) == (1, [])
    assert records_of(out) == expected
    assert "captions.jsonl: 33 captioned, 3 failed, 0 skipped" in err
    assert json.loads(summary.read_text())["captioned"] == 33
    status, _, err = run(*sources, "--out", out, "--summary", summary)
    assert status == 1 and "0 captioned, 0 failed, 36 skipped, 3 failed before; " in err
    assert json.loads(summary.read_text())["failed_before"] == 3
    assert records_of(out) == expected


def test_goes_on_behind_a_kill_and_takes_failed_ones_again(tiny_captioner_dir, run, sources, pictures, tmp_path):
    folder, out = Path(sources[0]), tmp_path / "captions.jsonl"
    _, expected, _ = run(folder)
    arguments = [folder, "--model", tiny_captioner_dir, "--out", out, "--batch-size", 5, "--max-new-tokens", 6]
    caption_until_killed(arguments, 7)
    assert len(records_of(out)) == 7
    run(folder, "--out", out)
    assert records_of(out) == expected
    (folder / BROKEN).write_bytes(picture(99))
    status, _, err = run(folder, "--out", out, "--retry-failed")
    mended, expected = records_of(out), run(folder)[1]
    (folder / BROKEN).write_bytes(pictures[BROKEN])
    assert status == 0 and "1 captioned, 0 failed, 11 skipped" in err
    assert mended == expected


def test_processes_share_the_sources(run, sources, tmp_path, monkeypatch):
    out = tmp_path / "captions.jsonl"
    _, expected, _ = run(*sources)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        if rank == 0:
            assert main.main(["caption", "--merge", str(out)]) == 2  # one is not there yet
        monkeypatch.setenv("RANK", str(rank))
        status, _, err = run(*sources, "--out", out)
        assert status == 0 and f", {1 + rank} failed, " in err  # a launcher would stop the other process
    assert not out.exists()
    assert main.main(["caption", "--merge", str(out)]) == 1
    assert records_of(out) == expected


@pytest.mark.parametrize("number", [1, 2])
def test_pictures_that_are_named_twice_have_one_record(run, sources, tmp_path, monkeypatch, number):
    out, folder = tmp_path / "captions.jsonl", Path(sources[0])
    _, expected, _ = run(folder)
    twice = [folder / NAMES[1], folder, folder / NAMES[2]]
    for rank in range(number):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(number))
        _, _, err = run(*twice, "--out", out)
    assert number == 2 or "11 captioned, 1 failed, 0 skipped, 2 named again" in err
    assert number == 1 or main.main(["caption", "--merge", str(out)]) == 1
    assert records_of(out) == [expected[1], expected[0], *expected[2:]]


def test_lines_of_progress_and_a_summary_of_stdout(run, sources, tmp_path):
    summary = tmp_path / "summary.json"
    status, records, err = run(sources[0], "--log-every", 4, "--summary", summary)
    assert status == 1 and len(records) == 12
    lines = [line for line in err.splitlines() if "/12 [" in line]
    assert [number for number in (4, 8, 12) if any(f" {number}/12 [" in line for line in lines)] == [4, 8, 12]
    assert "1 failed" in lines[-1] and "picture" in lines[-1] and len(lines) <= 4
    told = json.loads(summary.read_text())
    assert [told[name] for name in ("captioned", "failed", "skipped", "repeated")] == [11, 1, 0, 0]
    assert told["images_per_second"] == pytest.approx(12 / told["seconds"], rel=0.01)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--retry-failed"], "--retry-failed goes with --out"),
        (["--out", "a.json"], "--out a.json: expected a file such as captions.jsonl, or a folder for Parquet files"),
        (["--out", "none/a.jsonl"], "in a folder that exists"),
        (["--out", "a.jsonl", "--summary", "none/s.json"], "--summary none/s.json: expected a file in a folder that"),
        (["--out", "a.jsonl", "--coco-results", "b.json"], "--coco-results goes with stdout"),
    ],
)
def test_options_that_do_not_go_together(run, sources, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(sources[0], *arguments)
    assert status == 2 and message in err
    assert list(tmp_path.iterdir()) == []


def test_a_streaming_data_set(run, sources, pictures, tmp_path, monkeypatch):
    folder, out = tmp_path / "data" / "train", tmp_path / "captions.jsonl"
    folder.mkdir(parents=True)
    for start in range(0, 12, 5):
        cells = [{"bytes": pictures[name], "path": name} for name in NAMES[start : start + 5]]
        pyarrow.parquet.write_table(pyarrow.table({"photo": cells}), folder / f"part-{start:02d}.parquet")
    captions = [record.get("caption") for record in run(sources[0])[1]]
    dataset = ("--dataset", folder.parent, "--image-column", "photo")
    status, records, _ = run(*dataset)
    assert status == 1 and [record.get("caption") for record in records] == captions
    assert [record["image_id"] for record in records[4:6]] == ["0/4", "1/0"] and records[7]["image"] == BROKEN
    assert records[7]["error"].startswith(f"{BROKEN}: ")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        run(*dataset, "--out", out)
    assert main.main(["caption", "--merge", str(out)]) == 1
    assert records_of(out) == records
    for arguments, message in (
        ([folder], "give paths or --dataset, one of them"),
        (["--split", "test"], "Bad split: test"),
        (["--id-column", "name"], "no column 'name'; it has 'photo'"),
        (["--out", out, "--dataset", folder], "was made with dataset "),
    ):
        assert run(*dataset, *arguments)[0] == 2 and message in run(*dataset, *arguments)[2]


def test_shards_by_a_pattern_and_of_another_machine(run, sources, pictures, tmp_path):
    captions = [record.get("caption") for record in run(sources[0])[1]]
    for number in range(3):
        names = NAMES[4 * number : 4 * number + 4]
        with tarfile.open(tmp_path / f"{number:03d}.tar.gz", "w:gz") as archive:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(pictures[name])
                archive.addfile(info, io.BytesIO(pictures[name]))
        fsspec.filesystem("memory").put(str(tmp_path / f"{number:03d}.tar.gz"), f"/shards/{number:03d}.tar.gz")
    for pattern in (f"{tmp_path}/{{000..002}}.tar.gz", "memory://shards/{000..002}.tar.gz"):
        status, records, _ = run(pattern)
        assert status == 1 and [record.get("caption") for record in records] == captions
        assert records[5]["image"] == pattern.replace("{000..002}", "001") + f"/{NAMES[5]}"


def table_of(out: Path) -> list[dict[str, Any]]:
    """The records of a folder of Parquet files."""
    rows = pyarrow.parquet.read_table(out).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def test_a_folder_of_parquet_files(run, sources, tmp_path, monkeypatch):
    folder, out = Path(sources[0]), tmp_path / "captions"
    _, expected, _ = run(folder)
    monkeypatch.setattr(record_tables, "ROWS_PER_FILE", 5)
    status, records, err = run(folder, "--out", out)
    assert (status, records) == (1, []) and "captions: 11 captioned, 1 failed, 0 skipped" in err
    assert table_of(out) == expected
    status, _, err = run(folder, "--out", out, "--retry-failed")
    assert status == 1 and "0 captioned, 1 failed, 11 skipped" in err and table_of(out) == expected
    status, _, err = run(folder, "--out", folder)
    assert status == 2 and "is there, and not from such a run" in err


def test_a_folder_of_parquet_files_of_two_processes(run, sources, tmp_path, monkeypatch):
    out = tmp_path / "captions"
    _, expected, _ = run(*sources)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        run(*sources, "--out", out)
    assert not list(out.glob("*.parquet"))
    assert main.main(["caption", "--merge", str(out)]) == 1
    assert table_of(out) == expected


def test_another_model_or_other_options(run, sources, tmp_path):
    out = tmp_path / "captions.jsonl"
    run(sources[0], "--out", out)
    before = out.read_bytes()
    status, _, err = run(sources[0], "--out", out, "--num-beams", 2)
    assert status == 2 and "num_beams None and now 2" in err
    assert out.read_bytes() == before


def test_a_parquet_file_without_such_a_column(run, sources):
    status, records, _ = run(sources[2], "--image-column", "photo")
    assert status == 1 and "no column 'photo'; it has 'image'" in records[0]["error"]
