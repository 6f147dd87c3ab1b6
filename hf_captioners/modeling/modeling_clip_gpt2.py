"""CLIP-GPT2, the low-cost captioner: an image embedding becomes a token (or more) in front of GPT-2's words.

There is no paper; the description is a public project's. ClipCap (arXiv 2111.09734) is the same idea with more image
tokens, and its checkpoints load here. The towers are transformers' own: `CLIPVisionModelWithProjection` (or any vision
backbone that pools its output) and `GPT2LMHeadModel`. Parameter names are those of ClipCap's checkpoints, with the
image tower under `backbone.`.

GPT-2 reads `[image tokens] [anchors, separator] [words]`. The hidden state of the last token before the words predicts
the first word; the last word predicts the end token. Captions are written down as for every captioner here, with a
start token in front: GPT-2 never sees it, the last token before the words stands in its place. So N captions of T
tokens have N x T scores, and `generate` is transformers' own, with GPT-2's own cache behind it.

Loading in 8 or 4 bits works as for any model of transformers, with `quantization_config=BitsAndBytesConfig(…)`; nothing
here depends on the type of a linear layer's weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import CLIPImageProcessorPil, DynamicCache, GenerationMixin, GPT2Config, GPT2LMHeadModel
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .captioner_autoregressive import AutoregressiveCaptioner, DecodeOptions, Decoding
from .captioner_backbone import PooledBackbone, load_whole
from .captioner_cache import CaptionerCache
from .captioner_layers import at_least_float32, eager_attention, padding_mask, values_are_known
from .captioner_new import (
    WORDS,
    feature_width,
    new_image_processor,
    new_tokenizer,
    suppress_unknown,
)
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from .configuration_clip_gpt2 import ClipGpt2Config
from .decoding_clip_gpt2 import ClipCapBeams
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .prefix_mapper_clip_gpt2 import MAPPERS, TransformerMapper
from .processing_clip_gpt2 import ClipGpt2Processor
from .tags_clip_gpt2 import build_tags
from .tokenization_words import WordRule

DEFAULT_WORDS = 20  # of a caption, the number that the project trained and generated with
NO_ANCHOR = -100  # padding of `anchor_ids`


@dataclass
class ClipGpt2EncoderOutput(CaptionerEncoderOutput):
    """Input of GPT-2 before the words, and scores of the tag predictor.

    Args:
        last_hidden_state, image_attention_mask, image_features, hidden_states: see [`CaptionerEncoderOutput`].
        tag_scores (`torch.Tensor` of shape `(B, len(config.tag_token_ids))`, *optional*): before the sigmoid.
    """

    tag_scores: torch.Tensor | None = None


class PrefixCache(CaptionerCache, DynamicCache):
    """GPT-2's keys and values, and the number of pictures in front of the captions.

    Args:
        config (`GPT2Config`): of GPT-2.
        images (`int`): rows of what stands before the words.
    """

    def __init__(self, config: Any, images: int) -> None:
        super().__init__(config=config)
        self._images = images

    @property
    def images(self) -> int:
        """Rows of what stands before the words."""
        return self._images


def left_aligned_padding(hidden: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Move padding to the left, in front of the real tokens, and cut off what all rows have of it.

    Args:
        hidden (`torch.Tensor` of shape `(B, L, d)`): tokens.
        mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for real tokens, at least one in every row.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: tokens `(B, C, d)` and their mask `(B, C)`, `None` without padding.
    """
    mask = padding_mask(mask)
    if mask is None:
        return hidden, None
    mask = mask.long()
    # places (B, L): padding first, real tokens in their order; a stable sort, which ONNX cannot have
    behind = (1 - mask).sum(dim=1, keepdim=True) + mask.cumsum(dim=1)
    places = torch.where(mask == 1, behind, (1 - mask).cumsum(dim=1)) - 1
    order = torch.zeros_like(places).scatter(1, places, torch.arange(mask.shape[1], device=mask.device).expand_as(mask))
    if values_are_known(mask):
        order = order[:, -int(mask.sum(1).max()) :]  # (B, C)
    mask = mask.gather(1, order)  # (B, C)
    hidden = hidden.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))  # (B, C, d)
    return hidden, padding_mask(mask)


class ClipGpt2ForImageCaptioning(AutoregressiveCaptioner, GenerationMixin):
    """CLIP-GPT2: a picture, its cached embedding or its region features, to a caption.

    A caption ends with the end token. To end it with a full stop as well, as ClipCap does, add that token:
    `model.generation_config.eos_token_id = [50256, 13]`, or `eos_token_id=[50256, 13]` in a call of `generate`.

    Adapters leave the mapper as it is unless they are told otherwise, and a fresh one has to learn:
    `LoraConfig(target_modules=model.LORA_TARGET_MODULES, modules_to_save=["clip_project"])`.

    The loss takes `tag_targets` (`torch.Tensor` of shape `(B, V)`, *optional*) beside `smoothing`: 1 for the tag
    predictor's words that occur in any caption of the picture. It gets the predictor's binary cross-entropy, averaged
    over the words of its vocabulary and, over the pictures, weighted by the number of their targets: so parts of a
    batch add up to the whole. Not used without a predictor.

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

    _no_split_modules = ["GPT2Block", "CLIPEncoderLayer", "MapperLayer"]
    processor_class = ClipGpt2Processor
    decodings = {"paper": Decoding(beams=ClipCapBeams), "standard": Decoding()}
    image_inputs = (*AutoregressiveCaptioner.image_inputs, "anchor_ids")
    loss_inputs = (*AutoregressiveCaptioner.loss_inputs, "tag_targets")
    backbone_reader = PooledBackbone
    input_embeddings, output_embeddings = "gpt.transformer.wte", "gpt.lm_head"
    # GPT-2's attention projections: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = r"gpt\.transformer\.h\.\d+\.attn\.(c_attn|c_proj)"
    config: ClipGpt2Config

    def __init__(self, config: ClipGpt2Config) -> None:
        super().__init__(config)
        self.backbone = self.new_backbone()
        self.clip_project: Any = MAPPERS[config.mapping_type](config)
        self.gpt: Any = GPT2LMHeadModel(cast(Any, config.text_config))
        self.tag_head: nn.Linear | None = None
        if config.tag_token_ids:
            self.tag_head = nn.Linear(cast(int, config.feature_size), len(config.tag_token_ids))
        self.post_init()

    def default_decoding(self) -> dict[str, Any]:
        """The project's number of words, and transformers' beam search."""
        return {
            "num_beams": 5,
            "decoding": "standard",
            "max_length": min(DEFAULT_WORDS + 2, cast(int, self.config.max_position_embeddings)),
        }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's defaults for mapper and tag predictor; the towers initialise themselves."""
        super()._init_weights(module)
        if isinstance(module, TransformerMapper):
            init.normal_(module.prefix_const)

    @classmethod
    def new(
        cls,
        captions: Any,
        backbone: Any = None,
        features: Any = None,
        *,
        gpt2: str | Path | None = None,
        tokenizer: Any = None,
        min_count: int = 5,
        word_rule: WordRule | None = None,
        word_order: str = "code_point",
        num_tags: int = 0,
        image_processor: Any = None,
        text_config: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        **config: Any,
    ) -> tuple[Any, ClipGpt2Processor]:
        """As for every captioner, from an image tower and a GPT-2.

        Args:
            captions, backbone, features, min_count, word_rule, word_order, image_processor, trust_remote_code, config:
                see [`CaptionerPreTrainedModel.new`]; the backbone pools its output.
            gpt2 (`str` or `Path`, *optional*): pretrained GPT-2, folder or Hub name; by default a fresh one.
            tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*): `"words"` of the captions or another; by
                default GPT-2's own, and words for a fresh GPT-2.
            num_tags (`int`, defaults to 0): words of the tag predictor; 0 for none.
            text_config (`dict`, *optional*): fields of a fresh GPT-2's configuration.

        Returns:
            `tuple[ClipGpt2ForImageCaptioning, ClipGpt2Processor]`

        Raises:
            ValueError: see there; `text_config` beside a pretrained GPT-2.
        """
        cls._check_config({**config, **({"text_config": text_config} if text_config else {})}, trust_remote_code)
        if gpt2 is not None and text_config is not None:
            raise ValueError(f"{cls.__name__}.new: text_config is of a fresh GPT-2; gpt2={str(gpt2)!r} has its own.")
        width = feature_width(features)
        if backbone is None and width is None:
            raise ValueError(f"{cls.__name__}.new: give backbone or features.")
        captions, tokenizer = list(captions), tokenizer or gpt2 or WORDS
        fresh = GPT2Config(**(text_config or {}))
        longest = fresh.n_positions
        words = new_tokenizer(captions, tokenizer, min_count, longest, trust_remote_code, word_rule, word_order)
        preprocessor = new_image_processor(image_processor, backbone, trust_remote_code, CLIPImageProcessorPil)
        processor = ClipGpt2Processor(preprocessor, words, tags=build_tags(captions, num_tags) if num_tags else None)
        if num_tags:
            config["tag_token_ids"] = processor.tag_token_ids()
        if backbone is None:
            config["feature_size"] = width
        fresh.vocab_size = len(words)
        model = cls.from_encoder_decoder_pretrained(
            None if backbone is None else cls._tower(backbone, config.pop("vision_config", {}), trust_remote_code),
            GPT2LMHeadModel(fresh) if gpt2 is None else gpt2,
            words,
            fresh_embeddings=gpt2 is None or tokenizer == WORDS,
            **config,
        )
        cls._check_width(model.config, width)
        suppress_unknown(model, words)
        return model, processor

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
            vision = PooledBackbone.load(encoder_pretrained_model_name_or_path, **(encoder_kwargs or {}))
            kwargs = {**kwargs, "vision_config": vision.config, "feature_size": PooledBackbone.width(vision)}
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

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        *args: Any,
        **inputs: Any,
    ) -> CaptionerEncoderOutput:
        """Input of GPT-2 before the words, for any number of captions; see `CaptionerPreTrainedModel.encode_images`.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`, *optional*): preprocessed pictures.
            image_features (`torch.Tensor` of shape `(B, D)`, `(B, 1, D)` or `(B, N, D)`, *optional*): instead, cached
                embeddings, or features of N regions. Each becomes `prefix_length` tokens.
            args, inputs: as there, and `anchor_ids`; see `encode`.
        """
        if image_features is not None and image_features.ndim == 2:
            image_features = image_features[:, None]  # (B, 1, D)
        return super().encode_images(pixel_values, image_features, *args, **inputs)

    def encode(
        self, features: torch.Tensor, mask: torch.Tensor | None, anchor_ids: torch.Tensor | None = None, **inputs: Any
    ) -> ClipGpt2EncoderOutput:
        """Image tokens, and behind them anchors.

        Args:
            features (`torch.Tensor` of shape `(B, N, D)`): embeddings, or features of N regions.
            mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 for real regions, 0 for padding.
            anchor_ids (`torch.LongTensor` of shape `(R, L)`, *optional*): tokens of the anchors, -100 for padding; R is
                a multiple of B, rows of one picture side by side. A row without tokens has no anchors. By default the
                tag predictor's, if the model has one.

        Returns:
            [`ClipGpt2EncoderOutput`]: R rows (B without `anchor_ids`), padding on the left; the image tokens alone in
            `hidden_states`.

        Raises:
            ValueError: rows of anchors that cannot be shared out among the pictures.
        """
        tag_scores = None if self.tag_head is None else self.predict_tags(features, mask)
        if mask is not None:
            features = features.masked_fill(mask[..., None] == 0, 0.0)  # NaN there would reach the gradients
            mask = mask.long().repeat_interleave(self.config.prefix_length, dim=1)  # (B, N * P)
        prefix = tokens = self.clip_project(self._as_mapped(features)).flatten(1, 2).to(self.gpt.dtype)  # (B, N * P, d)
        if anchor_ids is None and tag_scores is not None:
            anchor_ids = self._predicted_anchors(tag_scores)
        if anchor_ids is not None:
            prefix, mask = self._with_anchors(prefix, mask, anchor_ids)
        prefix, mask = left_aligned_padding(prefix, mask)
        return ClipGpt2EncoderOutput(
            last_hidden_state=prefix, image_attention_mask=mask, hidden_states=(tokens,), tag_scores=tag_scores
        )

    def _as_mapped(self, features: Any) -> torch.Tensor:
        """Features in the form that mapper and tag predictor read."""
        if self.config.normalize_prefix:
            features = nn.functional.normalize(at_least_float32(features), dim=-1)
        return features.to(self.gpt.dtype)

    def _with_anchors(
        self, prefix: torch.Tensor, mask: torch.Tensor | None, anchor_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Anchors and separator behind the image tokens: (R, N * P + L + 1, d) and the mask."""
        images, rows = prefix.shape[0], anchor_ids.shape[0]
        if rows % images:
            raise ValueError(f"{rows} rows of anchor_ids cannot be shared out among {images} pictures evenly.")
        mask = prefix.new_ones(prefix.shape[:2], dtype=torch.long) if mask is None else mask
        real = anchor_ids >= 0  # (R, L)
        separator = anchor_ids.new_full((rows, 1), cast(int, self.config.separator_token_id))
        ids = torch.cat((anchor_ids.clamp(min=0), separator), dim=1)  # (R, L + 1)
        real = torch.cat((real, real.any(dim=1, keepdim=True)), dim=1).long()  # (R, L + 1)
        embedded = self.get_input_embeddings()(ids)  # (R, L + 1, d)
        prefix = prefix.repeat_interleave(rows // images, dim=0)  # (R, N * P, d)
        mask = mask.repeat_interleave(rows // images, dim=0)  # (R, N * P)
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
        real = image_attention_mask[..., None].to(features.dtype)  # (B, N, 1)
        return self.tag_head(features.masked_fill(real == 0, 0.0).sum(dim=1) / real.sum(dim=1))

    @torch.no_grad()
    def _predicted_anchors(self, tag_scores: torch.Tensor) -> torch.Tensor:
        """`anchor_ids` (B, L) of the most probable words, best first."""
        tags = cast(list, self.config.tag_token_ids)
        scores, best = tag_scores.sigmoid().topk(min(self.config.max_anchors, len(tags)))  # (B, A)
        table = nn.utils.rnn.pad_sequence([torch.tensor(tag) for tag in tags], True, NO_ANCHOR).to(best.device)
        anchors = table[best].masked_fill((scores <= self.config.anchor_threshold)[..., None], NO_ANCHOR)  # (B, A, l)
        return anchors.flatten(1)  # padding between words does no harm: it is moved to the left with the rest

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> CaptionerCache | None:
        """An empty cache that knows how many pictures there are."""
        if self.training and self.gpt.is_gradient_checkpointing:  # GPT-2 would leave it empty
            return None
        return PrefixCache(self.config.text_config, encoder_outputs.last_hidden_state.shape[0])

    def decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Any, options: DecodeOptions
    ) -> CaptionerOutput:
        """GPT-2 behind the prefix (B, C, d)."""
        prefix, mask = encoder_outputs.last_hidden_state, encoder_outputs.image_attention_mask
        if mask is not None:
            mask = mask.repeat_interleave(input_ids.shape[0] // prefix.shape[0], dim=0)  # (N, C)
        if cache is not None and cache.get_seq_length():
            inputs = self.get_input_embeddings()(input_ids)
        else:
            inputs = self._behind_prefix(input_ids, encoder_outputs, cache)
        length = input_ids.shape[1]
        with eager_attention(self.gpt, options.output_attentions):
            output = self._run(
                inputs,
                mask,
                cache,
                logits_to_keep=options.logits_to_keep or length,
                output_hidden_states=options.output_hidden_states,
                output_attentions=options.output_attentions,
            )
        states, weights = output.hidden_states, output.attentions  # without those of the prefix:
        states = None if states is None else tuple(state[:, -length:] for state in states)  # (N, T, d)
        weights = None if weights is None else tuple(layer[:, :, -length:] for layer in weights)  # (N, H, T, C + T - 1)
        return CaptionerOutput(logits=output.logits, decoder_hidden_states=states, decoder_attentions=weights)

    def _behind_prefix(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Any
    ) -> torch.Tensor:
        """Embeddings of prefix and captions, without what goes into the cache once for all captions of a picture."""
        start, prefix = cast(int, self.config.decoder_start_token_id), encoder_outputs.last_hidden_state
        if values_are_known(input_ids) and bool(input_ids[:, 0].ne(start).any()):
            raise ValueError(f"captions must start with decoder_start_token_id={start}.")
        # the prefix's last token stands for the start token
        words = self.get_input_embeddings()(input_ids[:, 1:])  # (N, T - 1, d)
        repeats = input_ids.shape[0] // prefix.shape[0]
        if cache is not None and repeats > 1 and prefix.shape[1] > 1:
            self._run(prefix[:, :-1], encoder_outputs.image_attention_mask, cache, logits_to_keep=1)
            cache.batch_repeat_interleave(repeats)
            prefix = prefix[:, -1:]  # (B, 1, d)
        return torch.cat((prefix.repeat_interleave(repeats, dim=0), words), dim=1)  # (N, C + T - 1, d)

    def _run(
        self, embeddings: torch.Tensor, mask: torch.Tensor | None, cache: CaptionerCache | None, **options: Any
    ) -> Any:
        """GPT-2 on embeddings (R, L, d); the mask (R, C) of the prefix makes it skip padding, in positions too."""
        positions = None
        if mask is not None:
            length = embeddings.shape[1] + (0 if cache is None else cache.get_seq_length())
            mask = nn.functional.pad(mask[:, :length], (0, max(length - mask.shape[1], 0)), value=1)  # (R, length)
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]  # (R, L)
        return self.gpt(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )

    def _check_length(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: CaptionerCache | None
    ) -> None:
        """GPT-2's positions count; the start token takes none, what stands before the words does."""
        words, prefix = input_ids.shape[1], encoder_outputs.last_hidden_state.shape[1]
        cached = 0 if cache is None else cache.get_seq_length()
        length = cached + words if cached else prefix + words - 1
        longest = cast(GPT2Config, self.config.text_config).n_positions
        if length > longest:
            raise ValueError(
                f"a caption of {length - prefix + 1} tokens behind {prefix} tokens of picture and anchors is longer "
                f"than GPT-2's n_positions={longest} allow."
            )

    def caption_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None,
        encoder_outputs: ClipGpt2EncoderOutput,
        tag_targets: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Cross-entropy of the words, and of the tag predictor's words."""
        items = (labels != -100).sum() if num_items is None else num_items
        loss = super().caption_loss(logits, labels, items, encoder_outputs, **options)
        if tag_targets is None or encoder_outputs.tag_scores is None:
            return loss
        return loss + self.config.tag_loss_weight * _tag_loss(encoder_outputs.tag_scores, tag_targets, labels, items)


def _tag_loss(
    scores: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int
) -> torch.Tensor:
    """Binary cross-entropy (B, V), each picture counted as often as it has target words in `labels` (N, T)."""
    if scores.shape != targets.shape:
        raise ValueError(f"tag_targets must be {tuple(scores.shape)}, not {tuple(targets.shape)}.")
    losses = nn.functional.binary_cross_entropy_with_logits(
        at_least_float32(scores), targets.to(at_least_float32(scores).dtype), reduction="none"
    ).mean(dim=1)  # (B,)
    words = (labels != -100).sum(dim=1).view(scores.shape[0], -1).sum(dim=1)  # (B,)
    return (losses * words).sum() / num_items


def _load_text(source: str | Path | GPT2LMHeadModel, options: dict[str, Any]) -> GPT2LMHeadModel:
    return source if isinstance(source, GPT2LMHeadModel) else load_whole(GPT2LMHeadModel, source, **options)


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
