"""`VisionEncoderDecoderModel`: any vision encoder, which is the backbone, and any text decoder; ViT-GPT2, TrOCR."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .model_parts import repeated
from .transformers_family import TransformersFamily


class EncoderDecoderFamily(TransformersFamily):
    """`VisionEncoderDecoderModel`."""

    models: ClassVar[tuple[str, ...]] = ("VisionEncoderDecoderModel",)
    title: ClassVar[str] = "VisionEncoderDecoderModel (ViT-GPT2, TrOCR)"
    teaches_start: ClassVar[bool] = True

    def backbone(self, model: Any) -> PreTrainedModel | None:
        return model.encoder

    def check_length(self, model: Any, name: str, length: int) -> None:
        settings = model.config.decoder.to_dict()
        longest = settings.get("max_position_embeddings") or settings.get("n_positions")
        if longest is not None and length > longest:
            raise ValueError(f"{name}={length} is beyond the decoder's {longest} positions.")

    def vocab_size(self, model: Any) -> int:
        return int(model.config.decoder.vocab_size)

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> Any:
        return BaseModelOutput(last_hidden_state=self.features(model, image_inputs))

    def write(self, model: Any, encoder_outputs: Any, **options: Any) -> torch.Tensor:
        # a copy, because generate repeats its rows in place
        return model.generate(encoder_outputs=BaseModelOutput(**encoder_outputs), **options)

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: Any) -> torch.Tensor:
        memory = repeated(encoder_outputs[0], len(sequences))  # (N, L, width)
        return model(encoder_outputs=(memory,), decoder_input_ids=sequences[:, :-1], use_cache=False).logits
