"""Pictures of URLs, fetched once into a folder: those that fail are counted, logged and left out."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock

from ...modeling.captioner_image_io import open_image
from ...modeling.captioner_image_limits import MAX_BYTES, ImageError, limit_of
from ...modeling.captioner_image_url import read_url
from ..files import write_whole
from ..json_lines import JsonLines, read_json_lines
from ..printable import printable
from ..progress import progress

logger = logging.getLogger(__name__)

FAILURES = "failures.jsonl"
THREADS, TIMEOUT = 16, 20.0  # seconds

_Path: TypeAlias = str | os.PathLike[str]
_SHOWN = 5


def fetch_images(
    urls: Iterable[str], folder: _Path, threads: int = THREADS, timeout: float = TIMEOUT
) -> dict[str, Path]:
    """Fetch pictures that are not there yet.

    A picture that cannot be fetched or opened is written down in `failures.jsonl`, with its URL and the reason, and is
    not asked for again; delete that file to try once more. A fetch that was stopped goes on where it was.

    Args:
        urls (`Iterable[str]`): http or https.
        folder (`str` or `os.PathLike`): where the pictures are kept, each under a name made of its URL.
        threads (`int`, defaults to 16): pictures at a time.
        timeout (`float`, defaults to 20): seconds for one.

    Returns:
        `dict[str, Path]`: URL -> file, of all pictures that are there now.

    Raises:
        OSError: the folder cannot be written.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    wanted = {url: root / _name(url) for url in urls}
    with FileLock(root / ".lock"):  # other processes of the same training wait, and find everything
        failures = root / FAILURES
        known = {record.get("url") for record in read_json_lines(failures)} if failures.is_file() else set()
        there = {entry.name for entry in os.scandir(root)}
        missing = [url for url, path in wanted.items() if path.name not in there and url not in known]
        if missing:
            _fetch_all(missing, wanted, JsonLines(failures), threads, timeout)
        there = {entry.name for entry in os.scandir(root)}
    present = {url: path for url, path in wanted.items() if path.name in there}
    absent = [url for url in wanted if url not in present]
    if absent:
        logger.warning(
            "%s: %d of %d pictures could not be fetched and are left out, such as %s; %s says why",
            *(root, len(absent), len(wanted), printable(", ".join(absent[:_SHOWN])), failures),
        )
    return present


def _name(url: str) -> str:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _fetch_all(urls: list[str], paths: dict[str, Path], failures: JsonLines, threads: int, timeout: float) -> None:
    with failures, ThreadPoolExecutor(threads, thread_name_prefix="fetch_images") as pool:
        results = pool.map(partial(_fetch, paths=paths, timeout=timeout), urls)
        for url, error in zip(urls, progress(results, total=len(urls), unit="picture", desc="fetching"), strict=True):
            if error is not None:
                failures.append({"url": url, "error": error})


def _fetch(url: str, paths: dict[str, Path], timeout: float) -> str | None:
    """Fetch a picture; returns why there is none."""
    max_bytes = limit_of("bytes", MAX_BYTES)
    try:
        content = read_url(url, max_bytes, timeout)
        open_image(content)  # refuses more than `max_bytes`, too
    except ImageError as error:
        return str(error)
    write_whole(paths[url], lambda temporary: temporary.write_bytes(content))
    return None
