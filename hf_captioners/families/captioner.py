"""The captioners of this package, through their contract in `modeling.captioner_base`, and models of foreign code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel
from typing_extensions import Self

from .base import CaptionFamily
from .model_parts import learns


class CaptionerFamily(CaptionFamily):
    """The captioners of this package, whatever their way of writing."""

    models: ClassVar[tuple[str, ...]] = ("CaptionerPreTrainedModel",)
    title: ClassVar[str] = "the captioners of hf_captioners"

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return model.image_inputs, model.loss_inputs

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        model.freeze_backbone(trainable)

    def check_length(self, model: Any, name: str, length: int) -> None:
        longest = model.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"{name}={length} is beyond the model's max_position_embeddings={longest}.")

    def check_candidates(self, model: Any, args: Any) -> None:
        where = f"on a {type(model).__name__}, which does not write word by word"
        if args.candidate_strategy == "diverse_beam":
            raise ValueError(f"candidate_strategy='diverse_beam' has no effect {where}; leave it out.")
        args.refuse_unread(where, "temperature", "top_p", "top_k", "min_p", "repetition_penalty")

    def evaluation_options(self, args: Any) -> dict[str, Any]:
        """As in [`CaptionFamily`], without beams, which only words one after the other have."""
        return {"max_length": args.generation_max_length}

    def vocab_size(self, model: Any) -> int:
        return int(model.config.vocab_size)

    def run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        if "pixel_values" not in image_inputs or learns(model.backbone):
            return image_inputs
        others = {name: value for name, value in image_inputs.items() if name != "pixel_values"}
        return {"image_features": model.extract_image_features(image_inputs["pixel_values"]), **others}

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> Any:
        return model.encode_images(**image_inputs)

    def generate(self, model: Any, encoder_outputs: Any, **options: Any) -> torch.Tensor:
        # a copy, because generate repeats its rows in place
        return model.generate(encoder_outputs=type(encoder_outputs)(**encoder_outputs), **options)

    def caption(self, model: Any, image_inputs: Mapping[str, Any], **options: Any) -> torch.Tensor:
        return model.generate(**image_inputs, **options)  # which refuses options before it encodes

    def log_probs(
        self, model: Any, sequences: torch.Tensor, encoder_outputs: Any, **scoring_inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return model.sequence_log_probs(
            sequences, encoder_outputs=encoder_outputs, return_entropies=True, **scoring_inputs
        )


class WordByWordFamily(CaptionerFamily):
    """Those that write word by word, with `generate` as in transformers."""

    models: ClassVar[tuple[str, ...]] = ("AutoregressiveCaptioner",)

    def evaluation_options(self, args: Any) -> dict[str, Any]:
        return CaptionFamily.evaluation_options(self, args)

    def check_candidates(self, model: Any, args: Any) -> None:
        """Accept all options: `generate` refuses those of `generation_kwargs` that it does not have."""

    def generate(self, model: Any, encoder_outputs: Any, **options: Any) -> torch.Tensor:
        if model.training:  # a cache and dropout do not go together: some models refuse it, others drop the cache
            options["use_cache"] = False
        return super().generate(model, encoder_outputs, **options)


class ForeignCodeFamily(CaptionFamily):
    """Models whose code came with them: captioned by their own `generate`, and not trained."""

    title: ClassVar[str] = "models with code of their own"

    @classmethod
    def fits(cls, model: Any) -> bool:
        return type(model).__module__.split(".")[0] != "transformers"

    @classmethod
    def of(cls, model: Any, prompt: str | None = None) -> Self:
        cls.check_prompt(model, prompt)
        return cls()

    def backbone(self, model: Any) -> PreTrainedModel | None:
        return None

    def caption(self, model: Any, image_inputs: Mapping[str, Any], **options: Any) -> torch.Tensor:
        return model.generate(**image_inputs, **options)
