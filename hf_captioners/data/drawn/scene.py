"""Scenes: what the pictures of the sample world show, and how the scenes are shared out to its splits."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

SIZES = ("small", "large")
COUNTS = ("one", "two", "three", "four")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 43, 48),
    "orange": (245, 139, 24),
    "yellow": (250, 210, 35),
    "green": (47, 158, 79),
    "blue": (41, 98, 214),
    "purple": (139, 62, 184),
    "black": (40, 42, 48),
}
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "heart": "hearts",
    "cross": "crosses",
}
SHAPES = tuple(PLURALS)
INVERSE_RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
RELATIONS = tuple(INVERSE_RELATIONS)

_SPLIT_SHARES = {"test": 0.15, "val": 0.10}  # of the scenes of each kind; the rest is for training
_SCENE_MIX = {"one": 0.35, "several": 0.3, "pair": 0.35}  # of the pictures of each split


@dataclass(frozen=True)
class Thing:
    """One kind of object in a picture.

    Args:
        shape (`str`): one of `SHAPES`.
        color (`str`): one of `COLORS`.
        size (`str`, *optional*, defaults to `"large"`): one of `SIZES`.
        count (`int`, *optional*, defaults to 1): how many of them the picture shows, 1 to 4.

    Raises:
        ValueError: when a field is not one of these.
    """

    shape: str
    color: str
    size: str = "large"
    count: int = 1

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[Sequence[Any], Any]] = {
            "shape": (SHAPES, self.shape),
            "color": (tuple(COLORS), self.color),
            "size": (SIZES, self.size),
            "count": (range(1, len(COUNTS) + 1), self.count),
        }
        for field, (values, value) in allowed.items():
            if value not in values:
                raise ValueError(f"Thing.{field} is {value!r}; it must be one of {list(values)}")


@dataclass(frozen=True)
class Scene:
    """Content of a picture: one kind of thing, or two single things and how the first lies to the second.

    Args:
        things (`tuple[Thing, ...]`): one thing, or two of count 1 that differ in shape or colour.
        relation (`str`, *optional*): one of `RELATIONS` for two things, `None` for one: "`things[0]` is *relation*
            `things[1]`".

    Raises:
        ValueError: when the things and the relation do not fit together.

    Example:

        >>> Scene((Thing("circle", "red"), Thing("square", "blue", size="small")), relation="above").kind
        'pair'
    """

    things: tuple[Thing, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if len(self.things) not in (1, 2):
            raise ValueError(f"Scene.things has {len(self.things)} entries; a scene shows one or two things")
        allowed: tuple[str | None, ...] = RELATIONS if len(self.things) == 2 else (None,)
        if self.relation not in allowed:
            number = len(self.things)
            raise ValueError(f"Scene.relation is {self.relation!r} with {number} thing(s), not one of {list(allowed)}")
        if len(self.things) == 2 and (len(self.pairs) == 1 or any(thing.count > 1 for thing in self.things)):
            raise ValueError(
                f"Scene.things must be two single things that differ in shape or colour, not {self.things}"
            )

    @property
    def kind(self) -> str:
        """`"one"`, `"several"` or `"pair"`."""
        if len(self.things) == 2:
            return "pair"
        return "one" if self.things[0].count == 1 else "several"

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """The (colour, shape) pairs in the picture: what a caption has to name."""
        return frozenset((thing.color, thing.shape) for thing in self.things)


def all_scenes() -> dict[str, list[Scene]]:
    """Every scene of the world once, by kind: 84 `"one"`, 252 `"several"` and 13,776 `"pair"`.

    Relations are "left of" and "above" here: "a right of b" is the same picture as "b left of a", and its captions
    use either wording.
    """
    looks = list(product(SHAPES, COLORS))
    singles = [Thing(shape, color, size) for (shape, color), size in product(looks, SIZES)]
    groups = [Thing(shape, color, size, n) for (shape, color), size, n in product(looks, SIZES, range(2, 5))]
    pairs = [
        Scene((first, second), relation)
        for first, second, relation in product(singles, singles, ("left of", "above"))
        if (first.shape, first.color) != (second.shape, second.color)
    ]
    return {"one": [Scene((t,)) for t in singles], "several": [Scene((t,)) for t in groups], "pair": pairs}


def split_scenes(num_train: int, num_val: int, num_test: int, *, seed: int = 0) -> dict[str, list[Scene]]:
    """Deal scenes to the three splits so that no scene is in two of them.

    The seed alone decides which split owns a scene (75 % train, 10 % val, 15 % test of every kind), so worlds of
    different sizes with one seed keep their test scenes apart from their train scenes, too. A split that asks for more
    pictures of a kind than it owns scenes shows its scenes again, drawn anew.

    Args:
        num_train, num_val, num_test (`int`): the number of scenes of each split, 0 or more.
        seed (`int`, *optional*, defaults to 0): the seed of the world.

    Returns:
        `dict[str, list[Scene]]`: the scenes of `"train"`, `"val"` and `"test"`, kinds mixed.

    Raises:
        ValueError: when a number is negative.
    """
    numbers = {"train": num_train, "val": num_val, "test": num_test}
    for split, number in numbers.items():
        if number < 0:
            raise ValueError(f"num_{split} is {number}; it must be 0 or more")
    rng = random.Random(f"scenes {seed}")
    dealt: dict[str, list[Scene]] = {split: [] for split in numbers}
    for kind, scenes in all_scenes().items():
        for split, owned in _share_out(scenes, rng).items():
            dealt[split] += [owned[i % len(owned)] for i in range(_number_of(kind, numbers[split]))]
    for split in numbers:
        rng.shuffle(dealt[split])
    return dealt


def _share_out(scenes: list[Scene], rng: random.Random) -> dict[str, list[Scene]]:
    shuffled = rng.sample(scenes, len(scenes))
    num_test, num_val = (round(_SPLIT_SHARES[split] * len(scenes)) for split in ("test", "val"))
    held_out = num_test + num_val
    return {"train": shuffled[held_out:], "val": shuffled[num_test:held_out], "test": shuffled[:num_test]}


def _number_of(kind: str, total: int) -> int:
    numbers = {name: int(share * total) for name, share in _SCENE_MIX.items()}
    numbers["pair"] += total - sum(numbers.values())
    return numbers[kind]
