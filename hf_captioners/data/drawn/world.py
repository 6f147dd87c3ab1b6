"""The sample world: drawn pictures of coloured shapes with five true captions each, for the quickstart, tests and docs.

A scene shows one thing ("a large red circle"), several of a kind ("three small green stars") or two things and how they
lie ("a small blue square below a big red circle"). Everything follows from one seed: the same scenes, pictures and
captions on every machine. Only PIL and the standard library are needed, and nothing is downloaded.

The world is folded into splits by *scene*: a scene of the test split (its shapes, colours, sizes, counts and relation
taken together) occurs in no training picture, so a captioner that names a test picture has not seen that scene before.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..files import working_folder
from .drawing import draw_scene
from .scene import (
    COLORS,
    COUNTS,
    INVERSE_RELATIONS,
    PLURALS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    all_scenes,
    split_scenes,
)

__all__ = [
    "COLORS",
    "COUNTS",
    "INVERSE_RELATIONS",
    "PLURALS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Scene",
    "Thing",
    "all_scenes",
    "describe",
    "draw_scene",
    "load_scenes",
    "names_shape_and_color",
    "split_scenes",
    "write_sample_world",
]

_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_PLACE_WORDS = {"left of": "on its left", "right of": "on its right", "above": "above it", "below": "below it"}

# {A}, {B}: with article and size; {a}, {b}: with article; {bare}: colour and shape only
_TEMPLATES = {
    "one": (
        "{A}",
        "there is {A}",
        "a picture of {A}",
        "the picture shows {A}",
        "{A} on a pale background",
        "{a} that is {size}",
        "just one {size} {bare}",
        "{a} all alone",
    ),
    "several": (
        "{count} {size} {bare}",
        "there are {count} {size} {bare}",
        "a picture of {count} {size} {bare}",
        "the picture shows {count} {size} {bare}",
        "{count} {size} {bare} on a pale background",
        "a group of {count} {bare}",
        "{count} {bare} that are {size}",
        "{count} {bare} and nothing else",
    ),
    "pair": (
        "{A} {relation} {B}",
        "there is {A} {relation} {B}",
        "a picture of {A} {relation} {B}",
        "the picture shows {A} {relation} {B}",
        "{a} {relation} {b}",
        "{A} is {relation} {B}",
        "{B} with {A} {place}",
        "{relation} {B} there is {A}",
    ),
}


def describe(scene: Scene, rng: random.Random | None = None) -> list[str]:
    """Five differently worded captions, each true of the picture.

    Args:
        scene (`Scene`): what the picture shows.
        rng (`random.Random`, *optional*, defaults to `random.Random(0)`): chooses the wordings.

    Returns:
        `list[str]`: five different captions in lower case, without punctuation. Each names all things as "colour
        shape" and the relation of two; most name sizes.

    Example:

        >>> describe(Scene((Thing("star", "green", count=3),)))[0]
        'three green stars that are big'
    """
    rng = rng or random.Random(0)
    templates = rng.sample(_TEMPLATES[scene.kind], 5)
    words = _words_of_pair if scene.kind == "pair" else _words_of_kind
    return [template.format_map(words(scene, rng)) for template in templates]


def _words_of_kind(scene: Scene, rng: random.Random) -> dict[str, str]:
    thing = scene.things[0]
    shape = thing.shape if thing.count == 1 else PLURALS[thing.shape]
    bare, size = f"{thing.color} {shape}", rng.choice(_SIZE_WORDS[thing.size])
    return {
        "A": _with_article(f"{size} {bare}"),
        "a": _with_article(bare),
        "bare": bare,
        "size": size,
        "count": COUNTS[thing.count - 1],
    }


def _words_of_pair(scene: Scene, rng: random.Random) -> dict[str, str]:
    (first, second), relation = scene.things, str(scene.relation)
    if rng.random() < 0.5:  # the same scene, told from the other thing
        first, second, relation = second, first, INVERSE_RELATIONS[relation]
    sized = [f"{rng.choice(_SIZE_WORDS[thing.size])} {thing.color} {thing.shape}" for thing in (first, second)]
    return {
        "A": _with_article(sized[0]),
        "B": _with_article(sized[1]),
        "a": _with_article(f"{first.color} {first.shape}"),
        "b": _with_article(f"{second.color} {second.shape}"),
        "relation": rng.choice(_RELATION_WORDS[relation]),
        "place": _PLACE_WORDS[relation],
    }


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def names_shape_and_color(caption: str, scene: Scene) -> bool:
    """Tell whether a caption names what is in the picture, and nothing else: the score of a captioner in this world.

    True when the caption names every thing of the scene as the two neighbouring words "colour shape" (singular or
    plural, any case) and names no such pair that the scene lacks. Sizes, counts and relations are not judged.

    Args:
        caption (`str`): what a model said.
        scene (`Scene`): the truth.

    Returns:
        `bool`: right or wrong.

    Example:

        >>> scene = Scene((Thing("circle", "red"), Thing("square", "blue")), relation="above")
        >>> names_shape_and_color("A red circle over a blue square.", scene)
        True
        >>> names_shape_and_color("a blue circle over a red square", scene)
        False
    """
    singular = {plural: shape for shape, plural in PLURALS.items()}
    words = [singular.get(word, word) for word in re.findall(r"\w+|[^\w\s]", caption.lower())]
    named = {(color, shape) for color, shape in pairwise(words) if color in COLORS and shape in SHAPES}
    return named == scene.pairs


# --- files ----------------------------------------------------------------------------------------------------------


def write_sample_world(
    out_dir: str | Path,
    *,
    num_train: int = 3000,
    num_val: int = 200,
    num_test: int = 300,
    size: int = 96,
    seed: int = 0,
) -> Path:
    """Write the world as a captioned picture data set in the layout of Karpathy's `dataset_flickr8k.json`.

    The folder appears whole or not at all: it is written under a temporary name beside `out_dir` and renamed. A folder
    that already holds this very world is left as it is.

    Args:
        out_dir (`str` or `Path`): the folder to make; it may exist when it is empty.
        num_train, num_val, num_test (`int`, *optional*, default to 3000, 200 and 300): pictures in each split.
        size (`int`, *optional*, defaults to 96): the side of the pictures in pixels.
        seed (`int`, *optional*, defaults to 0): the seed of the world.

    Returns:
        `Path`: `out_dir`, with `images/*.png`, `dataset_karpathy.json` and `scenes.json` (see [`load_scenes`]). No test
        or val scene occurs in the training split (see [`split_scenes`]).

    Raises:
        FileExistsError: when `out_dir` exists and holds anything else.
        ValueError: when a number of pictures is negative or `size` is below 16.

    Example:

        >>> import tempfile
        >>> world = write_sample_world(Path(tempfile.mkdtemp()) / "world", num_train=4, num_val=1, num_test=1)
        >>> sorted(path.name for path in world.iterdir())
        ['dataset_karpathy.json', 'images', 'scenes.json']
    """
    out_dir = Path(out_dir)
    recipe = {"num_train": num_train, "num_val": num_val, "num_test": num_test, "size": size, "seed": seed}
    if _holds_world(out_dir, recipe):
        return out_dir
    splits = split_scenes(num_train, num_val, num_test, seed=seed)
    scenes = [(split, scene) for split, owned in splits.items() for scene in owned]
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(out_dir.parent, f".{out_dir.name}.", ".new") as world:
        (world / "images").mkdir()
        rows = [_write_row(world / "images", imgid, *entry, size=size, seed=seed) for imgid, entry in enumerate(scenes)]
        truth = {str(imgid): asdict(scene) for imgid, (_, scene) in enumerate(scenes)}
        _write_json(world / "dataset_karpathy.json", {"images": rows, "dataset": "sample"})
        _write_json(world / "scenes.json", {"recipe": recipe, "scenes": truth})
        if out_dir.exists():
            out_dir.rmdir()  # empty, or _holds_world would have refused it; some systems do not rename onto a folder
        world.rename(out_dir)
    return out_dir


def _holds_world(folder: Path, recipe: Mapping[str, int]) -> bool:
    """True for a folder with exactly this world, False where a world may be written, an error for anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a new or empty folder for the sample world")
    if not any(folder.iterdir()):
        return False
    existing = _read_truth(folder / "scenes.json")["recipe"] if (folder / "scenes.json").is_file() else None
    if existing == recipe:
        return True
    what = "other files" if existing is None else f"a sample world of another recipe ({existing}, asked for {recipe})"
    raise FileExistsError(f"{folder} holds {what}; remove it or name another folder")


def _write_row(folder: Path, imgid: int, split: str, scene: Scene, *, size: int, seed: int) -> dict[str, Any]:
    """Draw one picture, write it, and return its entry of `images` in Karpathy's Flickr8k layout."""
    rng = random.Random(f"picture {seed} {imgid}")
    filename = f"sample_{imgid:06d}.png"
    draw_scene(scene, size, rng).save(folder / filename, compress_level=1)  # flat colours pack well anyway
    sentids = list(range(5 * imgid, 5 * imgid + 5))
    sentences = [
        {"tokens": raw.split(), "raw": raw, "imgid": imgid, "sentid": sentid}
        for sentid, raw in zip(sentids, describe(scene, rng), strict=True)
    ]
    return {"sentids": sentids, "imgid": imgid, "sentences": sentences, "split": split, "filename": filename}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def load_scenes(path: str | Path) -> dict[int, Scene]:
    """Read back what the pictures of a sample world show.

    Args:
        path (`str` or `Path`): the folder that [`write_sample_world`] made, or its `scenes.json`.

    Returns:
        `dict[int, Scene]`: the scene of every picture, by `imgid`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is not the truth of a sample world; the message names the file and the entry.
    """
    path = Path(path)
    path = path / "scenes.json" if path.is_dir() else path
    scenes = {}
    for imgid, entry in _read_truth(path)["scenes"].items():
        try:
            scenes[int(imgid)] = Scene(tuple(Thing(**thing) for thing in entry["things"]), entry["relation"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: entry {imgid!r} of 'scenes' is no scene: {error}") from error
    return scenes


def _read_truth(path: Path) -> dict[str, Any]:
    try:
        truth = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(truth, dict) or not all(isinstance(truth.get(key), dict) for key in ("recipe", "scenes")):
        raise ValueError(f"{path} is not the truth of a sample world: it must have the objects 'recipe' and 'scenes'")
    return truth
