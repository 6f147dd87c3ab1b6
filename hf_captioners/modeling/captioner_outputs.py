"""Outputs of the captioners."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput
from typing_extensions import Self


@dataclass
class CaptionerEncoderOutput(ModelOutput):
    """Encoded pictures, made by `encode_images` and accepted back by `forward`, `generate` and `sequence_log_probs`.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(images, tokens, d_model)`):
            The memory that the decoder attends to.
        image_attention_mask (`torch.Tensor` of shape `(images, tokens)`, *optional*):
            1 for real tokens, 0 for padding. `None` when nothing is padded.
        image_features (`torch.Tensor` of shape `(images, tokens, feature_size)`, *optional*):
            What the encoder saw: the backbone's tokens or the given features.
        hidden_states (`tuple[torch.Tensor]`, *optional*):
            The encoder's input and the output of each of its layers, each `(images, tokens, d_model)`.
    """

    last_hidden_state: torch.Tensor = None  # type: ignore[assignment]  # as in transformers' outputs
    image_attention_mask: torch.Tensor | None = None
    image_features: torch.Tensor | None = None
    hidden_states: tuple | None = None

    def rows(self, index: Any) -> Self:
        """Select pictures.

        Args:
            index (`slice` or `torch.LongTensor`): which rows.

        Returns:
            a copy, in which all tensors have these rows; `hidden_states` stay as they are.
        """
        tensors: dict[str, Any] = {name: value[index] for name, value in self.items() if torch.is_tensor(value)}
        return replace(self, **tensors)


@dataclass
class CaptionerOutput(ModelOutput):
    """Output of a captioner's `forward`.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*):
            Training loss; returned when `labels` are given.
        logits (`torch.Tensor` of shape `(captions, length, vocab_size)`):
            Scores of the next word at every position, before the softmax.
        past_key_values (`Cache`, *optional*):
            The decoder's state, for incremental decoding.
        decoder_hidden_states (`tuple[torch.Tensor]`, *optional*):
            The decoder's input and the output of each of its layers, each `(captions, length, d_model)`.
        cross_attentions (`tuple[torch.Tensor]`, *optional*):
            Of every decoder layer, how much each word attends to each token of the picture, after the softmax:
            `(captions, heads, length, tokens)`. `None` for captioners that have the picture among the words.
        decoder_attentions (`tuple[torch.Tensor]`, *optional*):
            Of every layer of a captioner that has the picture among the words, how much each word attends to each
            place: `(captions, heads, length, places)`, image tokens first.
        encoder_last_hidden_state (`torch.Tensor` of shape `(images, tokens, d_model)`, *optional*):
            The memory.
        encoder_hidden_states (`tuple[torch.Tensor]`, *optional*):
            See [`CaptionerEncoderOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor = None  # type: ignore[assignment]  # as in transformers' outputs
    past_key_values: Cache | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class CandidateOutput(ModelOutput):
    """Output of `write_candidates`.

    Args:
        sequences (`torch.LongTensor` of shape `(images * candidates, length)`):
            Start token, words, end token, padding; captions of a picture stand side by side.
        log_probs (`torch.Tensor` of shape `(images * candidates, length - 1)`, *optional*):
            Of the tokens, without gradient, where writing gives them.
        scoring_inputs (`dict[str, Any]`, *optional*):
            Further arguments of `sequence_log_probs` that score the captions as they were written, such as a diffusion
            model's step and noise.
        greedy_sequences (`torch.LongTensor` of shape `(images * candidates, length)`, *optional*):
            For each candidate the likeliest words in its place, where writing gives them too: what a candidate is
            compared with depends on its own step and noise then.
    """

    sequences: torch.Tensor = None  # type: ignore[assignment]  # as in transformers' outputs
    log_probs: torch.Tensor | None = None
    scoring_inputs: dict[str, Any] | None = None
    greedy_sequences: torch.Tensor | None = None
