"""CLIP-GPT2, the low-cost captioner: an image embedding becomes a token (or several) in front of GPT-2's words.

There is no paper; the description is a public project's. ClipCap (arXiv 2111.09734) is the same idea with more image
tokens, and its checkpoints load here. The towers are transformers' own: `CLIPVisionModelWithProjection` (or any vision
backbone that pools its output) and `GPT2LMHeadModel`. Parameter names are those of ClipCap's checkpoints, with the
image tower under `backbone.`.

GPT-2 reads `[image tokens] [anchors, separator] [words]`. The hidden state of the last token before the words predicts
the first word; the last word predicts the end token. Captions are written down as for every captioner here, with a
start token in front: GPT-2 never sees it, the last token before the words stands in its place. So N captions of T
tokens have N x T scores, and `generate` is transformers' own, with GPT-2's own cache behind it.

Loading in 8 or 4 bits works as for any model of transformers, with `quantization_config=BitsAndBytesConfig(…)`; nothing
here looks at the type of a linear layer's weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionModelWithProjection,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    GPT2LMHeadModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from .beam_search_clip_gpt2 import clipcap_beam_search
from .captioner_base import CaptionerPreTrainedModel
from .captioner_layers import at_least_float32
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from .configuration_clip_gpt2 import ClipGpt2Config
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .prefix_mapper_clip_gpt2 import MAPPERS, TransformerMapper
from .processing_clip_gpt2 import ClipGpt2Processor  # noqa: F401  travels with the model

DEFAULT_WORDS = 20  # of a caption, the number that the project trained and generated with
NO_ANCHOR = -100  # padding of `anchor_ids`


class PrefixCache(DynamicCache):
    """GPT-2's keys and values, and what they begin with: the tokens before the words, a row per picture.

    Args:
        config (`GPT2Config`): of GPT-2.
        prefix (`torch.Tensor` of shape `(B, C, d)`): embeddings before the words, padding on the left.
        prefix_mask (`torch.Tensor` of shape `(B, C)`, *optional*): 1 for real tokens.
    """

    def __init__(self, config: Any, prefix: torch.Tensor, prefix_mask: torch.Tensor | None) -> None:
        super().__init__(config=config)
        self.prefix = prefix
        self.prefix_mask = prefix_mask


def left_aligned_padding(hidden: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Move padding to the left, in front of the real tokens, and cut off what all rows have of it.

    Args:
        hidden (`torch.Tensor` of shape `(B, L, d)`): tokens.
        mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for real tokens, at least one in every row.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: tokens `(B, C, d)` and their mask `(B, C)`, `None` without padding.
    """
    if mask is None or bool(mask.all()):
        return hidden, None
    order = mask.argsort(dim=1, stable=True)  # padding first, real tokens in their order
    order = order[:, -int(mask.sum(1).max()) :]
    mask = mask.gather(1, order)
    hidden = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
    return hidden, None if bool(mask.all()) else mask


def caption_loss(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, num_items: torch.Tensor | int
) -> torch.Tensor:
    """Cross-entropy of the words, summed and divided by `num_items`.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`): scores.
        labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
        smoothing (`float`): mass that is spread evenly over all words, in [0, 1).
        num_items (`int` or `torch.Tensor`): number of targets.

    Returns:
        `torch.Tensor` of shape `()`: in nats.
    """
    loss = nn.functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    return loss / num_items


class ClipGpt2PreTrainedModel(CaptionerPreTrainedModel):
    """Initialisation and capabilities of CLIP-GPT2."""

    config: ClipGpt2Config
    _no_split_modules = ["GPT2Block", "CLIPEncoderLayer", "MapperLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's defaults for mapper and tag predictor; the towers initialise themselves."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, TransformerMapper):
            init.normal_(module.prefix_const)


class ClipGpt2ForImageCaptioning(ClipGpt2PreTrainedModel, GenerationMixin):
    """CLIP-GPT2: a picture, its cached embedding or its region features, to a caption.

    A caption ends with the end token. To end it with a full stop as well, as ClipCap does, add that token:
    `model.generation_config.eos_token_id = [50256, 13]`, or `eos_token_id=[50256, 13]` in a call of `generate`.

    Adapters leave the mapper as it is unless they are told otherwise, and a fresh one has to learn:
    `LoraConfig(target_modules=model.LORA_TARGET_MODULES, modules_to_save=["clip_project"])`.

    Args:
        config ([`ClipGpt2Config`]): sizes and switches.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import ClipGpt2Config, ClipGpt2ForImageCaptioning
    >>> config = ClipGpt2Config(
    ...     features_only=True, feature_size=16,
    ...     text_config={"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
    ...                  "bos_token_id": 0, "eos_token_id": 0},
    ... )
    >>> model = ClipGpt2ForImageCaptioning(config).eval()
    >>> ids = model.generate(image_features=torch.randn(2, 16), num_beams=3, max_length=10)
    >>> ids.shape[0], bool((ids[:, 0] == 0).all())
    (2, True)

    ```
    """

    beam_rules = {"standard": None, "clipcap": clipcap_beam_search}
    # GPT-2's attention projections: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = r"gpt\.transformer\.h\.\d+\.attn\.(c_attn|c_proj)"

    def __init__(self, config: ClipGpt2Config) -> None:
        super().__init__(config)
        self.backbone: PreTrainedModel | None = None
        if not config.features_only:
            vision: Any = config.vision_config
            is_clip = vision.model_type == "clip_vision_model"  # AutoModel would leave the projection out
            self.backbone = CLIPVisionModelWithProjection(vision) if is_clip else AutoModel.from_config(vision)
        self.clip_project: Any = MAPPERS[config.mapping_type](config)
        self.gpt: Any = GPT2LMHeadModel(cast(Any, config.text_config))
        self.tag_head: nn.Linear | None = None
        if config.tag_token_ids:
            self.tag_head = nn.Linear(cast(int, config.feature_size), len(config.tag_token_ids))
        self.post_init()
        # a checkpoint's generation_config.json replaces it
        self.generation_config = GenerationConfig(
            num_beams=5,
            max_length=min(DEFAULT_WORDS + 2, cast(int, config.max_position_embeddings)),
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | Path | PreTrainedModel | None,
        decoder_pretrained_model_name_or_path: str | Path | GPT2LMHeadModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        fresh_embeddings: bool = False,
        encoder_kwargs: dict[str, Any] | None = None,
        decoder_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "ClipGpt2ForImageCaptioning":
        """A captioner with pretrained towers and a fresh mapper, in float32.

        Args:
            encoder_pretrained_model_name_or_path (`str`, `Path` or `PreTrainedModel`): folder or Hub name of a CLIP
                model, of its vision tower, or of a transformers vision model that pools its output; or the tower.
                `None` for a model of cached embeddings or regions, whose width is then `feature_size`.
            decoder_pretrained_model_name_or_path (`str`, `Path` or `GPT2LMHeadModel`): folder or Hub name of a GPT-2,
                or the model.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): where the special tokens are taken from; by default from
                GPT-2's configuration.
            fresh_embeddings (`bool`, defaults to `False`): leave GPT-2's vocabulary and its embeddings behind, for
                those of `tokenizer`; embeddings and head start fresh and tied.
            encoder_kwargs, decoder_kwargs (`dict`, *optional*): arguments of each tower's `from_pretrained`, as
                `revision`.
            kwargs: fields of [`ClipGpt2Config`], as `prefix_length` or `mapping_type`.

        Returns:
            [`ClipGpt2ForImageCaptioning`]

        Raises:
            ValueError: a checkpoint that lacks weights of its tower; a tower that does not pool; a tokenizer of
                another vocabulary than GPT-2's without `fresh_embeddings`.

        Example:

        ```python
        >>> from hf_captioners import ClipGpt2ForImageCaptioning
        >>> model = ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(
        ...     "openai/clip-vit-base-patch32", "openai-community/gpt2", prefix_length=10, mapping_type="mlp"
        ... )  # doctest: +SKIP

        ```
        """
        vision = None
        if encoder_pretrained_model_name_or_path is not None:
            vision = load_vision_tower(encoder_pretrained_model_name_or_path, encoder_kwargs or {})
            kwargs = {**kwargs, "vision_config": vision.config, "feature_size": pooled_width(vision)}
        text = _load_text(decoder_pretrained_model_name_or_path, decoder_kwargs or {})
        settings = text.config.to_dict()
        if tokenizer is not None:
            kwargs = {**_special_tokens(tokenizer), **kwargs}
            settings["vocab_size"] = _vocabulary_size(tokenizer, settings["vocab_size"], fresh_embeddings)
        elif fresh_embeddings:
            raise ValueError("fresh_embeddings=True needs the tokenizer whose vocabulary they are for.")
        model = cls(ClipGpt2Config(features_only=vision is None, text_config=settings, **kwargs))
        if vision is not None:
            cast(PreTrainedModel, model.backbone).load_state_dict(vision.state_dict())
        state = text.state_dict()
        if fresh_embeddings:
            state = {name: value for name, value in state.items() if "wte." not in name and "lm_head." not in name}
        model.gpt.load_state_dict(state, strict=not fresh_embeddings)
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.gpt.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        self.gpt.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.gpt.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.gpt.set_output_embeddings(new_embeddings)

    def image_tokens(self, output: ModelOutput) -> torch.Tensor:
        """The backbone's pooled output, projected if it is CLIP's, as one token (B, 1, D)."""
        return pooled_embedding(output)[:, None]

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        anchor_ids: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> CaptionerEncoderOutput:
        """What GPT-2 reads before the words, for any number of captions.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`, *optional*): preprocessed pictures.
            image_features (`torch.Tensor` of shape `(B, D)`, `(B, 1, D)` or `(B, N, D)`, *optional*): instead, cached
                embeddings, or features of N regions. Each becomes `prefix_length` tokens.
            image_attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 for real regions, 0 for padding.
            anchor_ids (`torch.LongTensor` of shape `(R, L)`, *optional*): tokens of the anchors, -100 for padding; R is
                a multiple of B, rows of one picture side by side. A row without tokens has no anchors. By default the
                tag predictor's, if the model has one.
            output_hidden_states (`bool`, defaults to `False`): also return the image tokens alone in `hidden_states`.

        Returns:
            [`CaptionerEncoderOutput`]: R rows (B without `anchor_ids`), padding on the left.

        Raises:
            ValueError: not exactly one of `pixel_values` and `image_features`; a wrong width; a picture without
                regions; rows of anchors that cannot be shared out among the pictures.
        """
        if image_features is not None and image_features.ndim == 2:
            image_features = image_features[:, None]
        self.check_entrance(pixel_values, image_features, image_attention_mask, self.config.feature_size)
        if pixel_values is not None:
            image_features = self.extract_image_features(pixel_values)
        seen = cast(torch.Tensor, image_features)
        mask = image_attention_mask
        if mask is not None:
            image_features = seen.masked_fill(mask[..., None] == 0, 0.0)  # NaN there would reach the gradients
            mask = mask.long().repeat_interleave(self.config.prefix_length, dim=1)
        prefix = tokens = self.clip_project(self._as_mapped(image_features)).flatten(1, 2).to(self.gpt.dtype)
        if anchor_ids is None and self.tag_head is not None:
            anchor_ids = self._predicted_anchors(seen, image_attention_mask)
        if anchor_ids is not None:
            prefix, mask = self._with_anchors(prefix, mask, anchor_ids)
        prefix, mask = left_aligned_padding(prefix, mask)
        return CaptionerEncoderOutput(
            last_hidden_state=prefix,
            image_attention_mask=mask,
            image_features=seen,
            hidden_states=(tokens,) if output_hidden_states else None,  # (B, N * P, d)
        )

    def _as_mapped(self, features: Any) -> torch.Tensor:
        """Features as mapper and tag predictor see them."""
        if self.config.normalize_prefix:
            features = nn.functional.normalize(at_least_float32(features), dim=-1)
        return features.to(self.gpt.dtype)

    def _with_anchors(
        self, prefix: torch.Tensor, mask: torch.Tensor | None, anchor_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Anchors and separator behind the image tokens: (R, N * P + L + 1, d) and the mask."""
        pictures, rows = prefix.shape[0], anchor_ids.shape[0]
        if rows % pictures:
            raise ValueError(f"{rows} rows of anchor_ids cannot be shared out among {pictures} pictures evenly.")
        mask = prefix.new_ones(prefix.shape[:2], dtype=torch.long) if mask is None else mask
        real = anchor_ids >= 0
        separator = anchor_ids.new_full((rows, 1), cast(int, self.config.separator_token_id))
        ids = torch.cat((anchor_ids.clamp(min=0), separator), dim=1)
        real = torch.cat((real, real.any(dim=1, keepdim=True)), dim=1).long()
        embedded = self.get_input_embeddings()(ids)
        prefix, mask = (one.repeat_interleave(rows // pictures, dim=0) for one in (prefix, mask))
        return torch.cat((prefix, embedded), dim=1), torch.cat((mask, real), dim=1)

    def predict_tags(
        self, image_features: torch.Tensor, image_attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Scores of the tag predictor's words, before the sigmoid.

        Args:
            image_features (`torch.Tensor` of shape `(B, N, D)`): embeddings, or regions, which are averaged.
            image_attention_mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 for real regions.

        Returns:
            `torch.Tensor` of shape `(B, len(config.tag_token_ids))`

        Raises:
            ValueError: the model has no tag predictor.
        """
        if self.tag_head is None:
            raise ValueError("this model has no tag predictor: its config.tag_token_ids is empty.")
        features = self._as_mapped(image_features)
        if image_attention_mask is None:
            return self.tag_head(features.mean(dim=1))
        real = image_attention_mask[..., None].to(features.dtype)
        return self.tag_head(features.masked_fill(real == 0, 0.0).sum(dim=1) / real.sum(dim=1))

    @torch.no_grad()
    def _predicted_anchors(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`anchor_ids` (B, L) of the most probable words, best first."""
        tags = cast(list, self.config.tag_token_ids)
        scores, best = self.predict_tags(features, mask).sigmoid().topk(min(self.config.max_anchors, len(tags)))
        table = nn.utils.rnn.pad_sequence([torch.tensor(one) for one in tags], True, NO_ANCHOR).to(best.device)
        anchors = table[best].masked_fill((scores <= self.config.anchor_threshold)[..., None], NO_ANCHOR)
        return anchors.flatten(1)  # padding between words does no harm: it is moved to the left with the rest

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> Cache:
        """An empty cache that knows what stands before the words."""
        mask = encoder_outputs.image_attention_mask
        return PrefixCache(self.config.text_config, encoder_outputs.last_hidden_state, mask)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        anchor_ids: torch.Tensor | None = None,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        **kwargs: Any,
    ) -> Any:
        """Write captions; see [`CaptionerPreTrainedModel.generate`], and `encode_images` for `anchor_ids`."""
        if encoder_outputs is None:
            pixel_values = inputs if pixel_values is None else pixel_values
            encoder_outputs = self.encode_images(pixel_values, image_features, image_attention_mask, anchor_ids)
        elif anchor_ids is not None:
            raise ValueError("give anchor_ids to encode_images: encoder_outputs are behind them already.")
        if self._caches_nothing():
            kwargs["use_cache"] = False
        return super().generate(None, generation_config, *args, encoder_outputs=encoder_outputs, **kwargs)

    def _prepare_special_tokens(self, generation_config: Any, has_mask: bool | None = None, **kwargs: Any) -> None:
        """As in transformers, without its warning that padding equal to the end token needs an attention mask: here
        nothing that is padded with it is ever read."""
        super()._prepare_special_tokens(generation_config, True, **kwargs)

    def _caches_nothing(self) -> bool:
        """Whether GPT-2 would leave a cache empty: activation checkpointing while training."""
        return self.training and self.gpt.is_gradient_checkpointing

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        anchor_ids: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        tag_targets: torch.Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        smoothing: float | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CaptionerOutput | tuple:
        """Score captions.

        Args:
            pixel_values, image_features, image_attention_mask, anchor_ids: see `encode_images`.
            decoder_input_ids (`torch.LongTensor` of shape `(N, T)`, *optional*):
                The caption so far, start token first. Made from `labels` by default. N is a multiple of the number of
                pictures (of rows of `anchor_ids`, if given); captions of one picture stand side by side.
            encoder_outputs ([`CaptionerEncoderOutput`], *optional*): what `encode_images` gave, instead of pictures.
            past_key_values (`Cache`, *optional*): the state after the tokens before `decoder_input_ids`.
            labels (`torch.LongTensor` of shape `(N, T)`, *optional*): words and end token, then -100.
            tag_targets (`torch.Tensor` of shape `(B, V)`, *optional*):
                1 for the tag predictor's words that occur in any caption of the picture. The loss gets the predictor's
                binary cross-entropy, averaged over the words of its vocabulary and, over the pictures, weighted by
                the number of their targets: so parts of a batch add up to the whole. Not used without a predictor.
            use_cache (`bool`, defaults to `False`): return `past_key_values`.
            output_hidden_states (`bool`, defaults to `False`): return every layer's output.
            smoothing (`float`, *optional*, defaults to `config.label_smoothing`): see `caption_loss`.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): what the loss is divided by, instead of this
                batch's number of targets.
            logits_to_keep (`int`, defaults to 0): only the logits of the last positions; 0 for all.
            return_dict (`bool`, defaults to `True`): a [`CaptionerOutput`] instead of a tuple.

        Returns:
            [`CaptionerOutput`] or `tuple`

        Raises:
            ValueError: see `encode_images`; no `decoder_input_ids` and no `labels`; a caption without start token, or
                longer than GPT-2's positions.
        """
        mask = image_attention_mask
        if encoder_outputs is None:
            encoder_outputs = self.encode_images(pixel_values, image_features, mask, anchor_ids, output_hidden_states)
        elif anchor_ids is not None or tag_targets is not None:
            raise ValueError("anchor_ids and tag_targets belong to pictures; encoder_outputs are behind them already.")
        if decoder_input_ids is None:
            decoder_input_ids = self.shift_labels(labels)
        if use_cache and past_key_values is None and not self._caches_nothing():
            past_key_values = self.start_cache(encoder_outputs)
        output = self._decode(
            decoder_input_ids,
            encoder_outputs,
            past_key_values,
            logits_to_keep=logits_to_keep or decoder_input_ids.shape[1],
            output_hidden_states=output_hidden_states,
        )
        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if smoothing is None else smoothing
            items = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = caption_loss(output.logits, labels, smoothing, items)
            if tag_targets is not None and self.tag_head is not None:
                scores = self.predict_tags(cast(torch.Tensor, encoder_outputs.image_features), mask)
                loss = loss + self.config.tag_loss_weight * _tag_loss(scores, tag_targets, labels, items)
        result = CaptionerOutput(
            loss=loss,
            logits=output.logits,
            past_key_values=past_key_values,
            decoder_hidden_states=_of_words(output.hidden_states, decoder_input_ids.shape[1]),
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )
        return result if return_dict else result.to_tuple()

    def _decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Cache | None, **options: Any
    ) -> Any:
        """GPT-2's output for captions (N, T), behind the prefix (B, C, d)."""
        if cache is not None and not isinstance(cache, PrefixCache):
            raise ValueError(f"past_key_values must come from start_cache, not be a {type(cache).__name__}.")
        prefix, mask = encoder_outputs.last_hidden_state, encoder_outputs.image_attention_mask
        if cache is not None:
            prefix, mask = cache.prefix, cache.prefix_mask
        captions, pictures = input_ids.shape[0], prefix.shape[0]
        if captions % pictures:
            raise ValueError(f"{captions} captions cannot be shared out among {pictures} pictures evenly.")
        if mask is not None:
            mask = mask.repeat_interleave(captions // pictures, dim=0)
        self._check_positions(input_ids.shape[1], prefix.shape[1], cache)
        if cache is not None and cache.get_seq_length():
            return self._run(self.get_input_embeddings()(input_ids), mask, cache, **options)
        inputs = self._behind_prefix(input_ids, prefix, cache)
        return self._run(inputs, mask, cache, **options)

    def _behind_prefix(self, input_ids: torch.Tensor, prefix: torch.Tensor, cache: PrefixCache | None) -> torch.Tensor:
        """Embeddings of prefix and captions, without what goes into the cache once for all captions of a picture."""
        start = cast(int, self.config.decoder_start_token_id)
        if not torch.compiler.is_compiling() and bool(input_ids[:, 0].ne(start).any()):
            raise ValueError(f"captions must start with decoder_start_token_id={start}.")
        words = self.get_input_embeddings()(input_ids[:, 1:])  # the prefix's last token stands for the start token
        repeats = input_ids.shape[0] // prefix.shape[0]
        if cache is not None and repeats > 1 and prefix.shape[1] > 1:
            self._run(prefix[:, :-1], cache.prefix_mask, cache, logits_to_keep=1)
            cache.batch_repeat_interleave(repeats)
            prefix = prefix[:, -1:]
        return torch.cat((prefix.repeat_interleave(repeats, dim=0), words), dim=1)

    def _run(self, embeddings: torch.Tensor, mask: torch.Tensor | None, cache: Cache | None, **options: Any) -> Any:
        """GPT-2 on embeddings (R, L, d); the mask (R, C) of the prefix makes it skip padding, in positions too."""
        positions = None
        if mask is not None:
            seen = embeddings.shape[1] + (0 if cache is None else cache.get_seq_length())
            mask = nn.functional.pad(mask[:, :seen], (0, max(seen - mask.shape[1], 0)), value=1)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        return self.gpt(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )

    def _check_positions(self, words: int, prefix: int, cache: Cache | None) -> None:
        seen = 0 if cache is None else cache.get_seq_length()
        length = seen + words if seen else prefix + words - 1
        longest = self.gpt.config.n_positions
        if length > longest:
            raise ValueError(
                f"a caption of {length - prefix + 1} tokens behind {prefix} tokens of picture and anchors is longer "
                f"than GPT-2's n_positions={longest} allow."
            )


def _of_words(states: tuple | None, length: int) -> tuple | None:
    """The layers' outputs (N, T, d) where words are predicted, without those of the prefix."""
    return None if states is None else tuple(one[:, -length:] for one in states)


def _tag_loss(
    scores: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int
) -> torch.Tensor:
    """Binary cross-entropy (B, V), each picture counted as often as it has target words in `labels` (N, T)."""
    if scores.shape != targets.shape:
        raise ValueError(f"tag_targets must be {tuple(scores.shape)}, not {tuple(targets.shape)}.")
    losses = nn.functional.binary_cross_entropy_with_logits(
        at_least_float32(scores), targets.to(at_least_float32(scores).dtype), reduction="none"
    ).mean(dim=1)
    words = (labels != -100).sum(dim=1).view(scores.shape[0], -1).sum(dim=1)
    return (losses * words).sum() / num_items


def pooled_embedding(output: ModelOutput) -> torch.Tensor:
    """A vision backbone's image embedding (B, D).

    Args:
        output (`ModelOutput`): of the backbone.

    Returns:
        `torch.Tensor`

    Raises:
        ValueError: the backbone does not pool its output.
    """
    pooled = output.get("image_embeds", output.get("pooler_output"))
    if pooled is None:
        raise ValueError(
            f"the backbone gives {', '.join(output)}, but neither image_embeds nor pooler_output: CLIP-GPT2 needs one "
            "that pools its output."
        )
    return pooled.flatten(1)


def pooled_width(backbone: PreTrainedModel) -> int:
    """Width of a backbone's image embedding, seen on one black picture.

    Args:
        backbone (`PreTrainedModel`): a vision model.

    Returns:
        `int`

    Raises:
        ValueError: it does not pool its output.
    """
    size = backbone.config.to_dict().get("image_size", 224)  # a ResNet takes any
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(1, 3, height, width, dtype=backbone.dtype, device=backbone.device)
    training = backbone.training
    with torch.no_grad():
        pooled = pooled_embedding(backbone.eval()(pixel_values=pixels))
    backbone.train(training)
    return pooled.shape[-1]


def load_vision_tower(source: str | Path | PreTrainedModel, options: dict[str, Any]) -> PreTrainedModel:
    """The image tower of a folder or Hub name: of CLIP with its projection, of another text-image model the tower.

    Args:
        source (`str`, `Path` or `PreTrainedModel`): folder, Hub name, or the tower itself.
        options (`dict`): arguments of `from_pretrained`.

    Returns:
        `PreTrainedModel`

    Raises:
        ValueError: weights of the tower are missing, or the model is more than a tower.
    """
    if isinstance(source, PreTrainedModel):
        if "vision_config" in source.config.sub_configs:
            raise ValueError(f"a {type(source).__name__} is more than an image tower; give its folder or its tower.")
        return source
    config = AutoConfig.from_pretrained(source, **options)
    if "vision_config" in config.sub_configs:
        config = config.vision_config
    loader: Any = CLIPVisionModelWithProjection if config.model_type == "clip_vision_model" else AutoModel
    return _load_whole(loader, source, {**options, "config": config})


def _load_text(source: str | Path | GPT2LMHeadModel, options: dict[str, Any]) -> GPT2LMHeadModel:
    return source if isinstance(source, GPT2LMHeadModel) else _load_whole(GPT2LMHeadModel, source, options)


def _load_whole(loader: Any, source: str | Path, options: dict[str, Any]) -> Any:
    """A pretrained tower; weights that the checkpoint has not would be random ones, and are refused."""
    tower, report = loader.from_pretrained(source, output_loading_info=True, **options)
    if report["missing_keys"]:
        missing: Sequence[str] = sorted(report["missing_keys"])
        raise ValueError(f"{source}: {len(missing)} weights of a {type(tower).__name__} are missing, as {missing[0]}.")
    return tower


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Fields of the configuration; a tokenizer without padding or start token has its end token in their place."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end token (eos_token), and captions need one.")
    return {
        "pad_token_id": end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        "bos_token_id": end if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "eos_token_id": end,
        "unk_token_id": tokenizer.unk_token_id,
    }


def _vocabulary_size(tokenizer: PreTrainedTokenizerBase, pretrained: int, fresh: bool) -> int:
    size = len(tokenizer)
    if size != pretrained and not fresh:
        raise ValueError(
            f"the tokenizer has {size} tokens and GPT-2 embeddings for {pretrained}: give GPT-2's own tokenizer, or "
            "fresh_embeddings=True for a vocabulary of one's own."
        )
    return size
