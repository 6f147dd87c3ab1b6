"""The index of a feature store and the checks of its shards; `store` says what a store is."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..files import sha256_of, write_whole

logger = logging.getLogger(__name__)

ImageId = int | str

INDEX_NAME = "index.json"
FORMAT = "hf_captioners.image_features"
VERSION = 2
_READ_VERSIONS = (1, 2)
VERIFIED_NAME = "verified.json"
SHARD_NAME = re.compile(r"features-\d{5,}\.safetensors")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class FeatureError(ValueError):
    """Features, or a folder of them, that are not what they should be."""


def read_index(folder: Path) -> dict[str, Any]:
    """Read and check a store's `index.json`."""
    path = folder / INDEX_NAME
    _check_regular(path)
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FeatureError(f"{folder}: no {INDEX_NAME}, so this is not a folder of image features") from error
    except ValueError as error:
        raise FeatureError(f"{path}: not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise FeatureError(f"{path}: not the index of image features (field 'format' is not {FORMAT!r})")
    if index.get("version") not in _READ_VERSIONS:
        raise FeatureError(
            f"{path}: field 'version' is {index.get('version')!r}, this release reads "
            f"{' and '.join(map(str, _READ_VERSIONS))}"
        )
    try:
        _check_index(index)
    except (KeyError, TypeError, AttributeError) as error:
        raise FeatureError(f"{path}: damaged, {type(error).__name__}: {error}") from error
    return index


def _check_index(index: dict[str, Any]) -> None:
    if index["dtype"] not in DTYPES:
        raise TypeError(f"field 'dtype' is {index['dtype']!r}, expected one of {', '.join(DTYPES)}")
    for shard in index["shards"]:
        if not SHARD_NAME.fullmatch(shard["file"]):
            raise TypeError(f"{shard['file']!r} is not the name of a shard")
        if not isinstance(shard["ids"], list) or not isinstance(shard["bytes"], int):
            raise TypeError(f"shard {shard['file']!r} has no list 'ids' or no number 'bytes'")
        if not isinstance(shard.get("sha256", ""), str):
            raise TypeError(f"shard {shard['file']!r} has a 'sha256' that is no text")
    _check_unique("shard", (shard["file"] for shard in index["shards"]))
    _check_unique("image", (image_id for shard in index["shards"] for image_id in shard["ids"]))
    if not isinstance(index["feature_size"], int | None) or not isinstance(index["metadata"], dict):
        raise TypeError("field 'feature_size' is not a number or 'metadata' not an object")
    if not isinstance(index["complete"], bool) or not isinstance(index["errors"], list):
        raise TypeError("field 'complete' is not true or false or 'errors' not a list")


def _check_unique(kind: str, values: Iterable[Any]) -> None:
    known: set[Any] = set()
    for value in values:
        if value in known:
            raise TypeError(f"{kind} {value!r} is in it twice")
        known.add(value)


def check_shards(folder: Path, index: dict[str, Any]) -> None:
    """Check that every shard is there in full length; sizes only, for reading all of them may take minutes."""
    for shard in index["shards"]:
        path = folder / shard["file"]
        _check_regular(path)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise FeatureError(f"{path}: this shard of the features is missing") from error
        if size != shard["bytes"]:
            raise FeatureError(f"{path}: damaged, it has {size} bytes instead of {shard['bytes']}")


def _check_regular(path: Path) -> None:
    """Refuse a FIFO or a device, which would be waited for; a missing file has its own error."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise FeatureError(f"{path}: is not a regular file")


def stamp_of(path: Path) -> list[int]:
    """Size and times of a file: what differs after it was changed, all but certainly."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def read_stamps(folder: Path) -> dict[str, Any]:
    """Stamps of the shards whose checksums have been found right; empty where that is not known."""
    path = folder / VERIFIED_NAME
    try:
        stamps = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def write_stamps(folder: Path, stamps: dict[str, list[int]]) -> None:
    """Note the stamps of shards whose checksums are right, where that can be written."""
    text = json.dumps(stamps)
    try:
        write_whole(folder / VERIFIED_NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:  # a folder of somebody else: its checksums are compared each time
        logger.info("%s: cannot note that its checksums are right: %s", folder, error)


def verify_shards(folder: Path, index: dict[str, Any], everything: bool) -> None:
    """Compare the checksums of shards, of all of them or of those that changed since they were last found right."""
    known = {} if everything else read_stamps(folder)
    shards = {shard["file"]: shard["sha256"] for shard in index["shards"] if "sha256" in shard}
    stamps = {name: stamp_of(folder / name) for name in shards}
    changed = [name for name, stamp in stamps.items() if known.get(name) != stamp]
    if changed:
        logger.info("%s: comparing the checksums of %d of %d shards, once", folder, len(changed), len(shards))
    for name in changed:
        if sha256_of(folder / name) != shards[name]:
            raise FeatureError(
                f"{folder / name}: damaged, its content is not what was written (SHA-256); copy it again, or delete "
                "the folder and compute the features again"
            )
    if changed:
        write_stamps(folder, stamps)
