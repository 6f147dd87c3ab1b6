"""Chat models that see: SmolVLM, Qwen2.5-VL, Qwen3-VL, LLaVA, Idefics3, Gemma 3, and whatever is loaded alike.

The prompt is a user's question about the image in the processor's chat template; the caption is the answer, and its end
is what the template puts behind an answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .prompted import PromptedFamily


class ChatFamily(PromptedFamily):
    """Models of `AutoModelForImageTextToText` whose processor has a chat template."""

    title: ClassVar[str] = "chat models with a chat template (SmolVLM, Qwen-VL, LLaVA, Idefics3, Gemma 3, …)"
    default_prompt: ClassVar[str | None] = "Describe this image in one short sentence."

    @classmethod
    def fits(cls, model: Any) -> bool:
        if type(model).__name__ not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values():
            return False
        return "mm_encoder_outputs" in inspect.signature(type(model).forward).parameters

    @classmethod
    def check_processor(cls, processor: Any, source: Any) -> None:
        if vars(processor).get("chat_template") is None:
            raise ValueError(
                f"{source}: its processor has no chat template (chat_template.jinja), by which a model is asked; take "
                "the instruction-tuned version of the model, or save a template with its processor."
            )
        try:
            cls().prompt_text(processor)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def prompt_text(self, processor: Any) -> str:
        return _rendered(processor, self._question(), add_generation_prompt=True)

    def labels(self, processor: Any, captions: Sequence[str]) -> torch.Tensor:
        """Words and end of answers as the chat template has them, then -100: `torch.LongTensor` of shape `(N, T)`."""
        prompt = self.prompt_text(processor)
        rows = [torch.tensor(self._answer(processor, prompt, caption)) for caption in captions]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)

    def _question(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": self.prompt}]}]

    def _answer(self, processor: Any, prompt: str, caption: str) -> list[int]:
        """Ids of an answer, up to what ends it."""
        said = [*self._question(), {"role": "assistant", "content": [{"type": "text", "text": caption}]}]
        whole = _rendered(processor, said)
        answer = whole.removeprefix(prompt) if whole.startswith(prompt) else caption
        ids = processor.tokenizer(answer, add_special_tokens=False).input_ids
        stop = next((place for place, token in enumerate(ids) if token in self.tokens.ends), None)
        return [*ids, self.tokens.end] if stop is None else ids[: stop + 1]


def _rendered(processor: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """Messages as the chat template writes them.

    Raises:
        ValueError: the template cannot be read, or refuses them.
    """
    from jinja2 import TemplateError  # which transformers' templates need

    try:
        return processor.apply_chat_template(messages, tokenize=False, **options)
    except TemplateError as error:
        raise ValueError(f"the chat template fails at a question about an image: {error}") from error
