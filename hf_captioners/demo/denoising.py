"""A sentence of a diffusion captioner that becomes clear, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from ..data.printable import printable
from ..modeling.diffusion_scdnet import bits_to_ids
from .shown_captioner import Decoding, ShownCaptioner


@dataclass(frozen=True)
class DenoisingStep:
    """A step of a sampler.

    Args:
        stage (`int`), step (`int`): from 1.
        sentence (`str`): the words whose bits the network expects at the end, as it sees things in this step.
    """

    stage: int
    step: int
    sentence: str


@torch.inference_mode()
def denoising_steps(
    captioner: ShownCaptioner, image: Image.Image, decoding: Decoding, sentence: str | None = None
) -> list[DenoisingStep]:
    """Write a caption by denoising and keep what it looked like in every step.

    Args:
        captioner ([`ShownCaptioner`]): one that `denoises`.
        image (`PIL.Image.Image`): the picture.
        decoding ([`Decoding`]): how many steps; only the likeliest caption is written.
        sentence (`str`, *optional*): see `ShownCaptioner.inputs`.

    Returns:
        `list[DenoisingStep]`: of both stages of a cascade.

    Raises:
        ValueError: the captioner writes word by word.
    """
    if not captioner.denoises:
        raise ValueError(f"{captioner.name} writes word by word, without steps of denoising")
    model, inputs = captioner.model, captioner.inputs(image, sentence)
    options = {**captioner.options(decoding), "num_return_sequences": 1}
    output = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
    steps = []
    for stage, denoised in enumerate(output.stages, 1):
        for step, bits in enumerate(denoised.predictions, 1):
            ids = bits_to_ids(bits[:1]).clamp(max=model.config.vocab_size - 1)
            ids = torch.nn.functional.pad(ids, (1, 0), value=model.config.bos_token_id)
            said = captioner.family.decode(captioner.processor, ids)[0]
            steps.append(DenoisingStep(stage, step, printable(said)))
    return steps
