"""PaliGemma (Beyer et al., 2024, arXiv 2407.07726): the words of the prompt attend to each other, those of the caption
to what stands before them; its SigLIP is the backbone. The prompts that it was taught are as `caption en`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .prompted import PromptedFamily


class PaliGemmaFamily(PromptedFamily):
    """`PaliGemmaForConditionalGeneration`."""

    models: ClassVar[tuple[str, ...]] = ("PaliGemmaForConditionalGeneration",)
    title: ClassVar[str] = "PaliGemma"
    default_prompt: ClassVar[str | None] = "caption en"
    caption_types: ClassVar[Mapping[str, int]] = {"token_type_ids": 1}
    first_position: ClassVar[int] = 1

    def prompt_text(self, processor: Any) -> str:
        return f"{processor.image_token}{self.prompt}"
