"""BLIP-2 (Li et al., 2023, arXiv 2301.12597) and InstructBLIP (Dai et al., 2023, arXiv 2305.06500): a frozen ViT, a
Q-Former that learns to look at it for a frozen language model, OPT, Vicuna or T5. Their ViT is the backbone.

The language model never learns as a whole; adapters may be put into it. BLIP-2 writes without a prompt, or goes on from
one (`Question: … Answer:`); InstructBLIP gives its prompt to the Q-Former too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from .base import SpecialTokens
from .model_parts import answering, repeated
from .transformers_family import TransformersFamily

_QFORMER = ("qformer_input_ids", "qformer_attention_mask")


class Queried(NamedTuple):
    """B images and prompts as the language model reads them.

    Args:
        embedded (`torch.Tensor` of shape `(B, P, width)`): queries and prompt, of an encoder-decoder what its encoder
            made of them.
        start (`torch.LongTensor` of shape `(B, P)`): their ids; of an encoder-decoder its start token.
        mask (`torch.LongTensor` of shape `(B, P)`): 1 for what is there.
    """

    embedded: torch.Tensor
    start: torch.Tensor
    mask: torch.Tensor


class Blip2Family(TransformersFamily):
    """`Blip2ForConditionalGeneration`."""

    models: ClassVar[tuple[str, ...]] = ("Blip2ForConditionalGeneration",)
    title: ClassVar[str] = "BLIP-2"
    takes_prompt: ClassVar[bool] = True
    usual_length: ClassVar[int | None] = 64

    @classmethod
    def special_tokens(cls, model: Any) -> SpecialTokens:
        text = model.config.text_config
        start = text.bos_token_id if model.config.use_decoder_only_language_model else text.decoder_start_token_id
        return SpecialTokens(text.eos_token_id, text.pad_token_id, start)

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("pixel_values", "input_ids", "attention_mask", *_QFORMER), ()

    def prepare_rows(self, processor: Any, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        return super().prepare_rows(processor, rows, text=[self.prompt or ""] * len(rows), **kwargs)

    # -- what learns -------------------------------------------------------------------------------------------------

    def backbone(self, model: Any) -> PreTrainedModel:
        return model.vision_model

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        super().freeze_backbone(model, trainable)
        for name, parameter in model.language_model.named_parameters():
            if "lora_" not in name:
                parameter.requires_grad_(False)

    def vocab_size(self, model: Any) -> int:
        return int(model.config.text_config.vocab_size)

    def check_length(self, model: Any, name: str, length: int) -> None:
        text = model.config.text_config
        if text.model_type == "opt" and length > text.max_position_embeddings:  # the others have no table of positions
            raise ValueError(f"{name}={length} is beyond the model's {text.max_position_embeddings} positions.")

    # -- encoding, writing, scoring ----------------------------------------------------------------------------------

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> Queried:
        features, ids = self.features(model, image_inputs), image_inputs["input_ids"]
        seen = BaseModelOutputWithPooling(last_hidden_state=features)
        prompts = {name: image_inputs[name] for name in _QFORMER if name in image_inputs}
        with answering(self.backbone(model), lambda *args, **kwargs: seen):
            queries = model.get_image_features(features, return_dict=True, **prompts).pooler_output  # (B, Q, width)
        embedded = model.get_input_embeddings()(ids)  # (B, P, width)
        places = (ids == model.config.image_token_id)[..., None]
        embedded = embedded.masked_scatter(places, queries.to(embedded.dtype))
        mask = image_inputs["attention_mask"]
        if model.config.use_decoder_only_language_model:
            return Queried(embedded, ids, mask)
        memory = model.language_model.get_encoder()(inputs_embeds=embedded, attention_mask=mask)[0]
        return Queried(memory, torch.full_like(ids[:, :1], self.tokens.start_token_id), mask)

    def start_length(self, encoder_outputs: Queried) -> int:
        return encoder_outputs.start.shape[1]

    def write(self, model: Any, encoder_outputs: Queried, **options: Any) -> torch.Tensor:
        embedded, start, mask = encoder_outputs
        options.setdefault("eos_token_id", self.tokens.eos_token_id)
        options.setdefault("pad_token_id", self.tokens.pad_token_id)
        writer = model.language_model
        if not model.config.use_decoder_only_language_model:
            memory = BaseModelOutput(last_hidden_state=embedded)
            return writer.generate(encoder_outputs=memory, attention_mask=mask, **options)  # (N, T)
        ids = writer.generate(inputs_embeds=embedded, input_ids=start, attention_mask=mask, **options)
        return ids[:, start.shape[1] - 1 :]

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: Queried) -> torch.Tensor:
        embedded, _, mask = (repeated(one, len(sequences)) for one in encoder_outputs)
        if not model.config.use_decoder_only_language_model:
            return model.language_model(
                encoder_outputs=BaseModelOutput(last_hidden_state=embedded),
                attention_mask=mask,
                decoder_input_ids=sequences[:, :-1],
                use_cache=False,
            ).logits
        words = model.get_input_embeddings()(sequences[:, 1:-1])  # (N, T - 2, width)
        return model.language_model(
            inputs_embeds=torch.cat([embedded, words.to(embedded.dtype)], dim=1),
            attention_mask=nn.functional.pad(mask, (0, words.shape[1]), value=1),
            use_cache=False,
            logits_to_keep=sequences.shape[1] - 1,
        ).logits


class InstructBlipFamily(Blip2Family):
    """`InstructBlipForConditionalGeneration`."""

    models: ClassVar[tuple[str, ...]] = ("InstructBlipForConditionalGeneration",)
    title: ClassVar[str] = "InstructBLIP"
    default_prompt: ClassVar[str | None] = "Write a short description for the image."
