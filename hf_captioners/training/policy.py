"""What the trainers ask of a model: a captioner of this package, or a `VisionEncoderDecoderModel` of transformers.

A policy holds no model. Its methods take the model itself, not what DistributedDataParallel makes of it, with adapters
of peft around it or without.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import is_peft_available

from ..modeling.captioner_base import CaptionerPreTrainedModel
from ..modeling.captioner_layers import ended_before, token_entropies, token_log_probs

PICTURES = ("pixel_values", "image_features", "image_attention_mask")  # of a batch, what the model looks at


class CaptionerPolicy:
    """The captioners of this package, through their contract."""

    def backbone(self, model: Any) -> PreTrainedModel | None:
        """The vision tower, if the model has one."""
        return model.backbone

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        """See [`CaptionerPreTrainedModel.freeze_backbone`]."""
        model.freeze_backbone(trainable)

    def check_length(self, model: Any, name: str, length: int) -> None:
        """Raise a `ValueError` if captions of `length` tokens, start token included, are too long for the model."""
        longest = model.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"{name}={length} is beyond the model's max_position_embeddings={longest}.")

    def vocab_size(self, model: Any) -> int:
        """Words that the model knows."""
        return int(model.config.vocab_size)

    def look(self, model: Any, pictures: dict[str, Any]) -> dict[str, Any]:
        """The pictures of a batch as they are encoded: once by the backbone, if that does not learn.

        Args:
            model (`PreTrainedModel`): the model.
            pictures (`dict[str, torch.Tensor]`): `pixel_values`; or `image_features` and `image_attention_mask`.

        Returns:
            `dict[str, Any]`: arguments for `encode`.
        """
        if "pixel_values" not in pictures or _learns(model.backbone):
            return pictures
        return {"image_features": model.extract_image_features(pictures["pixel_values"])}

    def encode(self, model: Any, pictures: dict[str, Any]) -> Any:
        """Encoder outputs for any number of captions of the pictures, with gradient where something learns."""
        return model.encode_images(**pictures)

    def log_probs(self, model: Any, sequences: torch.Tensor, encoder_outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the tokens of captions, with gradient, and the entropies they were drawn from.

        Args:
            model (`PreTrainedModel`): the model.
            sequences (`torch.LongTensor` of shape `(N, T)`): captions, start token first.
            encoder_outputs (`ModelOutput`): of `encode`.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: both `(N, T - 1)`, in nats, 0 after the end token.
        """
        return model.sequence_log_probs(sequences, encoder_outputs=encoder_outputs, return_entropies=True)


class EncoderDecoderPolicy(CaptionerPolicy):
    """`VisionEncoderDecoderModel`: its encoder is the backbone."""

    def backbone(self, model: Any) -> PreTrainedModel | None:
        return model.encoder

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        pattern = {"none": r"(?!)", "all": ""}.get(trainable, trainable)
        chosen = [re.search(pattern, name) is not None for name, _ in model.encoder.named_parameters()]
        if trainable != "none" and not any(chosen):
            raise ValueError(f"no parameter of the encoder matches {trainable!r}.")
        for parameter, learns in zip(model.encoder.parameters(), chosen, strict=True):
            parameter.requires_grad_(learns)

    def check_length(self, model: Any, name: str, length: int) -> None:
        settings = model.config.decoder.to_dict()
        longest = settings.get("max_position_embeddings") or settings.get("n_positions")
        if longest is not None and length > longest:
            raise ValueError(f"{name}={length} is beyond the decoder's {longest} positions.")

    def vocab_size(self, model: Any) -> int:
        return int(model.config.decoder.vocab_size)

    def look(self, model: Any, pictures: dict[str, Any]) -> dict[str, Any]:
        if "pixel_values" not in pictures:
            raise ValueError("a VisionEncoderDecoderModel looks at pictures; these rows have image_features.")
        if _learns(model.encoder):
            return pictures
        training = model.encoder.training
        with torch.no_grad():
            hidden = model.encoder.eval()(pictures["pixel_values"])[0]
        model.encoder.train(training)
        return {"hidden": hidden}

    def encode(self, model: Any, pictures: dict[str, Any]) -> Any:
        if "hidden" not in pictures:
            pictures = {"hidden": model.encoder(pictures["pixel_values"])[0]}
        return BaseModelOutput(last_hidden_state=pictures["hidden"])

    def log_probs(self, model: Any, sequences: torch.Tensor, encoder_outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        targets, memory = sequences[:, 1:], encoder_outputs[0]
        memory = memory.repeat_interleave(len(sequences) // len(memory), dim=0)
        logits = model(encoder_outputs=(memory,), decoder_input_ids=sequences[:, :-1], use_cache=False).logits
        ended = ended_before(targets, model.generation_config.eos_token_id)
        scores = token_log_probs(logits, targets), token_entropies(logits)
        return scores[0].masked_fill(ended, 0.0), scores[1].masked_fill(ended, 0.0)


def policy_of(model: Any) -> CaptionerPolicy:
    """How to speak to a model.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the captioner, with adapters or without.

    Returns:
        [`CaptionerPolicy`]

    Raises:
        TypeError: a model of another kind.
        ValueError: a `generation_config` that does not say what ends a caption, or what stands behind the end.
    """
    model = without_adapters(model)
    if not isinstance(model, CaptionerPreTrainedModel | VisionEncoderDecoderModel):
        raise TypeError(
            f"a {type(model).__name__} cannot be trained here: give a captioner of hf_captioners or a "
            "transformers.VisionEncoderDecoderModel."
        )
    for name in ("eos_token_id", "pad_token_id"):
        if vars(model.generation_config)[name] is None:
            raise ValueError(f"model.generation_config.{name} is None; set it to the tokenizer's {name}.")
    return EncoderDecoderPolicy() if isinstance(model, VisionEncoderDecoderModel) else CaptionerPolicy()


def without_adapters(model: Any) -> Any:
    """The model that peft has put adapters into, or the model itself."""
    if not is_peft_available():
        return model
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _learns(module: torch.nn.Module | None) -> bool:
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())
