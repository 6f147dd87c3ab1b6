"""The folder that an evaluation leaves: numbers for programs, and a page that shows a person where a captioner fails.

- `index.html`: corpus scores, the signature, charts, and the images with the lowest and the highest scores, each with
  picture, caption, references and scores. No scripts, no network.
- `thumbnails/`: the pictures on the page, small.
- `scores.json`: corpus scores as computed, what papers multiply them by, and the signature.
- `per_image.jsonl`: every image with caption, references and scores, in the order given.

The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..data.files import bring_back, replace_folder, working_folder, write_whole
from ..data.progress import progress
from ..extras import explained
from ..metric_table import printed
from ..metrics.inputs import check_pairs
from ..metrics.scores import Scores
from ..modeling.captioner_image_io import ImageError, open_image
from .score_report_charts import Chart, draw_bars, draw_histogram
from .score_report_page import GENERATOR, Card, label, render_page, scale, scaled, scaled_label

logger = logging.getLogger(__name__)

_PAGE, _SCORES, _PER_IMAGE, _THUMBNAILS = "index.html", "scores.json", "per_image.jsonl", "thumbnails"
_THUMBNAIL = re.compile(r"[0-9]+\.jpg")
_THUMBNAIL_SIDE, _THUMBNAIL_QUALITY = 400, 82  # pixels of the longer side
_SORT_BY = "cider_d"

_Row: TypeAlias = tuple[int | str, str, Sequence[str]]


def write_report(
    folder: str | Path,
    scores: Scores,
    image_ids: Sequence[int | str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    signature: Mapping[str, Any],
    images: Mapping[Any, Any] | None = None,
    sort_by: str | None = None,
    title: str = "Caption scores",
    max_images: int = 200,
) -> Path:
    """Write the report of an evaluation.

    Args:
        folder (`str` or `Path`): where; new, empty, or an earlier report, which is replaced.
        scores ([`Scores`]): finite numbers as computed, with the scores of the single images in the order of the rest.
        image_ids (`Sequence[int | str]`): names of the images.
        predictions (`Sequence[str]`): a caption per image.
        references (`Sequence[Sequence[str]]`): the references of each image.
        signature (`Mapping[str, Any]`): the settings of the scores; anything that JSON can hold.
        images (`Mapping`, *optional*): image id -> file, or what else [`open_image`] takes. A file that cannot be
            opened is named on the page.
        sort_by (`str`, *optional*): the score of single images to sort by; by default `"cider_d"`, or, where that was
            not computed, the first.
        title (`str`, defaults to `"Caption scores"`): headline of the page.
        max_images (`int`, defaults to 200): most images on the page, half of them the lowest, half the highest.

    Returns:
        `Path`: the page, `folder/index.html`.

    Raises:
        FileExistsError: `folder` has something in it that is not of a report.
        MetricInputError: captions, references and ids that do not fit, see [`check_pairs`].
        ValueError: scores that do not fit or are not finite, a signature that JSON cannot hold, no score `sort_by`.

    Example:

    ```python
    >>> import tempfile
    >>> import numpy as np
    >>> from hf_captioners.reports.score_report import write_report
    >>> from hf_captioners.metrics.scores import Scores
    >>> scores = Scores({"bleu_1": 0.75}, {"bleu_1": np.array([1.0, 0.5])})
    >>> folder = tempfile.mkdtemp()
    >>> page = write_report(folder, scores, [7, 9], ["a dog", "a cat"], [["a dog"], ["a hat"]], signature={"beam": 5})
    >>> sorted(path.name for path in page.parent.iterdir())
    ['index.html', 'per_image.jsonl', 'scores.json']

    ```
    """
    check_pairs(predictions, references, image_ids)
    _check_scores(scores, image_ids)
    _check_signature(signature)
    if max_images < 0:
        raise ValueError(f"max_images is {max_images}, expected 0 or more")
    sort_by = _sort_key(scores, sort_by)
    rows = list(zip(image_ids, predictions, references, strict=True))
    with _new_folder(folder) as new:
        sections = _sections(rows, scores, sort_by, max_images, images, new)
        charts = _charts(scores, sort_by)
        summary = f"{len(rows)} images, sorted by the {label(sort_by)} of each."
        page = render_page(title, summary, scores.corpus, signature, charts, sections)
        write_whole(new / _PAGE, lambda path: path.write_text(page, encoding="utf-8"))
        write_whole(new / _SCORES, lambda path: path.write_text(_scores_json(scores, signature), encoding="utf-8"))
        write_whole(new / _PER_IMAGE, lambda path: _write_per_image(path, rows, scores))
    return Path(folder) / _PAGE


def check_report_folder(folder: str | Path) -> Path:
    """Check, before the work, that a report may be written to a folder.

    Args:
        folder (`str` or `Path`): need not exist.

    Returns:
        `Path`: the folder, absolute, links resolved.

    Raises:
        FileExistsError: it is a file, or a folder with something in it that is not of a report.
    """
    path = Path(folder).resolve()
    bring_back(path)
    if not path.exists():
        return path
    if not path.is_dir():
        raise FileExistsError(f"{folder}: is not a folder; give a new or an empty one")
    entries = sorted(path.iterdir())
    foreign = [entry.name for entry in entries if not _has_name_of_report(entry)]
    if entries and not foreign and not _is_page(path / _PAGE):
        foreign = [entries[0].name]
    if foreign:
        raise FileExistsError(
            f"{folder}: holds {foreign[0]!r}, which is not of an earlier report; give another folder, or move it away"
        )
    return path


def _has_name_of_report(entry: Path) -> bool:
    if entry.is_symlink():
        return False
    if entry.name == _THUMBNAILS and entry.is_dir():
        return all(_THUMBNAIL.fullmatch(path.name) and path.is_file() for path in entry.iterdir())
    return entry.name in (_PAGE, _SCORES, _PER_IMAGE) and entry.is_file()


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(1000)


@contextmanager
def _new_folder(folder: str | Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends, and is removed after an error."""
    target = check_report_folder(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(target.parent, f".{target.name}.", ".new") as new:
        yield new
        replace_folder(new, check_report_folder(folder))


# --- what is refused ------------------------------------------------------------------------------------------------


def _check_scores(scores: Scores, image_ids: Sequence[int | str]) -> None:
    for image_id in image_ids:
        if not isinstance(image_id, (int, str)):
            raise ValueError(f"image_ids has {image_id!r} of {type(image_id)}, expected integers and strings")
    for name, score in scores.corpus.items():
        if not math.isfinite(score):
            raise ValueError(f"scores.corpus[{name!r}] is {score}, expected a finite number")
    if not scores.per_image:
        raise ValueError("scores.per_image is empty; a report sorts images by one of their scores")
    for name, values in scores.per_image.items():
        if name in ("image_id", "caption", "references"):
            raise ValueError(f"scores.per_image has a score named {name!r}, which per_image.jsonl has another use for")
        if np.shape(values) != (len(image_ids),):
            raise ValueError(
                f"scores.per_image[{name!r}] has shape {np.shape(values)}, expected ({len(image_ids)},), one per image"
            )
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            raise ValueError(
                f"scores.per_image[{name!r}]: image {image_ids[bad[0]]!r} has {values[bad[0]]}, expected finite numbers"
            )


def _check_signature(signature: Mapping[str, Any]) -> None:
    for name, value in signature.items():
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"signature[{name!r}] is {value!r}, expected what JSON can hold ({error})") from error


def _sort_key(scores: Scores, sort_by: str | None) -> str:
    if sort_by is None:
        return _SORT_BY if _SORT_BY in scores.per_image else next(iter(scores.per_image))
    if sort_by not in scores.per_image:
        raise ValueError(f"sort_by is {sort_by!r}, expected one of {', '.join(scores.per_image)}")
    return sort_by


# --- the page -------------------------------------------------------------------------------------------------------


def _charts(scores: Scores, sort_by: str) -> list[Chart] | str:
    values = scale(sort_by) * np.asarray(scores.per_image[sort_by], dtype=np.float64)
    spread = _describe(values, scaled_label(sort_by))
    bars = {label(name): float(score) for name, score in scores.corpus.items() if printed(name)}
    try:
        charts = [draw_bars(bars)] if bars else []  # scores that papers do not print may be of any size
        return [*charts, draw_histogram(values, scaled_label(sort_by), spread)]
    except ImportError as error:
        logger.warning("the report has no charts, which matplotlib draws: %s", explained(error))
        return f"{spread} No charts here: matplotlib is not installed (the extra 'plot')."


def _describe(values: np.ndarray, name: str) -> str:
    low, lower, median, upper, high = (f"{value:.4g}" for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    return (
        f"{name} of one image: lowest {low}, lower quartile {lower}, median {median}, upper quartile {upper}, "
        f"highest {high}, mean {values.mean():.4g}."
    )


def _sections(
    rows: Sequence[_Row],
    scores: Scores,
    sort_by: str,
    max_images: int,
    images: Mapping[Any, Any] | None,
    folder: Path,
) -> list[tuple[str, list[Card]]]:
    """The images with the lowest scores from below, and those with the highest from above; none is in both."""
    rising = [int(index) for index in np.argsort(scores.per_image[sort_by], kind="stable")]
    count = min(max_images, len(rows))
    parts = {"lowest": rising[: count - count // 2], "highest": rising[len(rows) - count // 2 :][::-1]}
    sections = []
    with progress(total=count, desc="report", unit="image") as bar:
        for end, indices in parts.items():
            cards = []
            for number, index in enumerate(indices, start=1):
                image_file = None if images is None else images.get(rows[index][0])
                single = _single(scores, index)
                place = f"{label(sort_by)} {scaled(sort_by, single[sort_by])}, {end} {number} of {len(rows)}"
                cards.append(Card(*rows[index], single, place, *_thumbnail(image_file, folder, index)))
                bar.update()
            if cards:
                sections.append((f"The {end} {label(sort_by)}", cards))
    return sections


def _single(scores: Scores, index: int) -> dict[str, float]:
    return {name: float(values[index]) for name, values in scores.per_image.items()}


def _thumbnail(image_file: Any, folder: Path, index: int) -> tuple[str | None, str]:
    """Write a small copy of a picture; return its path in the folder, or why there is none."""
    if image_file is None:
        return None, "no picture given"
    try:
        image = open_image(Path(image_file) if isinstance(image_file, str) else image_file)
    except ImageError as error:
        logger.warning("the report lacks a picture: %s", error)
        return None, str(error)
    image.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    name = f"{_THUMBNAILS}/{index:06d}.jpg"
    (folder / _THUMBNAILS).mkdir(exist_ok=True)
    image.save(folder / name, format="JPEG", quality=_THUMBNAIL_QUALITY)
    return name, ""


# --- the data -------------------------------------------------------------------------------------------------------


def _scores_json(scores: Scores, signature: Mapping[str, Any]) -> str:
    corpus = {name: float(score) for name, score in scores.corpus.items()}
    number = len(next(iter(scores.per_image.values())))
    content = {
        "corpus": corpus,
        "scale": 1,
        "scale_in_papers": {name: scale(name) for name in corpus},
        "num_images": number,
        "signature": dict(signature),
    }
    return f"{_json(content, indent=2)}\n"


def _write_per_image(path: Path, rows: Sequence[_Row], scores: Scores) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for index, (image_id, caption, references) in enumerate(rows):
            record = {"image_id": image_id, "caption": caption, "references": list(references)}
            file.write(f"{_json(record | _single(scores, index))}\n")


def _json(content: Any, indent: int | None = None) -> str:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=indent)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8; JSON can hold it with escapes only
        return json.dumps(content, allow_nan=False, indent=indent)
    return text
