"""A data set of a few pictures, the folder of a tiny CLIP that knows its words, and a retriever of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contracts.metric import random_images, tiny_clip

CAPTIONS = [
    ["A red dog .", "the dog runs"],
    ["a cat sleeps on a mat", "a red dog"],
    ["waves on a beach", "the sea at night", "A red  dog."],
    ["two birds", "a man rides a horse"],
]
POOL = ["A red dog .", "the dog runs", "a cat sleeps on a mat", "waves on a beach", "the sea at night", "two birds"]
POOL += ["a man rides a horse"]
IDS = [0, 1, 2, 3]


def save_clip(folder: Path, captions: Sequence[Sequence[str]] = CAPTIONS) -> Path:
    """The folder of a CLIP with tokenizer and image processor."""
    for part in tiny_clip([text for texts in captions for text in texts]).values():
        part.save_pretrained(folder)
    return folder


def save_dataset(folder: Path) -> tuple[Path, Path]:
    """Annotations in Karpathy's layout, the last picture of the validation split, and the folder of the pictures."""
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    for number, (image, captions) in enumerate(zip(random_images(len(CAPTIONS)), CAPTIONS, strict=True)):
        image.save(folder / "images" / f"{number}.png")
        split = "val" if number == len(CAPTIONS) - 1 else "train"
        sentences = [{"raw": caption, "sentid": 10 * number + at} for at, caption in enumerate(captions)]
        images.append({"filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    return folder / "dataset.json", folder / "images"


def rows() -> list[dict[str, Any]]:
    """The pictures and captions as rows."""
    return [
        {"image_id": number, "image": image, "captions": captions}
        for number, image, captions in zip(IDS, random_images(len(IDS)), CAPTIONS, strict=True)
    ]
