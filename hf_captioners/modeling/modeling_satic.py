"""SATIC, the semi-autoregressive transformer (arXiv 2106.09436).

"Semi-Autoregressive Transformer for Image Captioning", Y. Zhou, Y. Zhang, Z. Hu and M. Wang, 2021.

A pre-norm transformer over region features, or over the grid of any backbone, that writes K words a step: words are
predicted from the words K places earlier, groups of K see the groups before them and themselves. With K = 1 it is the
ordinary autoregressive transformer. No weight depends on K. Parameter names are those of the authors' checkpoints.

Where this differs from the authors' code:

1. Group masks and positions have no largest length but `config.max_position_embeddings`.
2. Training with `training_mask="decoding"` sees what decoding sees; the original, `"original"`, hides part of it.
3. Features without a mask are as with a mask of ones, also with batch normalisation.
4. The keys and values of the memory are projected once for a picture and shared by its captions.
5. Layer normalisations are float32 in every precision and under autocast.
6. The training loss is normalised by the targets of the whole optimizer step when the trainer passes their number.
7. Decoding: see `decoding_satic.py` and `cache_satic.py`.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .cache_satic import GroupCacheLayer, GroupState
from .captioner_attention import CaptionerAttention
from .captioner_autoregressive import AutoregressiveCaptioner, DecodeOptions, Decoding
from .captioner_cache import CaptionerCache
from .captioner_layers import (
    at_least_float32,
    initialize,
    padding_mask,
    values_are_known,
)
from .captioner_losses import smoothed_divergence
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from .configuration_satic import SaticConfig
from .decoding_satic import SaticBeams, UnknownWordPenalty, group_words
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .processing_captioner import SaticProcessor

FEW_ROWS, FEW_ROWS_ON = 6, ("cpu", torch.float32)  # where `GroupLinear` was measured to be faster


class LayerNorm(nn.Module):
    """Normalisation by the unbiased standard deviation, with epsilon added to it (not to the variance)."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.a_2 = nn.Parameter(torch.ones(config.d_model))
        self.b_2 = nn.Parameter(torch.zeros(config.d_model))
        self.eps = config.layer_norm_eps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, d) -> (…, d)"""
        values = at_least_float32(hidden)
        centred = values - values.mean(-1, keepdim=True)
        # not torch.std_mean, which takes five to ten times as long on a CPU
        deviation = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) * (hidden.shape[-1] - 1) ** -0.5
        return (self.a_2 * (centred / (deviation + self.eps)) + self.b_2).to(hidden.dtype)


class GroupLinear(nn.Linear):
    """A linear layer that is fast for the rows of one group on a CPU.

    The product of few rows with a large matrix costs what reading the matrix costs, but torch's CPU kernels take up to
    twice as long for two or three rows as for one. As columns on the other side of the matrix they don't.
    """

    is_plain = True  # its weights may be computed with as those of any linear layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out)"""
        rows = hidden.numel() // self.in_features
        if torch.is_grad_enabled() or not 1 < rows <= FEW_ROWS or (hidden.device.type, hidden.dtype) != FEW_ROWS_ON:
            return super().forward(hidden)
        columns = torch.addmm(self.bias[:, None], self.weight, hidden.reshape(rows, -1).t())  # (out, rows)
        return columns.t().reshape(*hidden.shape[:-1], -1)  # (…, out)


class Attention(CaptionerAttention):
    """Multi-head attention. `linears` are the projections of query, key, value and output."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__(config, config.d_model, dropout=config.dropout)
        self.linears = nn.ModuleList(GroupLinear(config.d_model, config.d_model) for _ in range(4))

    def keys_and_values(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (B, H, L, head), of `hidden` (B, L, d)."""
        return self.split(self.linears[1](hidden)), self.split(self.linears[2](hidden))

    def forward(self, hidden: torch.Tensor, *memory: Any) -> torch.Tensor:
        """(R, T, d) -> (R, T, d); see [`CaptionerAttention.attend_to_images`] for what is attended to."""
        return self.linears[3](self.attend_to_images(self.linears[0](hidden), *memory))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.w_1 = GroupLinear(config.d_model, config.ffn_dim)
        self.w_2 = nn.Linear(config.ffn_dim, config.d_model)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, d) -> (…, d)"""
        return self.w_2(self.dropout(self.w_1(hidden).relu()))


class Sublayer(nn.Module):
    """A branch with the normalisation before it, added to its input."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor, branch: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """(…, d) -> (…, d)"""
        return hidden + self.dropout(branch(self.norm(hidden)))


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention of the regions, and feed-forward."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.feed_forward = FeedForward(config)
        self.sublayer = nn.ModuleList(Sublayer(config) for _ in range(2))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, L, d) -> (B, L, d), with a mask (B, 1, 1, L)."""
        hidden = self.sublayer[0](hidden, lambda x: self.self_attn(x, *self.self_attn.keys_and_values(x), mask))
        return self.sublayer[1](hidden, self.feed_forward)


class DecoderLayer(GradientCheckpointingLayer):
    """Self-attention of the words, attention to the memory, and feed-forward."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.src_attn = Attention(config)
        self.feed_forward = FeedForward(config)
        self.sublayer = nn.ModuleList(Sublayer(config) for _ in range(3))

    def forward(
        self,
        hidden: torch.Tensor,
        memory: torch.Tensor,
        self_mask: torch.Tensor | None,
        memory_mask: torch.Tensor | None,
        cache: GroupCacheLayer | None,
        all_weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(R, T, d) -> (R, T, d), attending to a memory (B, L, d); with a cache the memory is read from there."""
        if cache is None:
            memory_keys, memory_values = self.src_attn.keys_and_values(memory)
        else:
            memory_keys, memory_values = cache.memory_keys, cache.memory_values

        def attend_to_words(words: torch.Tensor) -> torch.Tensor:
            keys, values = self.self_attn.keys_and_values(words)
            if cache is not None:
                keys, values = cache.update(keys, values)
            return self.self_attn(words, keys, values, self_mask)

        hidden = self.sublayer[0](hidden, attend_to_words)
        of_memory = memory_keys, memory_values, memory_mask, all_weights
        hidden = self.sublayer[1](hidden, lambda x: self.src_attn(x, *of_memory))
        return self.sublayer[2](hidden, self.feed_forward)


class Stack(nn.Module):
    """Layers and the normalisation after the last one."""

    def __init__(self, layers: list[nn.Module], config: SaticConfig) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(layers)
        self.norm = LayerNorm(config)


class FeatureLinear(nn.Linear):
    """The projection of the features, which alone keeps torch's initialisation."""

    is_plain = True


class FeatureEmbedding(nn.Sequential):
    """Features to the model's width; padded rows become exactly 0 and never enter the statistics of a batch."""

    def __init__(self, config: SaticConfig) -> None:
        width = cast(int, config.feature_size)
        layers = [FeatureLinear(width, config.d_model), nn.ReLU(), nn.Dropout(config.feature_dropout)]
        if config.feature_batch_norm > 0:
            layers.insert(0, nn.BatchNorm1d(width))
        if config.feature_batch_norm > 1:
            layers.append(nn.BatchNorm1d(config.d_model))
        super().__init__(*layers)

    def forward(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(B, L, feature_size) -> (B, L, d); `mask` (B, L) is 1 for real rows."""
        if mask is None:
            return super().forward(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        real = mask.bool()
        if not values_are_known(mask):  # a graph computes padded rows too
            rows = super().forward(features.masked_fill(~real[..., None], 0.0).flatten(0, 1))  # (B * L, d)
            return rows.unflatten(0, features.shape[:2]).masked_fill(~real[..., None], 0.0)
        rows = super().forward(features[real])  # (real rows, d)
        embedded = rows.new_zeros(*mask.shape, rows.shape[-1])  # (B, L, d)
        embedded[real] = rows
        return embedded  # (B, L, d)


class WordEmbedding(nn.Module):
    """Word vectors, scaled by the square root of their width."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.lut = nn.Embedding(config.vocab_size, config.d_model)
        self.scale = config.d_model**0.5

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(R, T) -> (R, T, d)"""
        return self.lut(input_ids) * self.scale


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """Codes (positions, width) in float32: even columns sin(p w), odd ones cos(p w), w falling from 1 to 1/10000."""
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))  # (width / 2,)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * rates  # (positions, width / 2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (positions, width)


class PositionalEncoding(nn.Module):
    """Sinusoids, added to the word vectors."""

    pe: torch.Tensor

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        positions = 2 * config.max_position_embeddings  # a last group that is not full is computed whole
        self.register_buffer("pe", sinusoids(positions, config.d_model), persistent=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, words: torch.Tensor, start: int) -> torch.Tensor:
        """(R, T, d) -> (R, T, d), the first word at position `start`."""
        codes = self.pe[start : start + words.shape[1]]  # float32 where only the weights were loaded in half precision
        return self.dropout(words + codes.to(words.dtype))


class Generator(nn.Module):
    """Scores of the words."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.proj = GroupLinear(config.d_model, config.vocab_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, T, d) -> (R, T, V)"""
        return self.proj(hidden)


class EncoderDecoder(nn.Module):
    """The transformer, without the embedding of the features."""

    def __init__(self, config: SaticConfig) -> None:
        super().__init__()
        self.encoder = Stack([EncoderLayer(config) for _ in range(config.encoder_layers)], config)
        self.decoder = Stack([DecoderLayer(config) for _ in range(config.decoder_layers)], config)
        self.tgt_embed: Any = nn.ModuleList([WordEmbedding(config), PositionalEncoding(config)])
        self.generator = Generator(config)


def group_inputs(ids: torch.Tensor, size: int, first: int = 0) -> torch.Tensor:
    """Input of the decoder: a group reads the words of the group before it, the first one the start token.

    Args:
        ids (`torch.LongTensor` of shape `(N, T)`): captions, start token first.
        size (`int`): words of a group, K.
        first (`int`, defaults to 0): the first group that is wanted.

    Returns:
        `torch.LongTensor` of shape `(N, (groups - first) * size)`, where `groups = ceil(T / size)`: every group
        that has all it reads. The output at place j scores word j + 1, the start token being word 0.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.modeling_satic import group_inputs
    >>> group_inputs(torch.tensor([[0, 11, 12, 13, 14]]), 2)
    tensor([[ 0,  0, 11, 12, 13, 14]])

    ```
    """
    groups = -(-ids.shape[1] // size)
    slots = torch.cat((ids[:, :1].expand(-1, size), ids[:, 1 : (groups - 1) * size + 1]), dim=1)  # (R, groups * K)
    return slots[:, first * size :]


def group_mask(start: int, stop: int, size: int, device: torch.device) -> torch.Tensor | None:
    """Mask of the places 0 to `stop` that the places `start` to `stop` see, (stop - start, stop): their own group of
    `size` and those before it. `None`: everything, which holds for one group."""
    if stop - start == size:
        return None
    groups = torch.arange(stop, device=device) // size  # (stop,)
    return groups[start:, None] >= groups  # (stop - start, stop)


class SaticForImageCaptioning(AutoregressiveCaptioner, GenerationMixin):
    """SATIC: region features, or a picture, to a caption, K words a step.

    Options of `generate` beside those of transformers, which can also be set in `generation_config`:

    - `decoding` (`str`, defaults to `"paper"`): `"paper"`: the decoding of this file's original, with an exact cache
      and K words a step, greedy or sampled with `num_beams=1`, else its beam search. `"standard"`: transformers' own
      loops, which ask for one word after the other and work with any K; the options below are not for them.
    - `length_penalty` (`float` or `str`, defaults to 0.0): the final score of a beam is its sum of log-probabilities
      divided by length ** penalty. Also takes the original's `"wu_0.7"` and `"avg_0"`; see
      [`~hf_captioners.modeling.decoding_satic.length_normalizer`].
    - `suppress_unk` (`bool` or `"beams"`, defaults to `"beams"`): whether the unknown word is avoided. As in the
      original, beam search does and greedy decoding and sampling do not.
    - `reference_quirks` (`bool`, defaults to `False`): greedy decoding and sampling as in the original: a caption stops
      at the end of the group that its end token is in, what was predicted behind the end token stays, and no more than
      the whole groups in `max_length - 1` words are written. (The text of a caption, cut at the end token, differs in
      the last point only.) The beam search of the original has no such quirks.

    `max_length` counts the start token: 21 for captions of at most 20 words, which is the default.

    The logits at place j of a caption are those of word j + 1, whatever K is; of the words up to j they depend on those
    of the finished groups. With `labels` the decoder sees what `config.training_mask` allows, without what it sees when
    it writes.

    Args:
        config ([`SaticConfig`]): sizes and rates.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import SaticConfig, SaticForImageCaptioning
    >>> config = SaticConfig(
    ...     vocab_size=50, group_size=2, d_model=32, encoder_layers=1, decoder_layers=1, num_attention_heads=4,
    ...     ffn_dim=64, feature_size=24, unk_token_id=49,
    ... )
    >>> model = SaticForImageCaptioning(config).eval()
    >>> ids = model.generate(image_features=torch.randn(2, 9, 24), num_beams=3, max_length=10)
    >>> ids.shape[0], bool((ids[:, 0] == 0).all())
    (2, True)

    ```
    """

    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    processor_class = SaticProcessor
    text_options = ("length_penalty",)
    decodings = {"paper": Decoding(words=group_words, beams=SaticBeams), "standard": Decoding()}
    word_loss = staticmethod(smoothed_divergence)
    input_embeddings, output_embeddings = "model.tgt_embed.0.lut", "model.generator.proj"
    # Queries and values of every attention: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = r"model\.(encoder|decoder)\.layers\.\d+\.(self_attn|src_attn)\.linears\.(0|2)"
    config: SaticConfig

    def __init__(self, config: SaticConfig) -> None:
        super().__init__(config)
        self.backbone = self.new_backbone()
        self.att_embed = FeatureEmbedding(config)
        self.model = EncoderDecoder(config)
        self.post_init()

    def default_decoding(self) -> dict[str, Any]:
        """The original's: greedy over at most 20 words."""
        longest = min(21, self.config.max_position_embeddings)
        return {"max_length": longest, "decoding": "paper", "suppress_unk": "beams", "reference_quirks": False}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform for every table but the features' projection, torch's default for every vector."""
        initialize(module, xavier=not isinstance(module, FeatureLinear))
        if isinstance(module, LayerNorm):
            init.ones_(module.a_2)
            init.zeros_(module.b_2)
        elif isinstance(module, PositionalEncoding):
            init.copy_(module.pe, sinusoids(*module.pe.shape))

    def encode(self, features: torch.Tensor, mask: torch.Tensor | None, **inputs: Any) -> CaptionerEncoderOutput:
        """Self-attention of the regions. Rows that are padding in the whole batch are cut off; the output's other rows
        at padding hold numbers that mean nothing and that nobody reads."""
        mask = padding_mask(mask)
        if mask is not None and values_are_known(mask):
            longest = int(mask.any(0).nonzero().max()) + 1
            features, mask = features[:, :longest], padding_mask(mask[:, :longest])
        states = [self.att_embed(features.to(self.dtype), mask)]  # (B, L, d)
        visible = None if mask is None else mask.bool()[:, None, None]  # (B, 1, 1, L)
        for layer in self.model.encoder.layers:
            states.append(layer(states[-1], visible))
        return CaptionerEncoderOutput(
            last_hidden_state=self.model.encoder.norm(states[-1]),
            image_attention_mask=mask,
            image_features=features,
            hidden_states=tuple(states),
        )

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> CaptionerCache:
        """The decoder's state before the first word; holds the projections of the memory."""
        memory = encoder_outputs.last_hidden_state
        layers = [GroupCacheLayer(*layer.src_attn.keys_and_values(memory)) for layer in self.model.decoder.layers]
        return CaptionerCache(layers=[GroupState(), *layers])

    def decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Any, options: DecodeOptions
    ) -> CaptionerOutput:
        """Groups of words from the groups before them; the layers' outputs and attentions are those of whole groups,
        with a cache of those that were computed.

        Raises:
            ValueError: captions to learn, with a cache.
        """
        weights: list[torch.Tensor] | None = [] if options.output_attentions else None
        if cache is None:
            logits, states = self._score(input_ids, encoder_outputs, options, weights)
        elif options.teacher_forcing:
            raise ValueError("labels are scored in one pass: leave past_key_values and use_cache out.")
        else:
            logits, states = self._continue(input_ids, encoder_outputs, cache, options, weights)
        return CaptionerOutput(
            logits=logits,
            decoder_hidden_states=tuple(states),
            cross_attentions=None if weights is None else tuple(weights),
        )

    def _score(
        self, ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, options: DecodeOptions, weights: Any
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits of the last words that are to be kept and the decoder's states, in one pass."""
        slots = group_inputs(ids, self.config.group_size)  # (N, groups * K)
        if options.teacher_forcing and self.config.training_mask == "original":
            mask: torch.Tensor | None = self._original_training_mask(slots)
        else:
            mask = group_mask(0, slots.shape[1], self.config.group_size, slots.device)
        states = self._run_decoder(slots, encoder_outputs, None, mask, weights)
        return self.model.generator(states[-1][:, : ids.shape[1]][:, -options.logits_to_keep :]), states

    def _continue(
        self,
        ids: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput,
        cache: CaptionerCache,
        options: DecodeOptions,
        weights: Any,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Score as `_score`, after the words in `cache`. Runs the decoder only if a new group can be scored."""
        state = cast(GroupState, cache.layers[0])
        size, known = self.config.group_size, state.groups * self.config.group_size
        words = state.append(ids)  # (R, n)
        total = words.shape[1]
        # the first place whose logits are wanted
        first = total - (min(options.logits_to_keep, ids.shape[1]) or ids.shape[1])
        states: list[torch.Tensor] = []
        parts = []
        if first < known:  # the rest of the group that was scored last
            parts.append(state.read(first - known + size, min(total - known, 0) + size))
        if total > known:
            slots = group_inputs(words, size, state.groups)  # (R, new groups * K)
            logits, states = self.score_groups(slots, encoder_outputs, cache, weights)
            parts.append(logits[:, max(first - known, 0) : total - known])
            state.store(logits[:, -size:], -(-total // size))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), states

    def score_groups(
        self,
        slots: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput,
        cache: CaptionerCache,
        weights: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Score whole groups behind those in the cache.

        Args:
            slots (`torch.LongTensor` of shape `(R, groups * K)`): what they read, see [`group_inputs`].
            encoder_outputs ([`CaptionerEncoderOutput`]): of the pictures.
            cache ([`CaptionerCache`]): of `start_cache`; it gets the groups.
            weights (`list[torch.Tensor]`, *optional*): gets every layer's attention to the picture.

        Returns:
            `tuple[torch.Tensor, list[torch.Tensor]]`: logits `(R, groups * K, V)`, and the decoder's states.
        """
        layer: Any = cache.layers[1]
        size, known = self.config.group_size, layer.get_seq_length()
        mask = group_mask(known, known + slots.shape[1], size, slots.device)
        states = self._run_decoder(slots, encoder_outputs, cache, mask, weights)
        return self.model.generator(states[-1]), states

    def _run_decoder(
        self,
        slots: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput,
        cache: CaptionerCache | None,
        self_mask: torch.Tensor | None,
        weights: list[torch.Tensor] | None,
    ) -> list[torch.Tensor]:
        """Hidden states (R, T, d) of the input (R, T): embedded words, output of each layer and its normalisation."""
        caches: list[Any] = [None] * len(self.model.decoder.layers) if cache is None else cache.layers[1:]
        start = 0 if cache is None else caches[0].get_seq_length()
        memory, mask = encoder_outputs.last_hidden_state, encoder_outputs.image_attention_mask
        visible = None if mask is None else mask.bool()[:, None, None]  # (B, 1, 1, L)
        embed, add_positions = self.model.tgt_embed
        states = [add_positions(embed(slots), start)]  # (R, T, d)
        for layer, layer_cache in zip(self.model.decoder.layers, caches, strict=True):
            states.append(layer(states[-1], memory, self_mask, visible, layer_cache, weights))
        return [*states, self.model.decoder.norm(states[-1])]

    def _original_training_mask(self, slots: torch.Tensor) -> torch.Tensor:
        """Mask of the original in teacher forcing, (N, 1, T, T): no start token and no padding but the first place.

        Its input also ends one place before the last group of a caption of `label_length` words is full.
        """
        size, places = self.config.group_size, torch.arange(slots.shape[1], device=slots.device)
        silent = torch.tensor([self.config.decoder_start_token_id, self.config.pad_token_id], device=slots.device)
        shown = torch.isin(slots, silent, invert=True)  # (N, T)
        shown[:, 0] = True
        groups = places // size  # (T,)
        visible = torch.logical_and(groups[:, None] >= groups, shown[:, None, None])  # (N, 1, T, T)
        missing = (self.config.label_length + 1 + size) // size * size - 1
        cut_off = torch.logical_and(places == missing, groups[:, None] == missing // size)  # (T, T)
        return visible.masked_fill(cut_off, False)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict]:
        """Merge as every captioner does, but without length penalty unless the caller sets it; transformers' default is
        1.0, and a generation config without beams cannot be saved with another value."""
        merged, rest = super()._prepare_generation_config(generation_config, **kwargs)
        places = (self.generation_config, generation_config)
        asked = [None if place is None else place.length_penalty for place in places]
        if kwargs.get("length_penalty") is None and asked == [None, None]:
            merged.length_penalty = 0.0
        return merged, rest

    def _choose_decoding(self, generation_config: Any) -> Callable | None:
        options = vars(generation_config)
        suppress = options.get("suppress_unk", "beams")
        if suppress not in (True, False, "beams"):
            raise ValueError(f"suppress_unk must be True, False or 'beams', not {suppress!r}.")
        if options["decoding"] == "paper":
            if generation_config.do_sample and generation_config.num_beams > 1:
                raise ValueError("the paper's beam search does not sample: give decoding='standard' or num_beams=1.")
        elif isinstance(generation_config.length_penalty, str):
            raise ValueError(
                f"length_penalty={generation_config.length_penalty!r} is for decoding='paper'; with 'standard' give a "
                "number."
            )
        elif suppress is True or options.get("reference_quirks"):
            raise ValueError("suppress_unk and reference_quirks are for decoding='paper'.")
        return super()._choose_decoding(generation_config)

    def _get_logits_processor(self, generation_config: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Processors of every captioner, and the paper's penalty of the unknown word before all others."""
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        options, unknown = vars(generation_config), self.config.unk_token_id
        suppress = options.get("suppress_unk", "beams")
        avoided = generation_config.num_beams > 1 if suppress == "beams" else suppress
        if options["decoding"] == "paper" and avoided and unknown is not None:
            processors.insert(0, UnknownWordPenalty(unknown))
        return processors
