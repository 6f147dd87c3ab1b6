"""The quickstart: the real one through make (also what the README's examples run on), and its mistakes."""

from __future__ import annotations

import json

from PIL import Image

from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import load_scenes, names_shape_and_color


class TestQuickstart:
    def test_names_shape_and_color_of_unseen_pictures(self, quickstart_run):
        folder, run = quickstart_run
        result = json.loads((folder / "captions.json").read_text("utf-8"))
        assert result["accuracy"] >= 0.8
        scenes = load_scenes(folder / "world")
        numbers = {row["filename"]: row["imgid"] for row in rows_of(folder)}
        right = [
            names_shape_and_color(row["caption"], scenes[numbers[row["picture"].rsplit("/", 1)[-1]]])
            for row in result["captions"]
        ]
        assert sum(right) / len(right) == result["accuracy"]
        assert f"({result['accuracy']:.1%})" in run.stdout
        assert run.stdout.count("said of it:") == 12

    def test_the_pictures_are_unseen(self, quickstart_run):
        folder, _ = quickstart_run
        scenes = load_scenes(folder / "world")
        seen = {scenes[row["imgid"]] for row in rows_of(folder) if row["split"] == "train"}
        assert not seen & {scenes[row["imgid"]] for row in rows_of(folder) if row["split"] == "test"}

    def test_leaves_a_contact_sheet_and_a_captioner(self, quickstart_run):
        folder, _ = quickstart_run
        with Image.open(folder / "contact_sheet.png") as sheet:
            assert min(sheet.size) > 800
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
            p.name for p in (folder / "captioner").iterdir()
        }


def rows_of(folder):
    return json.loads((folder / "world/dataset_karpathy.json").read_text("utf-8"))["images"]


def test_refuses_a_folder_with_another_world(tmp_path, capsys):
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "mine.txt").write_text("not a world")
    assert main(["quickstart", "--out", str(tmp_path)]) == 2
    assert str(tmp_path / "world") in capsys.readouterr().err
    assert (tmp_path / "world" / "mine.txt").exists()
