"""The base of the families of transformers' own captioners, all of which write word by word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from ..modeling.captioner_layers import ended_before
from ..modeling.captioner_log_probs import token_log_probs
from ..modeling.captioner_losses import smoothed_cross_entropy
from .base import CaptionFamily
from .model_parts import learns


class TransformersFamily(CaptionFamily):
    """Base of the families of transformers' own captioners, all of which write word by word.

    Such a family says where the `backbone` is, how images are encoded, how `generate` is called (`write`), and how
    captions are scored (`logits`).

    Attributes:
        teaches_start (`bool`): whether the token that the tokenizer puts before a text is taught, where it is another
            one than the start token; so it is in encoder-decoders, whose decoders are started by a token of their own.
        usual_length (`int`, *optional*): most words of a caption, in tokens, where neither the options nor the model's
            generation config say; by default what transformers takes then, 20.
    """

    teaches_start: ClassVar[bool] = False
    usual_length: ClassVar[int | None] = None

    # -- what a family says ------------------------------------------------------------------------------------------

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: Any) -> torch.Tensor:
        """Scores of the words behind the start token.

        Args:
            model (`PreTrainedModel`): the model.
            sequences (`torch.LongTensor` of shape `(N, T)`): captions, start token first; N is a multiple of B.
            encoder_outputs: of `encode`, B images.

        Returns:
            `torch.Tensor` of shape `(N, T - 1, V)`
        """
        raise NotImplementedError(f"{type(self).__name__} must define logits.")

    def write(self, model: Any, encoder_outputs: Any, **options: Any) -> torch.Tensor:
        """Call transformers' `generate` as this kind of model wants it.

        Args:
            model (`PreTrainedModel`): the model.
            encoder_outputs: of `encode`, B images.
            options: of transformers' `generate`; `max_new_tokens` says how long.

        Returns:
            `torch.LongTensor` of shape `(B * num_return_sequences, T)`: the last token before the words first.
        """
        raise NotImplementedError(f"{type(self).__name__} must define write.")

    # -- the rest follows --------------------------------------------------------------------------------------------

    def training_batch(
        self, processor: Any, rows: Sequence[Mapping[str, Any]], captions: Sequence[str], **extras: Any
    ) -> dict[str, Any]:
        return {**self.prepare_rows(processor, rows), "labels": self.labels(processor, captions)}

    def labels(self, processor: Any, captions: Sequence[str]) -> torch.Tensor:
        """Words and end token of captions, then -100: `torch.LongTensor` of shape `(N, T)`."""
        texts, tokenizer = [self.target(caption) for caption in captions], processor.tokenizer
        ids = tokenizer(texts, add_special_tokens=self.teaches_start, truncation=True).input_ids
        rows = [torch.tensor([*self._words(row)[: tokenizer.model_max_length - 2], self.tokens.end]) for row in ids]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)

    def _words(self, ids: list[int]) -> list[int]:
        """Ids without the start token and the end token that a tokenizer puts around them."""
        if self.teaches_start and ids and ids[0] == self.tokens.start_token_id:
            ids = ids[1:]
        return ids[:-1] if ids and ids[-1] in self.tokens.ends else ids

    def target(self, caption: str) -> str:
        """A caption as the model learns it; by default as it is."""
        return caption

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        backbone: Any = self.backbone(model)
        try:
            pattern = re.compile({"none": r"(?!)", "all": ""}.get(trainable, trainable))
        except re.error as error:
            raise ValueError(f"{trainable!r} of the backbone: neither none, all nor an expression: {error}.") from error
        chosen = [pattern.search(name) is not None for name, _ in backbone.named_parameters()]
        if trainable != "none" and not any(chosen):
            raise ValueError(f"no parameter of the encoder matches {trainable!r}.")
        for parameter, wanted in zip(backbone.parameters(), chosen, strict=True):
            if parameter.is_floating_point():  # quantised ones cannot learn
                parameter.requires_grad_(wanted)

    def run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        backbone: Any = self.backbone(model)
        if learns(backbone) or "pixel_values" not in image_inputs:
            return image_inputs
        training = backbone.training
        with torch.no_grad():
            backbone.eval()
            features = self.look(model, image_inputs["pixel_values"])
        backbone.train(training)
        others = {name: value for name, value in image_inputs.items() if name != "pixel_values"}
        return {"image_features": features, **others}

    def look(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features (B, L, width) that the backbone makes of prepared images."""
        backbone: Any = self.backbone(model)
        return backbone(pixel_values.to(backbone.dtype)).last_hidden_state

    def features(self, model: Any, image_inputs: Mapping[str, Any]) -> torch.Tensor:
        """Features of images: those of `run_backbone`, or new ones with gradient."""
        features = image_inputs.get("image_features")
        return self.look(model, image_inputs["pixel_values"]) if features is None else features

    def generate(self, model: Any, encoder_outputs: Any, **options: Any) -> torch.Tensor:
        if options.get("max_length") is not None:  # which would count a prompt
            options.setdefault("max_new_tokens", options.pop("max_length") - 1)
        options.pop("max_length", None)
        own = vars(model.generation_config)
        if self.usual_length and not (own["max_length"] or own["max_new_tokens"] or "generation_config" in options):
            options.setdefault("max_new_tokens", self.usual_length)
        options.setdefault("trust_remote_code", False)  # of custom_generate="a folder"; None would ask on the terminal
        if model.training:  # a cache and dropout do not go together: some models refuse it, others drop the cache
            options["use_cache"] = False
        if options.get("max_new_tokens"):
            start = self.start_length(encoder_outputs)
            self.check_length(model, f"{start} + max_new_tokens", start + options["max_new_tokens"])
        return self.write(model, encoder_outputs, **options)

    def decode(self, processor: Any, sequences: torch.Tensor) -> list[str]:
        words = []
        for row in sequences[:, 1:].tolist():
            stop = next((place for place, token in enumerate(row) if token in self.tokens.ends), len(row))
            words.append([token for token in row[:stop] if token != self.tokens.pad_token_id])
        texts = processor.tokenizer.batch_decode(words, skip_special_tokens=True)
        return [self.clean(processor, text).strip() for text in texts]

    def clean(self, processor: Any, text: str) -> str:
        """A decoded caption without what a task of the family puts into it; by default as it is."""
        return text

    def log_probs(
        self, model: Any, sequences: torch.Tensor, encoder_outputs: Any, **scoring_inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets = sequences[:, 1:]
        logits = self.logits(model, sequences, encoder_outputs)
        ended = ended_before(targets, self.tokens.eos_token_id)
        log_probs, entropies = token_log_probs(logits, targets)
        return log_probs.masked_fill(ended, 0.0), entropies.masked_fill(ended, 0.0)

    def caption_loss(
        self, model: Any, batch: Mapping[str, Any], num_items: torch.Tensor | int | None, smoothing: float | None
    ) -> torch.Tensor:
        encoded = self.encode(model, self.run_backbone(model, self.image_inputs(model, batch)))
        labels = batch["labels"]
        words = labels.masked_fill(labels == -100, self.tokens.pad_token_id)
        start = words.new_full((len(words), 1), self.tokens.start_token_id)
        logits = self.logits(model, torch.cat([start, words], dim=1), encoded)
        return smoothed_cross_entropy(logits, labels, smoothing or self.own_smoothing(model), num_items)

    def own_smoothing(self, model: Any) -> float:
        """Mass of other words in the model's own loss."""
        return 0.0


class EncodedImages(NamedTuple):
    """B images, ready for captions, and the tokens that stand before their words.

    Args:
        features (`torch.Tensor` of shape `(B, L, width)`): what the captions are written from.
        start (`torch.LongTensor` of shape `(B, P)`): start token and prefix.
    """

    features: torch.Tensor
    start: torch.Tensor


class PrefixedFamily(TransformersFamily):
    """Base of the families whose captions may begin with given words, as `"a photo of"`: the prompt is such a prefix.

    The batch has `input_ids` (B, P), start token and prefix, only if there is one.
    """

    takes_prompt: ClassVar[bool] = True

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("pixel_values", "input_ids"), ()

    def prepare_rows(self, processor: Any, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        inputs = super().prepare_rows(processor, rows, **kwargs)
        if self.prompt:
            prefix = processor.tokenizer(self.prompt, add_special_tokens=False).input_ids
            inputs["input_ids"] = torch.tensor([[self.tokens.start_token_id, *prefix]] * len(rows))  # (B, P)
            self.check_ids(processor, inputs)
        return inputs

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> EncodedImages:
        features = self.features(model, image_inputs)
        start = image_inputs.get("input_ids")
        if start is None:
            start = torch.full((len(features), 1), self.tokens.start_token_id, device=features.device)
        elif start.shape[1] >= self.positions(model):
            raise ValueError(
                f"prompt {self.prompt!r:.80}: its {start.shape[1]} tokens leave no place for a caption among the "
                f"{self.positions(model)} positions of the model."
            )
        return EncodedImages(features, start)

    def start_length(self, encoder_outputs: EncodedImages) -> int:
        return encoder_outputs.start.shape[1]

    def positions(self, model: Any) -> int:
        """Tokens of the longest text that the model reads."""
        return model.config.get_text_config().max_position_embeddings

    def check_length(self, model: Any, name: str, length: int) -> None:
        longest = self.positions(model)
        if length > longest:
            raise ValueError(f"{name}={length} is beyond the model's {longest} positions.")
