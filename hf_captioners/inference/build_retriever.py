"""Caption retrievers: built of a data set's captions, and asked for the sentences of all pictures of one."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.captions.records import has_word
from ..data.files import settle, working_folder, write_whole
from ..data.progress import progress
from ..modeling.captioner_dual_encoder import embed_texts, load_dual_encoder
from ..modeling.captioner_image_io import ImageError
from ..modeling.captioner_retriever import CaptionRetriever
from .device import choose_device

TOP = 20
"""Sentences of each picture in a file, as many as the authors of SCD-Net kept."""
_IMAGES_AT_A_TIME = 64


def pool_captions(rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], list[list[int | str]]]:
    """The different captions of rows, and for each the pictures that have it.

    Captions that differ in case, white space or the full stop at the end are one; it is written as it occurs first.
    Captions without a word are left out.

    Args:
        rows (`Iterable[Mapping]`): with `image_id` and `captions`.

    Returns:
        `tuple[list[str], list[list[int | str]]]`: captions in the order of the rows, and ids.

    Example:

    ```python
    >>> from hf_captioners.inference.build_retriever import pool_captions
    >>> pool_captions([{"image_id": 1, "captions": ["A dog .", "Waves ."]}, {"image_id": 2, "captions": ["a dog"]}])
    (['A dog .', 'Waves .'], [[1, 2], [1]])

    ```
    """
    first: dict[str, str] = {}
    owners: dict[str, dict[int | str, None]] = {}
    for row in rows:
        for caption in row["captions"]:
            if has_word(caption):
                key = " ".join(caption.casefold().split()).rstrip(" .")
                first.setdefault(key, caption)
                owners.setdefault(key, {})[row["image_id"]] = None
    return list(first.values()), [list(ids) for ids in owners.values()]


@torch.inference_mode()
def _embed_captions(encoder: tuple[Any, Any, Any], captions: Sequence[str], batch_size: int) -> torch.Tensor:
    """Embeddings of captions, (captions, width); captions of about the same length are embedded together."""
    order = sorted(range(len(captions)), key=lambda place: len(captions[place]))
    rows = []
    with progress(total=len(captions), desc="captions", unit="caption") as bar:
        for start in range(0, len(order), batch_size):
            batch = [captions[place] for place in order[start : start + batch_size]]
            rows.append(embed_texts(encoder[0], encoder[1], batch).float().cpu())
            bar.update(len(batch))
    return torch.cat(rows)[torch.tensor(order).argsort()]


def build_retriever(
    rows: Iterable[Mapping[str, Any]],
    clip: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    device: str = "auto",
    dtype: torch.dtype = torch.float16,
    search: str = "auto",
    faiss_factory: str = "Flat",
    trust_remote_code: bool = False,
) -> CaptionRetriever:
    """Build a caption retriever of the captions of rows, and write its folder, whole or not at all.

    Args:
        rows (`Iterable[Mapping]`): with `image_id` and `captions`: the pool, such as the training split.
        clip (`str` or `os.PathLike`): folder or Hub name of a `CLIPModel` or `VisionTextDualEncoderModel`. A folder is
            copied into the retriever's, a Hub name is written down.
        out_dir (`str` or `os.PathLike`): the folder to write, a new or an empty one.
        batch_size (`int`, defaults to 64): captions at a time.
        device (`str`, defaults to `"auto"`): see `choose_device`.
        dtype (`torch.dtype`, defaults to `torch.float16`): of the embeddings in the file.
        search (`str`), faiss_factory (`str`): see [`CaptionRetriever`].
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the encoder may run.

    Returns:
        [`CaptionRetriever`]: as it was written.

    Raises:
        ValueError: no captions, an encoder that cannot be used, a folder that is not empty.

    Example:

    ```python
    >>> from hf_captioners import load_karpathy
    >>> from hf_captioners.inference.build_retriever import build_retriever
    >>> rows = load_karpathy("dataset_coco.json", split="train+restval")  # doctest: +SKIP
    >>> len(build_retriever(rows, "openai/clip-vit-base-patch32", "scdnet/retrieval"))  # doctest: +SKIP
    550712

    ```
    """
    target = Path(out_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target}: is not empty; give a new folder, or remove this one first")
    captions, image_ids = pool_captions(rows)
    if not captions:
        raise ValueError("the rows have no captions with words; a retriever needs some")
    encoder = _load_encoder(clip, device, trust_remote_code)
    embeddings = _embed_captions(encoder, captions, batch_size)
    named = str(clip) if not Path(clip).is_dir() else encoder
    retriever = CaptionRetriever(captions, image_ids, embeddings, named, search, faiss_factory, trust_remote_code)
    target.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(target.parent, f".{target.name}.", ".new") as temporary:
        retriever.save_pretrained(temporary, dtype)
        settle(temporary)
        if target.exists():
            target.rmdir()  # empty
        temporary.rename(target)
    return CaptionRetriever.from_pretrained(target, trust_remote_code=trust_remote_code)


def _load_encoder(clip: str | os.PathLike[str], device: str, trust_remote_code: bool) -> tuple[Any, Any, Any]:
    """The dual encoder on its device, with tokenizer and image processor."""
    target = choose_device(device)
    try:
        model, tokenizer, image_processor = load_dual_encoder(os.fspath(clip), trust_remote_code)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"clip={os.fspath(clip)!r} cannot be loaded: {error}") from error
    lacking = "tokenizer" if tokenizer is None else "image processor" if image_processor is None else None
    if lacking is not None:
        raise ValueError(f"clip={os.fspath(clip)!r}: the folder has no {lacking}, and a retriever needs one")
    return model.to(target), tokenizer, image_processor  # type: ignore[arg-type]


def look_up(retriever: CaptionRetriever, rows: Iterable[Mapping[str, Any]], top: int = TOP) -> Iterator[dict[str, Any]]:
    """The sentences of the pictures of rows, never their own captions.

    Args:
        retriever ([`CaptionRetriever`]): the pool.
        rows (`Iterable[Mapping]`): with `image_id` and `image`, as `open_image` takes it.
        top (`int`, defaults to 20): sentences of each picture.

    Returns:
        `Iterator[dict]`: `{"image_id": id, "captions": [sentence, ...]}`, nearest first; `error` in the place of
        `captions` where a picture cannot be opened.
    """
    remaining = iter(rows)
    while chunk := list(itertools.islice(remaining, _IMAGES_AT_A_TIME)):
        embeddings: dict[int, torch.Tensor] = {}
        errors: dict[int, str] = {}
        for index, row in enumerate(chunk):
            try:
                embeddings[index] = retriever.embed([row["image"]])
            except ImageError as error:
                errors[index] = str(error)
        nearest: list[list[str]] = []
        if embeddings:
            ids = [chunk[index]["image_id"] for index in embeddings]
            nearest = retriever.nearest(torch.cat(list(embeddings.values())), top, ids)
        sentences = dict(zip(embeddings, nearest, strict=True))
        for index, row in enumerate(chunk):
            said = {"error": errors[index]} if index in errors else {"captions": sentences[index]}
            yield {"image_id": row["image_id"], **said}


def write_look_up(
    retriever: CaptionRetriever, rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], top: int = TOP
) -> dict[Any, str]:
    """Write the sentences of the pictures of rows as JSON lines, whole or not at all.

    Args:
        retriever ([`CaptionRetriever`]), rows (`Sequence[Mapping]`), top (`int`): see [`look_up`].
        path (`str` or `os.PathLike`): the file.

    Returns:
        `dict[int | str, str]`: the pictures that could not be opened, and why.
    """
    errors: dict[Any, str] = {}

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            for record in look_up(retriever, progress(rows, desc="sentences", unit="image"), top):
                if "error" in record:
                    errors[record["image_id"]] = record["error"]
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    write_whole(Path(path), write)
    return errors
