"""Drawing the scenes of the sample world with PIL."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from .scene import COLORS, Scene, Thing

_SUPERSAMPLING = 4
_MARGIN = 0.015  # free border around every shape, as a share of the picture's side
_RADII = {"small": (0.128, 0.145), "large": (0.2, 0.216)}  # shares of the picture's side; the gap keeps sizes apart

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def _polygon(corners: int, *, inner: float = 1.0, turn: float = -90.0) -> list[Point]:
    """Corners on the unit circle, clockwise from the top; with `inner < 1` every second one lies on an inner circle."""
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    radii = [1.0 if i % 2 == 0 else inner for i in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[Point]:
    steps = [2 * math.pi * i / 48 for i in range(48)]
    curve = [(16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t))) for t in steps]
    return [(x / 16.5, (y - 1.5) / 16.5) for x, y in curve]


def _cross(arm: float = 0.34) -> list[Point]:
    quarter = [(arm, -0.95), (arm, -arm), (0.95, -arm)]
    turns = [quarter, [(-y, x) for x, y in quarter], [(-x, -y) for x, y in quarter], [(y, -x) for x, y in quarter]]
    return [point for corners in turns for point in corners]


# around (0, 0), y downwards; within 1 of it on both axes, also when turned by 9 degrees
_OUTLINES: dict[str, list[Point]] = {
    "circle": [(0.94 * x, 0.94 * y) for x, y in _polygon(64)],
    "square": [(-0.83, -0.83), (0.83, -0.83), (0.83, 0.83), (-0.83, 0.83)],
    "triangle": [(0.0, -0.96), (0.89, 0.74), (-0.89, 0.74)],
    "star": [(x, y + 0.05) for x, y in _polygon(10, inner=0.46)],
    "heart": _heart(),
    "cross": _cross(),
}


def draw_scene(scene: Scene, size: int = 96, rng: random.Random | None = None) -> Image.Image:
    """Draw a scene on a pale background, with jittered positions, radii, angles and tints.

    Args:
        scene (`Scene`): what to draw.
        size (`int`, *optional*, defaults to 96): the side of the square picture in pixels, 16 or more.
        rng (`random.Random`, *optional*, defaults to `random.Random(0)`): the source of the jitter.

    Returns:
        `PIL.Image.Image`: an RGB picture of `size` x `size` pixels; shapes neither overlap nor touch the border.

    Raises:
        ValueError: when `size` is below 16 pixels.

    Example:

        >>> draw_scene(Scene((Thing("star", "green", count=3),)), size=64).size
        (64, 64)
    """
    if size < 16:
        raise ValueError(f"size is {size} pixels; a picture needs at least 16 for its shapes to be told apart")
    rng = rng or random.Random(0)
    canvas = _background(size, rng).resize((size * _SUPERSAMPLING,) * 2, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(canvas)
    for thing, center, radius in _layout(scene, rng):
        angle = math.radians(rng.uniform(-9, 9))
        shade = rng.randint(-12, 12)
        fill = tuple(max(0, min(255, value + shade + rng.randint(-4, 4))) for value in COLORS[thing.color])
        outline = [_placed(point, center, radius, angle, canvas.width) for point in _OUTLINES[thing.shape]]
        pen.polygon(outline, fill=fill)
    return canvas.reduce(_SUPERSAMPLING)


def _background(side: int, rng: random.Random) -> Image.Image:
    """A pale tint that runs into a slightly different one, from top to bottom or from left to right."""
    light = rng.randint(232, 248)
    tints = [tuple(light + rng.randint(-9, 7) for _ in range(3)) for _ in range(2)]
    gradient = Image.linear_gradient("L").resize((side, side))  # black at the top, white at the bottom
    if rng.random() < 0.5:
        gradient = gradient.transpose(Image.Transpose.ROTATE_90)
    first, second = (Image.new("RGB", (side, side), tint) for tint in tints)
    return Image.composite(first, second, gradient)


def _layout(scene: Scene, rng: random.Random) -> list[tuple[Thing, Point, float]]:
    """Every object with its centre and radius, in shares of the picture's side."""
    if scene.kind == "pair":
        return _layout_pair(scene, rng)
    thing = scene.things[0]
    radii = [rng.uniform(*_RADII[thing.size]) for _ in range(thing.count)]
    cells: list[Box] = [(0.0, 0.0, 1.0, 1.0)]
    if thing.count > 1:
        cells = rng.sample([(x, y, x + 0.5, y + 0.5) for x in (0.0, 0.5) for y in (0.0, 0.5)], thing.count)
    return [(thing, _somewhere(cell, radius, rng), radius) for cell, radius in zip(cells, radii, strict=True)]


def _layout_pair(scene: Scene, rng: random.Random) -> list[tuple[Thing, Point, float]]:
    """Each object in its half, both near one line across, so that a relation is never a matter of opinion."""
    radii = [rng.uniform(*_RADII[thing.size]) for thing in scene.things]
    border = max(radii) + _MARGIN
    line = rng.uniform(border, 1 - border)
    halves = [(0.0, 0.5), (0.5, 1.0)]
    if scene.relation in ("right of", "below"):
        halves.reverse()
    placed = []
    for thing, radius, (low, high) in zip(scene.things, radii, halves, strict=True):
        along = rng.uniform(low + radius + _MARGIN, high - radius - _MARGIN)
        across = min(1 - border, max(border, line + rng.uniform(-0.06, 0.06)))
        placed.append(
            (thing, (along, across) if scene.relation in ("left of", "right of") else (across, along), radius)
        )
    return placed


def _somewhere(box: Box, radius: float, rng: random.Random) -> Point:
    left, top, right, bottom = box
    reach = radius + _MARGIN
    return rng.uniform(left + reach, right - reach), rng.uniform(top + reach, bottom - reach)


def _placed(point: Point, center: Point, radius: float, angle: float, side: int) -> tuple[int, int]:
    """A corner of an outline on the canvas; whole numbers, so that pictures do not hang on the last bit of a sine."""
    x, y = point
    turned = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    return round((center[0] + radius * turned[0]) * side), round((center[1] + radius * turned[1]) * side)
