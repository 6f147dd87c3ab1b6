"""The table of completions on stderr, and the JSON lines of all of them."""

import json
import math

import numpy as np
import pytest
from tqdm import tqdm

from hf_captioners.training.watch.completions import (
    CompletionRow,
    log_completions,
    print_completions,
    write_completions,
)


def row(image_id, completion, reward, **extra):
    return CompletionRow(image_id, completion, {"cider_d": reward, "length": None}, reward, extra)


ROWS = [
    row(7, "a dog", 0.25, advantage=-0.5),
    row(7, "a brown dog runs", 0.75, advantage=0.5),
    row("b.jpg", "two [red] cats", 0.125, advantage=0.0),
]


def cells(text):
    """The cells of each line of the table that has some, borders and colours left out."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


class TestTable:
    def test_goes_to_stderr(self, capsys):
        print_completions(ROWS, step=1200)
        out, err = capsys.readouterr()
        assert out == ""
        assert "step 1,200, 3 of 3 completions" in err
        assert cells(err) == [
            ["picture", "completion", "cider_d", "length", "reward", "advantage"],
            ["7", "a brown dog runs", "0.750", "–", "0.750", "0.500"],
            ["", "a dog", "0.250", "–", "0.250", "-0.500"],
            ["b.jpg", "two [red] cats", "0.125", "–", "0.125", "0.000"],
        ]

    def test_names_of_files_in_the_place_of_ids(self, capsys):
        named = [CompletionRow(7, text, {}, 0.5, file_name="val/dog\x1b.jpg") for text in ("a dog", "a cat")]
        print_completions([*named, row(8, "a bird", 0.0)], 1)
        assert [line[0] for line in cells(capsys.readouterr().err)] == ["picture", r"val/dog\x1b.jpg", "", "8"]

    def test_number(self, capsys):
        print_completions(ROWS, 1, number=1)
        err = capsys.readouterr().err
        assert "1 of 3 completions" in err
        assert [line[1] for line in cells(err)] == ["completion", "a brown dog runs"]

    @pytest.mark.parametrize(("rows", "number"), [([], None), (ROWS, 0)])
    def test_nothing_to_print(self, rows, number, capsys):
        print_completions(rows, 1, number)
        assert capsys.readouterr() == ("", "")

    def test_number_below_0(self):
        with pytest.raises(ValueError, match="number is -1"):
            print_completions(ROWS, 1, -1)

    def test_no_number_comes_last_and_nothing_said_is_said(self, capsys):
        print_completions([row(1, "", math.nan), row(1, "a cat", -3.0), row(1, "a", -math.inf)], 1)
        assert [line[1] for line in cells(capsys.readouterr().err)[1:]] == ["a cat", "(nothing)", "a"]

    def test_captions_cannot_steer_the_terminal(self, capsys):
        print_completions([row("\x1b]0;x", "a\x1b[31m\ndog\u202e \udc80", 0.5)], 1)
        err = capsys.readouterr().err
        assert "\x1b" not in err and "\u202e" not in err
        assert cells(err)[1][1] == r"a\x1b[31m\ndog\u202e \udc80"

    def test_long_captions_are_wrapped_not_cut(self, capsys):
        words = [f"word{number}" for number in range(60)]
        print_completions([row(1, " ".join(words), 0.5)], 1)
        err = capsys.readouterr().err
        assert max(map(len, err.splitlines())) <= 140
        assert " ".join(line[1] for line in cells(err)[1:]).split() == words

    def test_a_progress_bar_is_not_torn(self, capsys):
        with tqdm(total=10) as bar:
            bar.update(5)
            print_completions(ROWS, 1)
        err = capsys.readouterr().err
        lines = err.replace("\r", "\n").splitlines()
        assert len(cells("\n".join(lines))) == 4
        assert [line for line in lines if "5/10" in line and "│" in line.replace("|", "")] == []


class TestFile:
    def test_has_everything(self, tmp_path):
        path = write_completions(ROWS, 10, tmp_path / "new" / "completions")
        assert path == tmp_path / "new/completions/completions_00010.jsonl"
        records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert records[0] == {
            "step": 10,
            "image_id": 7,
            "completion": "a dog",
            "rewards": {"cider_d": 0.25, "length": None},
            "reward": 0.25,
            "advantage": -0.5,
        }
        assert [one["completion"] for one in records] == [one.completion for one in ROWS]
        assert [path.name for path in path.parent.iterdir()] == ["completions_00010.jsonl"]

    def test_replaces_that_of_the_step(self, tmp_path):
        write_completions(ROWS, 123456, tmp_path)
        path = write_completions(ROWS[:1], 123456, tmp_path)
        assert path.name == "completions_123456.jsonl"
        assert len(path.read_text().splitlines()) == 1

    def test_odd_values(self, tmp_path):
        odd = {"a": math.nan, "b": np.float32(0.5), "c": np.int64(3), "d": [1], "e": None, "reward": "why", "f": True}
        rows = [CompletionRow(np.int64(4), "犬 \udc80\n", {"x": math.inf}, math.nan, odd)]
        text = write_completions(rows, 1, tmp_path).read_text("utf-8")
        assert "犬" in text and len(text.splitlines()) == 1
        assert json.loads(text) == {
            "step": 1, "image_id": 4, "completion": "犬 \udc80\n", "rewards": {"x": None}, "reward": None,
            "a": None, "b": 0.5, "c": 3, "d": "[1]", "e": None, "extra/reward": "why", "f": 1,
        }  # fmt: skip

    def test_datasets_reads_it(self, tmp_path):
        load_dataset = pytest.importorskip("datasets").load_dataset
        for step in (1, 2):
            write_completions(ROWS[:2], step, tmp_path)
        loaded = load_dataset("json", data_files=str(tmp_path / "*.jsonl"), split="train", cache_dir=tmp_path / "cache")
        assert loaded["step"][:] == [1, 1, 2, 2]
        assert loaded["advantage"][:2] == [-0.5, 0.5]


def test_log_completions(tmp_path, capsys):
    assert log_completions(ROWS, 20, tmp_path, 2) == tmp_path / "completions/completions_00020.jsonl"
    assert "2 of 3 completions" in capsys.readouterr().err
    assert len((tmp_path / "completions/completions_00020.jsonl").read_text().splitlines()) == 3
    assert log_completions([], 30, tmp_path) is None
    assert capsys.readouterr().err == ""
