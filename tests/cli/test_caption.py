"""`hf-captioners caption`, with the tiny captioner."""

import errno
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_captioners.cli import caption_out, main
from hf_captioners.modeling.modeling_expansionnet_v2 import ExpansionNetV2ForImageCaptioning

COMMAND = [sys.executable, "-m", "hf_captioners.cli.main", "caption"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def save_noise(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def hear_interruptions() -> None:
    """Processes that a shell starts with `&` ignore SIGINT, and so do those that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good pictures, and one more in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.jpg", "sub/c.png")):
        save_noise(folder / name, seed)
    return folder


@pytest.fixture
def run(tiny_captioner_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    """Runs the verb in this process; returns the exit status, the records on stdout and the text on stderr."""

    def run_here(*arguments: Any, model: Any = tiny_captioner_dir) -> tuple[int, list[dict[str, str]], str]:
        capfdbinary.readouterr()
        status = main.main(["caption", *map(str, arguments), "--model", str(model)])
        out, err = capfdbinary.readouterr()
        return status, [json.loads(line) for line in out.decode().splitlines()], err.decode()

    return run_here


def test_folder(run: Any, folder: Path) -> None:
    status, records, err = run(folder)
    assert status == 0
    assert [record["image"] for record in records] == [str(folder / name) for name in ("a.png", "b.jpg", "sub/c.png")]
    assert all(set(record) == {"image", "caption"} for record in records)
    assert err == ""


def test_files_that_are_left_out_are_counted_on_stderr(run: Any, folder: Path) -> None:
    for name in ("scan.psd", "scan2.PSD", "a.txt", "metadata.jsonl", "notes"):
        (folder / name).write_text("words")
    Image.open(folder / "a.png").save(folder / "d.apng", "PNG")
    status, records, err = run(folder)
    assert status == 0
    assert [Path(record["image"]).name for record in records] == ["a.png", "b.jpg", "d.apng", "c.png"]
    assert err.splitlines() == [
        "hf-captioners caption: left out 3 files: 2 .psd (a format that is not read; convert to PNG or JPEG); "
        "1 without suffix (not recognised as pictures)"
    ]


def test_a_folder_of_pictures_that_cannot_be_read(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jxl").touch()
    status, records, err = run(tmp_path)
    assert (status, records) == (2, [])
    assert "no pictures in" in err and "left out 1 file: 1 .jxl (JPEG XL, which is not read" in err


def test_an_archive(run: Any, folder: Path, tmp_path: Path) -> None:
    """Its pictures have the captions of the same files; what is wrong with it costs a record, and the rest go on."""
    _, expected, _ = run(folder / "a.png", folder / "b.jpg")
    (folder / "c.txt").write_text("words")
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "photos"), kind, folder)
        status, records, err = run(archive)
        assert (status, err) == (0, "")
        captions = {record["image"].removeprefix(f"{archive}/"): record["caption"] for record in records}
        assert [captions[name] for name in ("a.png", "b.jpg")] == [record["caption"] for record in expected]
        assert len(captions) == 3
    (tmp_path / "broken.tar").write_bytes(b"words")
    status, records, err = run(tmp_path / "broken.tar", folder / "a.png", "--coco-results", tmp_path / "x.json")
    assert (status, records) == (2, [])  # no image id in the names
    status, records, err = run(tmp_path / "broken.tar", folder / "a.png")
    assert status == 1
    assert ["error" in record for record in records] == [True, False]
    assert f"{tmp_path}/broken.tar: neither a zip nor a tar archive" in err


def test_files_and_no_recursive(run: Any, folder: Path) -> None:
    status, records, _ = run(folder / "sub" / "c.png", folder, "--no-recursive", "--batch-size", 1)
    assert status == 0
    assert [Path(record["image"]).name for record in records] == ["c.png", "a.png", "b.jpg"]


def test_broken_and_missing_pictures(run: Any, folder: Path) -> None:
    data = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(data[: len(data) // 2])
    status, records, err = run(folder, "missing.jpg")
    assert status == 1
    assert ["error" in record for record in records] == [False, True, False, True]
    assert records[3] == {"image": "missing.jpg", "error": "missing.jpg: no such file"}
    assert err.splitlines() == [f"hf-captioners caption: {record['error']}" for record in records if "error" in record]
    assert str(folder / "b.jpg") in err


def test_generation_options_reach_the_model(run: Any, folder: Path) -> None:
    _, default, _ = run(folder)
    _, short, _ = run(folder, "--num-beams", 2, "--max-new-tokens", 1)
    assert all(len(record["caption"].split()) <= 1 for record in short)
    assert default != short


def test_dtype(run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    generate = ExpansionNetV2ForImageCaptioning.generate

    def watch(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((self.dtype, kwargs["pixel_values"].dtype))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(ExpansionNetV2ForImageCaptioning, "generate", watch)
    for dtype in ("auto", "bfloat16"):
        assert run(folder, "--dtype", dtype, "--device", "cpu")[0] == 0
    assert seen == [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]


@pytest.mark.parametrize(
    ("arguments", "model", "reason"),
    [
        (["{folder}"], "nowhere", "--model nowhere: no such folder"),
        (["{folder}"], "../nowhere", "--model ../nowhere: no such folder"),
        (
            ["{folder}"],
            "{folder}",
            "cannot be loaded: the folder has no configuration (config.json); give the folder of",
        ),
        (["{folder}"], "runs/nowhere", "there is no such folder, nor can it be had from the Hub"),
        (["{empty}"], None, "no pictures in"),
        (["{folder}", "--device", "quantum"], None, "device 'quantum' cannot be used"),
        (["{folder}", "--device", "cuda:77"], None, "device 'cuda:77' cannot be used"),
        (["{folder}", "--max-new-tokens", "5000"], None, "max_position_embeddings"),
        (["{folder}", "--split", "val"], None, "--split without effect: paths have no splits and labels"),
        (["--data-dir", "{folder}", "--no-recursive"], None, "--no-recursive without effect: a data set has pictures"),
    ],
)
def test_mistakes(run: Any, folder: Path, tiny_captioner_dir: Path, arguments: Any, model: Any, reason: str) -> None:
    empty = folder / "empty"
    empty.mkdir()
    places = {"folder": folder, "empty": empty}
    arguments = [argument.format(**places) for argument in arguments]
    status, records, err = run(*arguments, model=model.format(**places) if model else tiny_captioner_dir)
    assert status == 2
    assert records == []
    assert reason in err
    assert err.splitlines()[-1].startswith("hf-captioners caption: error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--batch-size", "--num-beams", "--max-new-tokens"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_numbers(option: str, value: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["caption", "photos", "--model", "captioner", option, value])
    assert caught.value.code == 2


def test_model_with_weights_missing_from_its_folder(
    run: Any, folder: Path, tiny_captioner_dir: Path, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_captioner_dir / name).read_bytes()[:900])
    assert run(folder, model=tmp_path)[0] == 2


def test_names_beyond_ascii(run: Any, folder: Path) -> None:
    odd = ['猫 "1".png', "line\nbreak.png", "caf\udce9.png"]
    try:
        for name in odd:
            save_noise(folder / "sub" / name, 1)
    except (OSError, UnicodeError):
        pytest.skip("this file system does not take such names")
    status, records, _ = run(folder / "sub")
    assert status == 0
    assert {Path(record["image"]).name for record in records} == {*odd, "c.png"}


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["model.safetensors"], "weights (model.safetensors); copy them"),
        (["processor_config.json", "preprocessor_config.json"], "image processor (preprocessor_config.json or"),
        (["tokenizer.json", "tokenizer_config.json"], "tokenizer (tokenizer.json); save its tokenizer there"),
    ],
)
def test_a_folder_that_lacks_a_part(
    run: Any, folder: Path, tiny_captioner_dir: Path, tmp_path: Path, names: list[str], part: str
) -> None:
    model = shutil.copytree(tiny_captioner_dir, tmp_path / "part", ignore=shutil.ignore_patterns(*names))
    status, records, err = run(folder, model=model)
    assert (status, records, len(err.splitlines())) == (2, [], 1)
    assert f"cannot be loaded: the folder has no {part}" in err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "null", "config.json: expected a JSON object, found None"),
        ("generation_config.json", "[]", "generation_config.json: expected a JSON object, found []"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json: not valid JSON: maximum recursion"),
        ("processor_config.json", '"x"', "processor_config.json: expected a JSON object, found 'x'"),
        ("config.json", '{"model_type": ["x"]}', "a setting in its files is of a wrong kind or missing: TypeError("),
        ("tokenizer.json", "{}", "a setting in its files is of a wrong kind or missing: KeyError('added_tokens')"),
        ("generation_config.json", None, "generation_config.json: expected a JSON file, found something that is not"),
    ],
)
def test_a_folder_with_settings_that_are_none(
    run: Any, folder: Path, tiny_captioner_dir: Path, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    model = shutil.copytree(tiny_captioner_dir, tmp_path / "part")
    (model / name).unlink()
    if text is None:
        os.mkfifo(model / name)
    else:
        (model / name).write_text(text)
    status, records, err = run(folder, model=model)
    assert (status, records, len(err.splitlines())) == (2, [], 1)
    assert "cannot be loaded: " in err and message in err


def without_progress(stderr: bytes) -> bytes:
    """Lines on stderr besides those of progress that a slow machine shows."""
    return b"".join(line for line in stderr.splitlines(True) if not re.search(rb"\d+/\d+ \[", line))


def test_stdout_is_utf8_whatever_the_locale(tiny_captioner_dir: Path, folder: Path) -> None:
    """And nothing but records is on it, and nothing at all on stderr, in a process of its own."""
    (folder / "a.png").rename(folder / "猫.png")
    done = subprocess.run(
        [*COMMAND, str(folder), "--model", str(tiny_captioner_dir)],
        capture_output=True,
        env={**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"},
    )
    assert done.returncode == 0
    assert "猫.png" in done.stdout.decode()
    assert len([json.loads(line) for line in done.stdout.splitlines()]) == 3
    assert without_progress(done.stderr) == b""


@pytest.fixture
def many(folder: Path) -> Path:
    for index in range(400):
        os.link(folder / "a.png", folder / f"copy_{index}.png")
    return folder


@pytest.mark.skipif(os.name == "nt", reason="signals and terminals of POSIX")
class TestProcess:
    def start(self, model: Path, folder: Path, stderr: int = subprocess.PIPE) -> "subprocess.Popen[bytes]":
        arguments = [*COMMAND, str(folder), "--model", str(model), "--batch-size", "1"]
        # without a buffer: what readline takes too much of, communicate would lose, the beginning of a line with it
        pipes: Any = {"bufsize": 0, "stdout": subprocess.PIPE, "stderr": stderr}
        return subprocess.Popen(arguments, **pipes, env=ENVIRONMENT, preexec_fn=hear_interruptions)

    def test_reader_that_goes_away(self, tiny_captioner_dir: Path, many: Path) -> None:
        with self.start(tiny_captioner_dir, many) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            json.loads(process.stdout.readline())
            process.stdout.close()
            assert process.wait() == 141
            assert without_progress(process.stderr.read()) == b""

    def test_ctrl_c(self, tiny_captioner_dir: Path, many: Path) -> None:
        with self.start(tiny_captioner_dir, many) as process:
            assert process.stdout is not None
            json.loads(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
            assert process.returncode == 130
            assert without_progress(err) == b""
            assert all(json.loads(line) for line in out.splitlines())

    def test_progress_on_a_terminal(self, tiny_captioner_dir: Path, folder: Path) -> None:
        (folder / "broken.png").write_text("text")
        fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
        terminal, stderr = os.openpty()
        fcntl.ioctl(stderr, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))  # else 0 x 0: no room for a bar
        with self.start(tiny_captioner_dir, folder, stderr) as process:
            os.close(stderr)
            out, _ = process.communicate()
            shown = b""
            while chunk := self.read(terminal):
                shown += chunk
        os.close(terminal)
        assert process.returncode == 1
        assert len([json.loads(line) for line in out.splitlines()]) == 4
        assert b"4/4" in shown
        assert b"broken.png: not a readable picture" in shown

    def read(self, terminal: int) -> bytes:
        try:
            return os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            return b""


class TestDataset:
    @pytest.fixture
    def annotations(self, folder: Path, tmp_path: Path) -> Path:
        """Karpathy's layout of the pictures a.png (train), b.jpg (restval) and sub/c.png (test)."""
        rows = (("a.png", "", 7, "train"), ("b.jpg", "", 9, "restval"), ("c.png", "sub", 12, "test"))
        images = [
            {"filename": name, "filepath": path, "imgid": image_id, "split": split, "sentences": [{"raw": "a dog"}]}
            for name, path, image_id, split in rows
        ]
        path = tmp_path / "karpathy.json"
        path.write_text(json.dumps({"images": images}))
        return path

    @pytest.fixture
    def features(self, folder: Path, annotations: Path, tiny_captioner_dir: Path, tmp_path: Path) -> Path:
        out = tmp_path / "features"
        options = ["--annotations", annotations, "--image-root", folder, "--out", out, "--dtype", "float32"]
        assert main.main(["features", "--model", str(tiny_captioner_dir), *map(str, options)]) == 0
        return out

    def test_pictures_and_features_give_the_same(
        self, run: Any, folder: Path, annotations: Path, features: Path
    ) -> None:
        status, records, _ = run("--annotations", annotations, "--image-root", folder)
        assert status == 0
        assert [record["image_id"] for record in records] == [7, 9]
        _, plain, _ = run(folder / "a.png", folder / "b.jpg")
        assert [record["caption"] for record in records] == [record["caption"] for record in plain]
        _, cached, _ = run("--annotations", annotations, "--features", features)
        assert cached == [{"image_id": record["image_id"], "caption": record["caption"]} for record in records]
        _, test, _ = run("--annotations", annotations, "--features", features, "--split", "test")
        assert [record["image_id"] for record in test] == [12]

    def test_several_captions_each(self, run: Any, folder: Path, annotations: Path, features: Path) -> None:
        options = ["--num-beams", 3, "--num-return-sequences", 2]
        _, cached, _ = run("--annotations", annotations, "--features", features, *options)
        _, records, _ = run(folder / "a.png", folder / "b.jpg", *options)
        assert [record["captions"] for record in cached] == [record["captions"] for record in records]
        assert all(len(record["captions"]) == 2 for record in cached)
        _, best, _ = run(folder / "a.png", "--num-beams", 3)
        assert best[0]["caption"] == records[0]["captions"][0]

    def test_coco_results_of_a_data_set(self, run: Any, folder: Path, annotations: Path, tmp_path: Path) -> None:
        path = tmp_path / "results.json"
        _, records, _ = run("--annotations", annotations, "--image-root", folder, "--coco-results", path)
        expected = [{"image_id": record["image_id"], "caption": record["caption"]} for record in records]
        assert json.loads(path.read_text()) == expected

    def test_coco_results_of_files(self, run: Any, folder: Path, tmp_path: Path) -> None:
        names = ["COCO_test2014_000000000042.png", "COCO_test2014_000000000007.jpg"]
        for old, new in zip(("a.png", "b.jpg"), names, strict=True):
            (folder / old).rename(folder / new)
        path = tmp_path / "results.json"
        status, records, _ = run(folder, "--no-recursive", "--coco-results", path)
        assert status == 0
        assert [row["image_id"] for row in json.loads(path.read_text())] == [7, 42]
        assert [row["caption"] for row in json.loads(path.read_text())] == [record["caption"] for record in records]

    def test_a_broken_picture_is_left_out_of_the_results(self, run: Any, folder: Path, tmp_path: Path) -> None:
        (folder / "a.png").rename(folder / "1.png")
        (folder / "b.jpg").write_bytes(b"no picture")
        (folder / "b.jpg").rename(folder / "2.jpg")
        path = tmp_path / "results.json"
        status, records, _ = run(folder, "--no-recursive", "--coco-results", path)
        assert status == 1 and "error" in records[1]
        assert [row["image_id"] for row in json.loads(path.read_text())] == [1]

    def test_a_full_disk_has_its_own_status_and_nothing_is_lost(
        self, run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number, name in enumerate(("a.png", "b.jpg")):
            (folder / name).rename(folder / f"{number}{Path(name).suffix}")
        path = tmp_path / "results.json"
        written: list[bytes] = []

        def write_out(line: bytes) -> None:
            if written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "stdout")
            written.append(line)

        with monkeypatch.context() as patch:
            patch.setattr(caption_out, "_write_out", write_out)
            status, _, err = run(folder, "--no-recursive", "--coco-results", path)
        assert status == 3 and "No space left on device: 'stdout'" in err and "results.json.part has the 1 cap" in err
        assert not path.exists()
        (kept,) = json.loads((tmp_path / "results.json.part").read_text())
        assert kept == {"image_id": 0, "caption": json.loads(written[0])["caption"]}
        assert run(folder, "--no-recursive", "--coco-results", path)[0] == 0
        assert len(json.loads(path.read_text())) == 2
        assert not (tmp_path / "results.json.part").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--coco-results", "r.json"], "has no image id at its end"),
            (["--coco-results", "nowhere/r.json"], "no such folder"),
            (["--coco-results", "r.json", "--num-return-sequences", "2"], "takes one caption per picture"),
            (["--annotations", "x.json"], "give paths, or --annotations, or --data-dir, one of them"),
            (["--features", "x"], "give paths, --dataset, or --annotations with --image-root or --features"),
        ],
    )
    def test_mistakes(
        self, run: Any, folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(folder)
        status, records, err = run(folder, *arguments)
        assert (status, records) == (2, [])
        assert message in err
        assert not (folder / "r.json").exists()

    def test_nothing_to_caption(self, run: Any, annotations: Path, folder: Path) -> None:
        assert run()[0] == 2
        status, _, err = run("--annotations", annotations, "--image-root", folder, "--split", "val")
        assert status == 2 and "no image of split val" in err


NAME = "a\x1b[2J\x1b]0;owned\x07\n\u202egpj\x9b31m.png"


def test_names_are_not_obeyed(run: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (folder / "a.png").rename(tmp_path / "odd" / NAME)
    (tmp_path / "odd" / f"b{NAME}").write_text("no picture")
    status, records, err = run(tmp_path / "odd")
    assert status == 1
    assert [Path(record["image"]).name for record in records] == [NAME, f"b{NAME}"]  # as they are, for programs
    assert len(err.splitlines()) == 1 and r"ba\x1b[2J\x1b]0;owned\x07\n\u202egpj\x9b31m.png: " in err
    assert run(tmp_path / NAME)[0] == 1
    assert run(folder, model=tmp_path / NAME)[2].splitlines()[0].endswith(r"\x9b31m.png: no such folder")


def test_no_line_of_stdout_steers_a_terminal(
    tiny_captioner_dir: Path, folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (folder / "a.png").rename(tmp_path / NAME)
    capfdbinary.readouterr()
    assert main.main(["caption", str(tmp_path / NAME), "--model", str(tiny_captioner_dir)]) == 0
    (line,) = capfdbinary.readouterr().out.decode().splitlines()
    assert line.isprintable()
    assert json.loads(line)["image"] == str(tmp_path / NAME)


def test_mistakes_of_the_line_are_not_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["caption", "a.png", "--model", "m", f"--{NAME}"])
    assert capfd.readouterr().err.rstrip("\n").splitlines()[-1].isprintable()
