"""Florence-2 (Xiao et al., 2023, arXiv 2311.06242): an encoder-decoder that reads an image and a task; its DaViT is the
backbone. The tasks that write captions are `<CAPTION>`, `<DETAILED_CAPTION>` and `<MORE_DETAILED_CAPTION>`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from .base import SpecialTokens
from .model_parts import answering, repeated, without_adapters
from .transformers_family import TransformersFamily

TASKS = ("<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>")


class TaskMemory(NamedTuple):
    """B images and tasks as the decoder reads them.

    Args:
        memory (`torch.Tensor` of shape `(B, P, width)`): of the language model's encoder.
        mask (`torch.LongTensor` of shape `(B, P)`): 1 for what is there.
    """

    memory: torch.Tensor
    mask: torch.Tensor


class Florence2Family(TransformersFamily):
    """`Florence2ForConditionalGeneration`."""

    models: ClassVar[tuple[str, ...]] = ("Florence2ForConditionalGeneration",)
    title: ClassVar[str] = "Florence-2"
    takes_prompt: ClassVar[bool] = True
    usual_length: ClassVar[int | None] = 64
    default_prompt: ClassVar[str | None] = TASKS[0]
    teaches_start: ClassVar[bool] = True

    @classmethod
    def check_prompt(cls, model: Any, prompt: str | None) -> None:
        if prompt is not None and prompt not in TASKS:
            raise ValueError(f"prompt {prompt!r}: Florence-2 writes captions for {', '.join(TASKS)}.")

    @classmethod
    def special_tokens(cls, model: Any) -> SpecialTokens:
        text = model.config.text_config
        return SpecialTokens(text.eos_token_id, text.pad_token_id, text.decoder_start_token_id)

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("pixel_values", "input_ids", "attention_mask"), ()

    def prepare_rows(self, processor: Any, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        return super().prepare_rows(processor, rows, text=[self.prompt] * len(rows), **kwargs)

    def backbone(self, model: Any) -> PreTrainedModel:
        return without_adapters(model).model.vision_tower

    def vocab_size(self, model: Any) -> int:
        return int(model.config.text_config.vocab_size)

    def check_length(self, model: Any, name: str, length: int) -> None:
        longest = model.config.text_config.max_position_embeddings
        if length > longest:
            raise ValueError(f"{name}={length} is beyond the model's {longest} positions.")

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> TaskMemory:
        features = self.features(model, image_inputs)
        ids, mask = image_inputs["input_ids"], image_inputs["attention_mask"]
        seen = BaseModelOutputWithPooling(last_hidden_state=features)
        inner = without_adapters(model).model
        with answering(inner.vision_tower, lambda *args, **kwargs: seen):
            image = inner.get_image_features(features).pooler_output  # (B, L, width)
        embedded = model.get_input_embeddings()(ids)
        places = (ids == model.config.image_token_id)[..., None]
        embedded = embedded.masked_scatter(places, image.to(embedded.dtype))
        return TaskMemory(inner.language_model.encoder(inputs_embeds=embedded, attention_mask=mask)[0], mask)

    def write(self, model: Any, encoder_outputs: TaskMemory, **options: Any) -> torch.Tensor:
        memory, mask = encoder_outputs
        return model.generate(encoder_outputs=BaseModelOutput(last_hidden_state=memory), attention_mask=mask, **options)

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: TaskMemory) -> torch.Tensor:
        memory, mask = (repeated(one, len(sequences)) for one in encoder_outputs)
        return model(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory),
            attention_mask=mask,
            decoder_input_ids=sequences[:, :-1],
            use_cache=False,
        ).logits
