"""The sample world: what is drawn is what is said, and nothing of the test split is seen in training."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_captioners.data.drawn import world as sample
from hf_captioners.data.drawn.world import (
    COLORS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    all_scenes,
    describe,
    draw_scene,
    load_scenes,
    names_shape_and_color,
    split_scenes,
    write_sample_world,
)

ROOT = Path(sample.__file__).parents[3]
SOME_SCENES = [scene for scenes in all_scenes().values() for scene in random.Random(1).sample(scenes, 60)]
PAIR = Scene((Thing("circle", "red"), Thing("square", "blue", "small")), "above")


def color_map(picture: Image.Image) -> np.ndarray:
    """The nearest colour name of every pixel as an index into COLORS, -1 for background: a second look at a picture."""
    pixels = np.asarray(picture, dtype=float)
    palette = np.array([*COLORS.values(), (240, 240, 240)], dtype=float)
    nearest = np.linalg.norm(pixels[:, :, None] - palette, axis=-1).argmin(-1)
    return np.where(nearest == len(COLORS), -1, nearest)


def blobs(mask: np.ndarray) -> list[np.ndarray]:
    """Connected pieces of a mask of more than 40 pixels, as arrays of (y, x)."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        stack, piece = [left.pop()], []
        while stack:
            y, x = stack.pop()
            piece.append((y, x))
            for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if neighbour in left:
                    left.remove(neighbour)
                    stack.append(neighbour)
        if len(piece) > 40:
            found.append(np.array(piece))
    return found


class TestScene:
    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"shape": "blob", "color": "red"}, "shape"),
            ({"shape": "star", "color": "beige"}, "color"),
            ({"shape": "star", "color": "red", "size": "tiny"}, "size"),
            ({"shape": "star", "color": "red", "count": 5}, "count"),
        ],
    )
    def test_a_thing_names_the_wrong_field(self, fields: dict, named: str) -> None:
        with pytest.raises(ValueError, match=rf"Thing\.{named} is .* must be one of"):
            Thing(**fields)

    @pytest.mark.parametrize(
        ("things", "relation"),
        [
            ((), None),
            ((Thing("star", "red"),), "above"),
            ((Thing("star", "red"), Thing("star", "blue")), None),
            ((Thing("star", "red"), Thing("star", "blue")), "behind"),
            ((Thing("star", "red"), Thing("star", "red", "small")), "above"),
            ((Thing("star", "red", count=2), Thing("star", "blue")), "above"),
        ],
    )
    def test_a_scene_refuses_what_does_not_fit(self, things: tuple, relation: str | None) -> None:
        with pytest.raises(ValueError, match=r"Scene\."):
            Scene(things, relation)

    def test_all_scenes_are_different(self) -> None:
        scenes = all_scenes()
        looks = len(SHAPES) * len(COLORS)
        assert {kind: len(set(s)) for kind, s in scenes.items()} == {
            "one": looks * 2,
            "several": looks * 2 * 3,
            "pair": looks * (looks - 1) * 2 * 2 * 2,
        }
        assert all(scene.kind == kind for kind, owned in scenes.items() for scene in owned)


class TestSplits:
    @pytest.mark.parametrize("numbers", [(300, 40, 60), (20000, 1500, 3000)])
    def test_no_scene_is_in_two_splits(self, numbers: tuple[int, int, int]) -> None:
        splits = split_scenes(*numbers)
        assert tuple(len(splits[split]) for split in ("train", "val", "test")) == numbers
        train, val, test = (set(splits[split]) for split in ("train", "val", "test"))
        assert not train & test and not train & val and not val & test

    def test_the_seed_alone_owns_a_scene(self) -> None:
        assert not set(split_scenes(5000, 0, 0)["train"]) & set(split_scenes(10, 0, 2000)["test"])

    def test_another_seed_deals_differently(self) -> None:
        assert split_scenes(50, 5, 5, seed=0) == split_scenes(50, 5, 5, seed=0) != split_scenes(50, 5, 5, seed=1)

    def test_every_color_and_shape_is_taught_alone(self) -> None:
        pairs = {pair for scene in split_scenes(3000, 0, 0)["train"] for pair in scene.pairs}
        assert len(pairs) == len(SHAPES) * len(COLORS)

    def test_negative_number(self) -> None:
        with pytest.raises(ValueError, match="num_val is -1"):
            split_scenes(1, -1, 1)


class TestPictures:
    @pytest.mark.parametrize("scene", SOME_SCENES, ids=str)
    def test_colors_counts_and_border(self, scene: Scene) -> None:
        seen = color_map(draw_scene(scene, 96, random.Random(str(scene))))
        border = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
        assert (border == -1).all()
        assert len(blobs(seen >= 0)) == sum(thing.count for thing in scene.things)
        thick = seen >= 0
        inside = thick[1:-1, 1:-1] & thick[2:, 1:-1] & thick[:-2, 1:-1] & thick[1:-1, 2:] & thick[1:-1, :-2]
        found = seen[1:-1, 1:-1][inside]  # without the rim, where a colour runs into the background
        areas = {name: int((found == i).sum()) for i, name in enumerate(COLORS)}
        assert {name for name, area in areas.items() if area > 20} == {thing.color for thing in scene.things}

    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize("seed", range(10))
    def test_relations(self, relation: str, seed: int) -> None:
        scene = Scene((Thing("heart", "red", SIZES[seed % 2]), Thing("cross", "blue", SIZES[seed // 2 % 2])), relation)
        seen = color_map(draw_scene(scene, 96, random.Random(seed)))
        red, blue = (np.argwhere(seen == list(COLORS).index(color)).mean(0) for color in ("red", "blue"))
        across, along = (0, 1) if relation in ("left of", "right of") else (1, 0)
        signed = blue - red if relation in ("left of", "above") else red - blue
        assert signed[along] > 96 * 0.2 and abs(signed[across]) < signed[along]

    @pytest.mark.parametrize("shape", SHAPES)
    def test_sizes_differ_for_every_shape(self, shape: str) -> None:
        areas = {
            size: [
                (color_map(draw_scene(Scene((Thing(shape, "blue", size),)), 96, random.Random(i))) >= 0).sum()
                for i in range(20)
            ]
            for size in SIZES
        }
        assert max(areas["small"]) * 1.5 < min(areas["large"])

    def test_jitter_and_size(self) -> None:
        first, again, other = (draw_scene(PAIR, 64, random.Random(seed)) for seed in (1, 1, 2))
        assert first.size == (64, 64) and first.mode == "RGB"
        assert first.tobytes() == again.tobytes() != other.tobytes()

    def test_too_small(self) -> None:
        with pytest.raises(ValueError, match="size is 8 pixels"):
            draw_scene(PAIR, 8)


class TestCaptions:
    @pytest.mark.parametrize("scene", SOME_SCENES, ids=str)
    def test_five_different_true_captions(self, scene: Scene) -> None:
        captions = describe(scene, random.Random(3))
        assert len(set(captions)) == 5
        large, small = {"large", "big"}, {"small", "little"}
        sizes = {thing.size for thing in scene.things}
        for caption in captions:
            assert names_shape_and_color(caption, scene)
            words = caption.split()
            assert "{" not in caption and caption == caption.lower()
            assert bool(large & set(words)) <= ("large" in sizes) and bool(small & set(words)) <= ("small" in sizes)
            for article, word in pairwise(words):
                if article in ("a", "an"):
                    assert (article == "an") == (word[0] in "aeiou")
            counted = [n for n in ("two", "three", "four") if n in words]
            assert counted == ([("two", "three", "four")[scene.things[0].count - 2]] if scene.kind == "several" else [])

    def test_every_wording_of_a_relation_is_true(self) -> None:
        first, second = "red circle", "blue square"
        upper_first = {
            "{a} above {b}",
            "{a} over {b}",
            "{b} below {a}",
            "{b} under {a}",
            "{b} with {a} above it",
            "{a} with {b} below it",
            "above {b} there is {a}",
            "over {b} there is {a}",
            "below {a} there is {b}",
            "under {a} there is {b}",
        }
        heard = set()
        for seed in range(200):
            for caption in describe(PAIR, random.Random(seed)):
                for prefix in ("there is ", "a picture of ", "the picture shows "):
                    caption = caption.removeprefix(prefix)
                words = [word for word in caption.split() if word not in ("large", "big", "small", "little")]
                core = " ".join(words).replace(f"a {first}", "{a}").replace(f"a {second}", "{b}")
                heard.add(core.replace("} is ", "} "))
        assert heard == upper_first

    @pytest.mark.parametrize(
        ("caption", "right"),
        [
            ("a red circle above a blue square", True),
            ("A big RED CIRCLE, over blue squares!", True),
            ("a red circle", False),
            ("a blue circle above a red square", False),
            ("a red circle, a blue square and a green star", False),
            ("a red large circle above a blue square", False),
            ("red. circle and blue square", False),
            ("", False),
        ],
    )
    def test_score(self, caption: str, right: bool) -> None:
        assert names_shape_and_color(caption, PAIR) is right

    def test_score_with_irregular_plural(self) -> None:
        scene = Scene((Thing("cross", "black", count=2),))
        assert names_shape_and_color("two black crosses", scene)
        assert not names_shape_and_color("two black stars", scene)


class TestFiles:
    def test_layout(self, tmp_path: Path) -> None:
        world = write_sample_world(tmp_path / "deep" / "world", num_train=6, num_val=2, num_test=3, size=32, seed=5)
        data = json.loads((world / "dataset_karpathy.json").read_text())
        assert set(data) == {"images", "dataset"}
        assert [row["split"] for row in data["images"]] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
        scenes = load_scenes(world)
        assert scenes == load_scenes(world / "scenes.json")
        for imgid, row in enumerate(data["images"]):
            assert set(row) == {"sentids", "imgid", "sentences", "split", "filename"}
            assert row["imgid"] == imgid and row["sentids"] == [s["sentid"] for s in row["sentences"]]
            assert len(set(row["sentids"])) == 5
            with Image.open(world / "images" / row["filename"]) as picture:
                assert picture.size == (32, 32)
            for sentence in row["sentences"]:
                assert set(sentence) == {"tokens", "raw", "imgid", "sentid"} and sentence["imgid"] == imgid
                assert names_shape_and_color(" ".join(sentence["tokens"]), scenes[imgid])
        assert [p.name for p in (tmp_path / "deep").iterdir()] == ["world"]

    def test_same_in_another_process(self, tmp_path: Path) -> None:
        numbers = {"num_train": 5, "num_val": 1, "num_test": 1, "size": 48}
        world = write_sample_world(tmp_path / "here", **numbers)
        call = f"write_sample_world({str(tmp_path / 'there')!r}, **{numbers})"
        code = f"from hf_captioners.data.drawn.world import *; {call}"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77"}
        subprocess.run([sys.executable, "-c", code], check=True, env=env)

        def digests(folder: Path) -> dict[str, str]:
            files = [path for path in folder.rglob("*") if path.is_file()]
            return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

        assert digests(world) == digests(tmp_path / "there")

    def test_global_random_state_is_left_alone(self, tmp_path: Path) -> None:
        random.seed(9)
        state = random.getstate()
        write_sample_world(tmp_path / "world", num_train=2, num_val=0, num_test=0, size=16)
        assert random.getstate() == state

    def test_same_world_is_kept_and_another_refused(self, tmp_path: Path) -> None:
        numbers = {"num_train": 2, "num_val": 1, "num_test": 1, "size": 16}
        world = write_sample_world(tmp_path / "world", **numbers)
        written = (world / "scenes.json").stat().st_mtime_ns
        assert write_sample_world(world, **numbers) == world
        assert (world / "scenes.json").stat().st_mtime_ns == written
        with pytest.raises(FileExistsError, match="another recipe"):
            write_sample_world(world, **numbers, seed=1)

    def test_only_empty_folders_are_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        write_sample_world(tmp_path / "empty", num_train=1, num_val=0, num_test=0, size=16)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("keep")
        with pytest.raises(FileExistsError, match="other files"):
            write_sample_world(tmp_path / "full", num_train=1, num_val=0, num_test=0)
        (tmp_path / "file").write_text("keep")
        with pytest.raises(FileExistsError, match="is a file"):
            write_sample_world(tmp_path / "file", num_train=1, num_val=0, num_test=0)

    def test_what_a_killed_process_left_is_removed(self, tmp_path: Path) -> None:
        (tmp_path / f".world.{'0' * 32}.new" / "images").mkdir(parents=True)
        write_sample_world(tmp_path / "world", num_train=2, num_val=0, num_test=0, size=16)
        assert [path.name for path in tmp_path.iterdir()] == ["world"]

    def test_nothing_is_left_of_a_failure(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sample, "_write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_sample_world(tmp_path / "world", num_train=2, num_val=0, num_test=0, size=16)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not valid JSON"),
            ("[]", "'recipe' and 'scenes'"),
            ('{"recipe": {}, "scenes": {"7": {"things": []}}}', "entry '7'"),
            ('{"recipe": {}, "scenes": {"7": {"things": [{"shape": "blob"}], "relation": null}}}', "entry '7'"),
        ],
    )
    def test_broken_truth(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "scenes.json").write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            load_scenes(tmp_path)
        assert "scenes.json" in str(error.value)

    def test_missing_truth(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            load_scenes(tmp_path)

    def test_needs_only_pillow(self) -> None:
        roots = set()
        for path in Path(sample.__file__).parent.glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    roots |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    roots.add(str(node.module).split(".")[0])
                elif isinstance(node, ast.ImportFrom):
                    # `data.files` needs nothing but Python
                    assert (node.level, node.module) in {(1, "scene"), (1, "drawing"), (2, "files")}
        assert roots - set(sys.stdlib_module_names) == {"PIL"}
