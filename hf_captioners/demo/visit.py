"""Plain functions from what a visitor gives to what the page shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image
from typing_extensions import Self

from ..families.loading import model_type_of
from ..inference.detect_regions import RegionDetector
from ..modeling.captioner_detector import DETECTORS
from ..modeling.captioner_image_io import ImageError, open_image
from ..modeling.captioner_image_source import describe_source
from ..modeling.processing_captioner import is_captioner_processor
from ..reports.region_images import draw_best
from .denoising import denoising_steps
from .example_folder import ExampleFolder
from .shown_captioner import Decoding, ShownCaptioner, short_name
from .word_maps import WordMaps, word_maps

CANDIDATE_HEAD = ("caption", "log p, nats")
STEP_HEAD = ("stage", "steps", "sentence")
OWN_RULE = "its own"


@dataclass
class Exhibition:
    """Captioners and detectors of a page, and pictures to begin with.

    Args:
        captioners (`list[ShownCaptioner]`), detectors (`dict[str, RegionDetector]`): by their names.
        examples ([`ExampleFolder`], *optional*): pictures to choose from.
    """

    captioners: list[ShownCaptioner]
    detectors: dict[str, RegionDetector] = field(default_factory=dict)
    examples: ExampleFolder | None = None

    def __post_init__(self) -> None:
        names = [captioner.name for captioner in self.captioners]
        for place, captioner in enumerate(self.captioners):  # two of a name are told apart by their place
            if names.count(captioner.name) > 1:
                captioner.name = f"{captioner.name} ({place + 1})"
        for captioner in self.captioners:
            detector = _detector_of(captioner)
            if detector is not None:
                self.detectors.setdefault(f"regions of {captioner.name}", detector)

    @classmethod
    def from_pretrained(
        cls,
        names: Sequence[str],
        examples: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        detector: str | None = None,
    ) -> Self:
        """Load what the page shows, examples first: a mistake in them costs no time.

        Args:
            names (`Sequence[str]`): folders or Hub names of captioners or detectors.
            examples (`str` or `Path`, *optional*): folder of pictures to choose from.
            device, dtype, trust_remote_code, detector: see `ShownCaptioner.from_pretrained`.

        Raises:
            ValueError: there is no such captioner, detector or folder; a detector that no captioner uses.
        """
        folder = None if examples is None else ExampleFolder(examples)
        captioners, detectors = [], {}
        for name in names:
            if model_type_of(name) in DETECTORS:
                detectors[short_name(name)] = RegionDetector.from_pretrained(name, device, trust_remote_code)
            else:
                shown = ShownCaptioner.from_pretrained(name, device, dtype, trust_remote_code, detector)
                captioners.append(shown)
        if detector is not None and not any(_detector_of(one) for one in captioners):
            raise ValueError(f"--detector {detector} is for captioners that read regions; none of these does")
        return cls(captioners, detectors, folder)

    @property
    def denoising(self) -> list[ShownCaptioner]:
        """The captioners whose sentences become clear step by step."""
        return [captioner for captioner in self.captioners if captioner.denoises]

    def captioner(self, name: str) -> ShownCaptioner:
        """One of the captioners by its name.

        Raises:
            ValueError: there is none of that name.
        """
        found = [one for one in self.captioners if one.name == name]
        if not found:
            raise ValueError(f"no captioner {name!r} here, but {', '.join(one.name for one in self.captioners)}")
        return found[0]


def open_upload(path: str | None) -> Image.Image:
    """Open a picture that a visitor has given, within the limits of all pictures.

    Args:
        path (`str`, *optional*): where the page has put it.

    Returns:
        `PIL.Image.Image`: upright, RGB.

    Raises:
        ImageError: there is none, or it cannot be read; the message names no place of this machine.
    """
    if path is None:
        raise ImageError("give a picture first")
    try:
        return open_image(Path(path))
    except ImageError as error:
        reason = str(error).removeprefix(f"{describe_source(path)}: ")
        raise ImageError(f"this picture cannot be read: {reason}") from error


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Make a table of HTML, whatever its texts are.

    Args:
        head (`Sequence[str]`), rows (`Iterable[Sequence]`): texts and numbers.

    Returns:
        `str`

    Example:

    ```python
    >>> from hf_captioners.demo.visit import table
    >>> table(["caption"], [["<b>"]])
    '<table class="shown"><tr><th>caption</th></tr><tr><td>&lt;b&gt;</td></tr></table>'

    ```
    """
    lines = [("th", head), *(("td", row) for row in rows)]
    cells = ["".join(f"<{tag}>{escape(str(text))}</{tag}>" for text in line) for tag, line in lines]
    return f'<table class="shown">{"".join(f"<tr>{line}</tr>" for line in cells)}</table>'


def candidate_rows(
    captioner: ShownCaptioner, image: Image.Image, decoding: Decoding, sentence: str | None = None
) -> tuple[list[list[str]], float]:
    """Write captions for a table, each of them once.

    Args:
        captioner, image, decoding, sentence: see `ShownCaptioner.write`.

    Returns:
        `tuple[list[list[str]], float]`: rows of `CANDIDATE_HEAD`, and the seconds that they took.
    """
    written = captioner.write(image, decoding, sentence)
    first = {one.caption: one for one in reversed(written.candidates)}  # the likeliest of a text
    kept = [one for one in written.candidates if first[one.caption] is one]
    rows = [[one.caption, "" if one.log_prob is None else f"{one.log_prob:.2f}"] for one in kept]
    return rows, written.seconds


def maps_of_words(
    captioner: ShownCaptioner, image: Image.Image, decoding: Decoding, sentence: str | None = None
) -> WordMaps:
    """Find where the words of the likeliest caption looked; see [`word_maps`]."""
    return word_maps(captioner, image, captioner.write(image, decoding, sentence).candidates[0], sentence)


def step_rows(
    captioner: ShownCaptioner, image: Image.Image, decoding: Decoding, sentence: str | None = None
) -> list[list[Any]]:
    """Rows of `STEP_HEAD` about a sentence that becomes clear; those of steps without change are one."""
    steps = denoising_steps(captioner, image, decoding, sentence)
    rows = []
    for (stage, said), same in groupby(steps, lambda step: (step.stage, step.sentence)):
        numbers = [step.step for step in same]
        rows.append([stage, f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]), said])
    return rows


def drawn_regions(detector: RegionDetector, image: Image.Image) -> tuple[Image.Image, str]:
    """Draw what a detector finds.

    Args:
        detector ([`RegionDetector`]): that finds it.
        image (`PIL.Image.Image`): the picture.

    Returns:
        `tuple[PIL.Image.Image, str]`: the picture with the surest regions, and a line about them.

    Raises:
        ImageError: the picture has no regions.
    """
    try:
        records = detector(image).records()
    except ValueError as error:
        raise ImageError(f"no regions: {error}") from error
    return draw_best(image, records), f"{len(records)} regions; those that are named most surely are drawn"


def _detector_of(captioner: ShownCaptioner) -> RegionDetector | None:
    processor = captioner.processor
    if not is_captioner_processor(processor) or processor.detector is None:
        return None
    return RegionDetector(*processor.detector.load())


def decoding_of(candidates: float, beams: float, sample: bool, temperature: float, steps: float, rule: str) -> Decoding:
    """Make a decoding of what a visitor has set, as numbers of the page come.

    Args:
        candidates, beams, sample, temperature: see [`Decoding`].
        steps (`float`): 0 for the captioner's own.
        rule (`str`): `"its own"`, or a name.

    Raises:
        ValueError: naming what is out of its limits.
    """
    rule_or_own = None if rule == OWN_RULE else rule
    return Decoding(int(candidates), int(beams), bool(sample), float(temperature), int(steps) or None, rule_or_own)


def rules_of(captioners: Sequence[ShownCaptioner]) -> list[str]:
    """Ways of decoding that all captioners have, besides their own."""
    known = [set(one.model.decodings) if one.of_this_package else set() for one in captioners]
    return sorted(set.intersection(*known)) if known else []
