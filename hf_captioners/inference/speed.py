"""Milliseconds of a caption, beside those of a captioner that everybody knows: machines differ, ratios less."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BlipConfig, BlipForConditionalGeneration

from .captioning import caption_rows

REFERENCE = "BLIP-base (random weights, 3 beams, 12 tokens)"
_REFERENCE_SIDE = 384  # pixels of BLIP's captioning checkpoints


@dataclass(frozen=True)
class CaptionSpeed:
    """Time of a caption, of one picture at a time.

    Args:
        milliseconds (`float`): from the row to the caption, with the captioner's own decoding; the median of several
            pictures.
        reference_milliseconds (`float`): of a caption of `REFERENCE`, on prepared pixels, in turn with the others.
        number (`int`): pictures timed.
        device (`str`): where; on the CPU it is processor time.
    """

    milliseconds: float
    reference_milliseconds: float
    number: int
    device: str

    @property
    def ratio(self) -> float:
        """Time of a caption divided by that of the reference."""
        return self.milliseconds / self.reference_milliseconds

    def __str__(self) -> str:
        return (
            f"{self.milliseconds:.3g} ms a caption, {self.ratio:.3g} of the {self.reference_milliseconds:.4g} ms of "
            f"{REFERENCE} in the same run; median of {self.number} single pictures on {self.device}"
        )


def measure_speed(model: Any, processor: Any, rows: Sequence[Mapping[str, Any]], reference: Any = None) -> CaptionSpeed:
    """Time captions of single pictures, and in turn with them captions of BLIP-base.

    Args:
        model (`PreTrainedModel`): the captioner, of any family.
        processor (`ProcessorMixin`): its processor.
        rows (`Sequence[Mapping]`): of [`caption_rows`]; each is captioned once, the first once more before.
        reference (`PreTrainedModel`, *optional*): a BLIP in the place of BLIP-base.

    Returns:
        [`CaptionSpeed`]

    Raises:
        ValueError: there are no pictures, or one cannot be captioned.

    Example:

    ```python
    >>> from hf_captioners.inference.loading import load_captioners
    >>> from hf_captioners.inference.speed import measure_speed
    >>> model, processor = load_captioners(["runs/mine"])  # doctest: +SKIP
    >>> print(measure_speed(model, processor, [{"image": "photo.jpg"}]))  # doctest: +SKIP

    ```
    """
    if not rows:
        raise ValueError("no pictures to time captions of.")
    device, blip = model.device, reference
    if blip is None:
        config: Any = BlipConfig(vision_config={"image_size": _REFERENCE_SIDE})
        with torch.random.fork_rng([]):
            blip = BlipForConditionalGeneration(config)
    blip = blip.to(device=device, dtype=model.dtype).eval()
    side = blip.config.vision_config.image_size
    pixels = torch.zeros(1, 3, side, side, device=device, dtype=model.dtype)
    words = {"num_beams": 3, "do_sample": False, "min_new_tokens": 12, "max_new_tokens": 12}

    def ours(row: Mapping[str, Any]) -> None:
        (record,) = caption_rows(model, processor, [row], 1)
        if "error" in record:
            raise ValueError(record["error"])

    def theirs(row: Mapping[str, Any]) -> None:
        blip.generate(pixel_values=pixels, **words)

    times: dict[Callable[[Mapping[str, Any]], None], list[float]] = {ours: [], theirs: []}
    with torch.inference_mode():
        for row in (rows[0], *rows):
            for run, seconds in times.items():
                start = _now(device)
                run(row)
                seconds.append(_now(device) - start)
    own, known = (1000 * statistics.median(seconds[1:]) for seconds in times.values())
    return CaptionSpeed(own, known, len(rows), _described(device, model.dtype))


def _now(device: torch.device) -> float:
    """Seconds: of the processor, or of the clock when a GPU has done its work."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def _described(device: torch.device, dtype: torch.dtype) -> str:
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    if device.type != "cpu":
        return f"{device}, {kind}"
    threads = torch.get_num_threads()
    return f"cpu, {kind}, {threads} thread{'s' if threads > 1 else ''}"
