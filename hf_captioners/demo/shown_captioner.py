"""A captioner as the page shows it: a picture in; candidates with scores, in the words of every kind of captioner."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from PIL import Image
from typing_extensions import Self

from ..data.printable import printable
from ..families import CaptionFamily, family_of
from ..families.captioner import CaptionerFamily, WordByWordFamily
from ..families.transformers_family import TransformersFamily
from ..inference.loading import load_captioners
from ..modeling.captioner_detector import use_detector
from ..modeling.modeling_scdnet import ScdnetForImageCaptioning
from ..modeling.processing_captioner import open_row

MOST_CANDIDATES, MOST_BEAMS, MOST_STEPS = 10, 10, 100
"""What the page lets a visitor ask for at most."""


def short_name(name: str) -> str:
    """The last part of a folder's path or of a Hub name."""
    return PurePath(name).name or name


@dataclass(frozen=True)
class Decoding:
    """Decoding of a page's captions.

    Args:
        candidates (`int`, defaults to 3): how many, the likeliest first.
        beams (`int`, defaults to 3): of captioners that write word by word; no fewer than candidates.
        sample (`bool`, defaults to `False`): draw words by chance; of a diffusion captioner the noise.
        temperature (`float`, defaults to 1.0): of drawn words.
        steps (`int`, *optional*): of denoising, of a diffusion captioner; by default its own.
        rule (`str`, *optional*): `"paper"`, `"standard"` or another `decoding` of the captioner; by default its own.
    """

    candidates: int = 3
    beams: int = 3
    sample: bool = False
    temperature: float = 1.0
    steps: int | None = None
    rule: str | None = None

    def __post_init__(self) -> None:
        limits = {"candidates": MOST_CANDIDATES, "beams": MOST_BEAMS, "steps": MOST_STEPS}
        for name, most in limits.items():
            value = vars(self)[name]
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} must be 1 to {most}, not {value}")
        if not 0 < self.temperature <= 10:
            raise ValueError(f"temperature must be above 0 and at most 10, not {self.temperature}")


@dataclass(frozen=True)
class Candidate:
    """A caption.

    Args:
        caption (`str`): the text.
        log_prob (`float`, *optional*): the model's log-probability of it in nats; `None` of models that cannot say.
        ids (`torch.LongTensor` of shape `(1, T)`): start token, words, end token.
    """

    caption: str
    log_prob: float | None
    ids: torch.Tensor


@dataclass(frozen=True)
class Written:
    """Captions that a captioner wrote of a picture.

    Args:
        candidates (`list[Candidate]`): the likeliest first.
        seconds (`float`): that it took, with the picture's encoding.
    """

    candidates: list[Candidate]
    seconds: float


class ShownCaptioner:
    """A captioner with its processor, for one picture at a time.

    Args:
        name (`str`): for people.
        model (`PreTrainedModel`): in evaluation mode.
        processor (`ProcessorMixin`): its processor.

    Example:

    ```python
    >>> from hf_captioners.demo.shown_captioner import Decoding, ShownCaptioner
    >>> captioner = ShownCaptioner.from_pretrained("runs/mine")  # doctest: +SKIP
    >>> captioner.write(image, Decoding(candidates=1)).candidates[0].caption  # doctest: +SKIP
    'two dogs running in the grass'

    ```
    """

    def __init__(self, name: str, model: Any, processor: Any) -> None:
        self.name, self.model, self.processor = name, model, processor
        self.family: CaptionFamily = family_of(model)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        detector: str | None = None,
    ) -> Self:
        """Load a captioner; arguments are those of [`load_captioners`] and [`use_detector`].

        Raises:
            ValueError: there is no such captioner or detector.
        """
        model, processor = load_captioners([name], device, dtype, trust_remote_code)
        if isinstance(family_of(model), CaptionerFamily) and model.config.features_only:
            use_detector(model, processor, detector, trust_remote_code)
        return cls(short_name(name), model, processor)

    @property
    def of_this_package(self) -> bool:
        """Tell whether it is a captioner of this package, with ways of decoding by name."""
        return isinstance(self.family, CaptionerFamily)

    @property
    def denoises(self) -> bool:
        """Tell whether captions become clear step by step."""
        return isinstance(self.model, ScdnetForImageCaptioning)

    @property
    def writes_words(self) -> bool:
        """Tell whether captions are written word by word, so that there are beams."""
        return isinstance(self.family, (WordByWordFamily, TransformersFamily))

    @property
    def takes_sentence(self) -> bool:
        """Tell whether the captioner looks at a sentence of the picture, which nothing retrieves."""
        columns = self.family.image_columns(self.processor)
        return "retrieved" in columns and self.model.config.retrieval != "none" and self.processor.retriever is None

    def inputs(self, image: Image.Image, sentence: str | None = None) -> Any:
        """Make the model's inputs of an open picture.

        Args:
            image (`PIL.Image.Image`): the picture.
            sentence (`str`, *optional*): retrieved for it, where the captioner `takes_sentence`.

        Returns:
            `BatchFeature`: on the model's device and of its type.

        Raises:
            ImageError, ValueError: the picture cannot be read, as one without regions; there is no sentence.
        """
        row: dict[str, Any] = {"image": image}
        if self.takes_sentence:
            if not sentence or not sentence.strip():
                raise ValueError(
                    f"{self.name} looks at a sentence that was retrieved for the picture: write one, or start the page "
                    "with --retrieval DIR"
                )
            row["retrieved"] = sentence
        inputs = self.family.prepare_rows(self.processor, [open_row(self.processor, row)])
        return inputs.to(self.model.device, dtype=self.model.dtype)

    def options(self, decoding: Decoding) -> dict[str, Any]:
        """Options of `generate`: of all that were chosen those that this captioner has.

        Args:
            decoding ([`Decoding`]): what was chosen.
        """
        options: dict[str, Any] = {"num_return_sequences": decoding.candidates}
        if decoding.rule is not None and self.of_this_package:
            options["decoding"] = decoding.rule
        if self.denoises:
            stages = 2 if self.model.is_cascade else 1
            if decoding.steps is not None:
                options["num_inference_steps"] = [decoding.steps] * stages if stages > 1 else decoding.steps
            return {**options, "do_sample": decoding.sample}
        if not self.writes_words:
            return options
        if decoding.sample:
            return {**options, "num_beams": 1, "do_sample": True, "temperature": decoding.temperature}
        return {**options, "num_beams": max(decoding.beams, decoding.candidates), "do_sample": False}

    @torch.inference_mode()
    def write(self, image: Image.Image, decoding: Decoding | None = None, sentence: str | None = None) -> Written:
        """Caption a picture.

        Args:
            image (`PIL.Image.Image`): the picture.
            decoding ([`Decoding`], *optional*): how.
            sentence (`str`, *optional*): see `inputs`.

        Returns:
            [`Written`]

        Raises:
            ImageError, ValueError: the picture cannot be read, or the captioner has no such decoding.
        """
        begun = time.perf_counter()
        inputs, options = self.inputs(image, sentence), self.options(decoding or Decoding())
        if not isinstance(self.family, (CaptionerFamily, TransformersFamily)):  # which alone score
            ids = self.family.caption(self.model, inputs, **options)
            scores: list[float | None] = [None] * len(ids)
        else:
            encoded = self.family.encode(self.model, self.family.image_inputs(self.model, inputs))
            ids = self.family.generate(self.model, encoded, **options)
            scores = self.family.log_probs(self.model, ids, encoded)[0].sum(1).tolist()
        captions = [printable(text) for text in self.family.decode(self.processor, ids)]
        found = [Candidate(*both, ids[row : row + 1]) for row, both in enumerate(zip(captions, scores, strict=True))]
        found.sort(key=lambda candidate: -(candidate.log_prob or 0.0))
        return Written(found, time.perf_counter() - begun)
