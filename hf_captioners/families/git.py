"""GIT (Wang et al., 2022, arXiv 2205.14100): a decoder that reads image tokens first; its CLIP is the backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .base import SpecialTokens
from .model_parts import answering, behind_start, repeated
from .transformers_family import EncodedImages, PrefixedFamily


class GitFamily(PrefixedFamily):
    """`GitForCausalLM`."""

    models: ClassVar[tuple[str, ...]] = ("GitForCausalLM",)
    title: ClassVar[str] = "GIT"

    @classmethod
    def special_tokens(cls, model: Any) -> SpecialTokens:
        config = model.config
        return SpecialTokens(config.eos_token_id, config.pad_token_id, config.bos_token_id)

    def backbone(self, model: Any) -> PreTrainedModel:
        return model.git.image_encoder

    def vocab_size(self, model: Any) -> int:
        return int(model.config.vocab_size)

    def write(self, model: Any, encoder_outputs: EncodedImages, **options: Any) -> torch.Tensor:
        features, start = encoder_outputs
        with answering(self.backbone(model), _seen(features)):
            ids = model.generate(
                input_ids=start, attention_mask=torch.ones_like(start), pixel_values=_stand_in(features), **options
            )
        return ids[:, start.shape[1] - 1 :]

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: EncodedImages) -> torch.Tensor:
        features, start = encoder_outputs
        rows = repeated(features, len(sequences))  # (N, L, width)
        with answering(self.backbone(model), _seen(rows)), _words_apart(model):
            return model(
                input_ids=behind_start(start, sequences),
                pixel_values=_stand_in(rows),
                use_cache=False,
                logits_to_keep=sequences.shape[1] - 1,
            ).logits


def _stand_in(features: torch.Tensor) -> torch.Tensor:
    """A row per image in the place of pixels, which the image encoder would read."""
    return features.new_zeros(len(features), 1, 1, 1)


def _seen(features: torch.Tensor) -> Callable[..., BaseModelOutput]:
    """The image encoder that has seen the images; `generate` repeats their rows for every candidate."""

    def answer(pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=repeated(features, len(pixel_values)))

    return answer


@contextmanager
def _words_apart(model: Any) -> Iterator[None]:
    """Give GIT, which adds positions to word embeddings in place, a copy of them.

    For adapters and activation checkpointing peft demands their gradient, and then torch refuses to change them.
    """
    hook = model.get_input_embeddings().register_forward_hook(lambda *call: call[2].clone())
    try:
        yield
    finally:
        hook.remove()
