"""Files of a caption retriever, read with checks and written; see [`CaptionRetriever`]."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

CONFIG, CAPTIONS, EMBEDDINGS = "retriever_config.json", "captions.jsonl", "captions.safetensors"
VERSION = 1


class RetrieverError(ValueError):
    """A caption retriever that cannot be used. The message names the folder and the file."""


def read_retriever(path: Path) -> tuple[dict[str, Any], list[str], list[list[int | str]], torch.Tensor]:
    """Read settings, captions, ids of the pictures that have them, and embeddings.

    Args:
        path (`Path`): the folder.

    Returns:
        `tuple`: what stands in `CONFIG`, the captions, for each the ids, and embeddings `(captions, width)`.

    Raises:
        RetrieverError: a file is missing or broken, or is of another retriever.
    """
    settings = _read_config(path)
    captions, image_ids = _read_captions(path / CAPTIONS)
    embeddings = _read_embeddings(path / EMBEDDINGS)
    width: int = settings["width"]
    for file, shape in ((CAPTIONS, [len(captions), width]), (EMBEDDINGS, list(embeddings.shape))):
        if shape != [settings["captions"], width]:
            raise RetrieverError(
                f"{path / file}: has {shape[0]} captions of width {shape[1]}, but {CONFIG} says {settings['captions']} "
                f"and {width}: these are files of different retrievers; build it again."
            )
    return settings, captions, image_ids, embeddings


def write_retriever(
    path: Path,
    settings: dict[str, Any],
    captions: Sequence[str],
    image_ids: Sequence[Sequence[int | str]],
    embeddings: torch.Tensor,
) -> None:
    """Write the files that [`read_retriever`] reads; the settings last, without which there is no retriever.

    Args:
        path (`Path`): the folder, which is there.
        settings (`dict`): `encoder`, `search` and `faiss_factory`.
        captions, image_ids, embeddings: of the pool.
    """
    lines = (
        json.dumps({"caption": caption, "image_ids": ids}, ensure_ascii=False)
        for caption, ids in zip(captions, image_ids, strict=True)
    )
    (path / CAPTIONS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    save_file({"embeddings": embeddings.contiguous()}, path / EMBEDDINGS)
    sizes = {"version": VERSION, "captions": len(captions), "width": embeddings.shape[1]}
    (path / CONFIG).write_text(json.dumps({**sizes, **settings}, indent=2) + "\n", encoding="utf-8")


def _check_file(file: Path) -> None:
    """Refuse a FIFO or a device, whose opening waits, for ever; what is missing has its own error."""
    if file.exists() and not file.is_file():
        raise RetrieverError(f"{file}: is no file.")


def _read_config(path: Path) -> dict[str, Any]:
    """The settings of a retriever, checked."""
    file = path / CONFIG
    _check_file(file)
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RetrieverError(
            f"{path}: has no {CONFIG}: no caption retriever; `hf-captioners retrieval build` makes one."
        ) from error
    except (ValueError, OSError) as error:
        raise RetrieverError(f"{file}: cannot be read: {error}") from error
    kinds: dict[str, Any] = {"captions": int, "width": int, "search": str, "faiss_factory": str}
    if not isinstance(settings, dict):
        raise RetrieverError(f"{file}: is no JSON object.")
    wrong = [name for name, kind in kinds.items() if type(settings.get(name)) is not kind]
    if wrong or not isinstance(settings.get("encoder"), (str, type(None))):
        raise RetrieverError(f"{file}: no {(wrong or ['encoder'])[0]} as `hf-captioners retrieval build` writes it.")
    if settings.get("version") != VERSION:
        raise RetrieverError(f"{file}: version {settings.get('version')!r}, expected {VERSION}.")
    return settings


def _read_captions(file: Path) -> tuple[list[str], list[list[int | str]]]:
    """The captions of the pool and the pictures that have them."""
    captions: list[str] = []
    image_ids: list[list[int | str]] = []
    _check_file(file)
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                record = json.loads(line)
                if not isinstance(record, dict) or not isinstance(record.get("caption"), str):
                    raise RetrieverError(f"{file}: line {number} has no 'caption'.")
                ids = record.get("image_ids")
                if not isinstance(ids, list) or any(type(image_id) not in (int, str) for image_id in ids):
                    raise RetrieverError(f"{file}: line {number} has no list of 'image_ids'.")
                captions.append(record["caption"])
                image_ids.append(ids)
    except RetrieverError:
        raise
    except (OSError, ValueError) as error:
        raise RetrieverError(f"{file}: cannot be read after {len(captions)} captions: {error}") from error
    return captions, image_ids


def _read_embeddings(file: Path) -> torch.Tensor:
    """The embeddings of the pool."""
    _check_file(file)
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise RetrieverError(f"{file}: cannot be read: {error}") from error
    embeddings = tensors.get("embeddings")
    if embeddings is None or embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise RetrieverError(f"{file}: has no embeddings (captions, width), but {', '.join(tensors) or 'nothing'}.")
    return embeddings
