"""The `image-to-text` pipeline for the captioners of transformers, of any family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..modeling.pipeline_image_to_text import ImageToTextPipeline
from ..modeling.processing_captioner import open_row
from . import family_of


class FamilyPipeline(ImageToTextPipeline):
    """Caption pictures with a captioner of transformers: [`ImageToTextPipeline`], for models that are asked something.

    `prompt` of a call is what the model is asked, where it takes a prompt; it is no part of the caption.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.family = family_of(self.model)

    def _known_columns(self) -> Mapping[str, str]:
        return self.family.image_columns(self.processor)

    def preprocess(self, inputs: Any, prompt: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """An image, open, and what is asked about it; those of a batch are prepared together."""
        row = open_row(self.processor, self._row(inputs), **({} if timeout is None else {"timeout": timeout}))
        return {"inputs": {**row, "prompt": prompt}}

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=False)
        rows = model_inputs["inputs"]
        rows = rows if isinstance(rows, list) else [rows]
        prompt = rows[0].pop("prompt")
        family = self.family if prompt is None else family_of(self.model, prompt)
        inputs = family.prepare_rows(self.processor, rows).to(self.device, dtype=self.model.dtype)
        ids = family.caption(self.model, inputs, **generate_kwargs)
        return {"output_ids": ids.view(len(rows), -1, ids.shape[-1])}

    def _decoded(self, ids: torch.Tensor) -> list[str]:
        return self.family.decode(self.processor, ids)
