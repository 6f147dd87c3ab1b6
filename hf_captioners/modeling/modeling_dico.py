"""The DiCO captioner (arXiv 2408.14547).

"Revisiting Image Captioning Training Paradigm via Direct CLIP-based Optimization", N. Moratelli, D. Caffagni, M.
Cornia, L. Baraldi and R. Cucchiara, BMVC 2024. This is the captioner alone; DiCO itself is a way to train one.

CLIP's vision tower gives a grid of tokens; a BERT encoder turns them into the memory; a GPT-2 with cross-attention
writes the caption. All three are transformers' own modules. Parameter names are those of the original's checkpoints,
except that the vision tower is `backbone` and the parts of the original's encoder stand beside each other.

Where this differs from the original:

1. Keys and values of the memory are projected once for a picture and shared by its captions, in training as in
   decoding.
2. BERT's word embedding and pooler, 15.9 million parameters that nothing reads, do not exist.
3. Padding is not learned: -100 and the padding token are no targets (`config.pad_in_loss` brings the original's loss
   back). The original also trains on a decoder input of start tokens only, by a mistake in a shape.
4. Padded image features are possible, and masked.
5. Captions are at most 30 tokens long by default, as in the original's scripts; its configuration says 20.

The original can write the padding token like a word; `generation_config.suppress_tokens = [config.pad_token_id]`
forbids it. That is off by default, as in the original.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from .beam_search_dico import dico_beam_search
from .captioner_base import CaptionerPreTrainedModel
from .captioner_layers import at_least_float32, grid_tokens
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from .configuration_dico import DicoConfig
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .processing_dico import DicoProcessor  # noqa: F401  travels with the model

LONGEST = 30  # tokens that the original's scripts let a caption have, start and end included


class DicoCache(EncoderDecoderCache):
    """Keys and values of the captions, a row per caption, and of the memory, a row per *picture*.

    Args:
        captions (`DynamicCache`): of the decoder's self-attention.
        memory (`DynamicCache`): of its cross-attention, complete; see `start_cache`.
    """

    def __init__(self, captions: DynamicCache, memory: DynamicCache) -> None:
        super().__init__(captions, memory)
        self.layers = captions.layers  # all that ever grows and is reordered
        self.pictures = memory.layers[0].keys.shape[0]  # type: ignore[union-attr]  # a DynamicLayer

    def reorder_cache(self, beam_idx: Any) -> None:
        """Let caption `i` continue caption `beam_idx[i]`, which must be of the same picture."""
        self.self_attention_cache.reorder_cache(beam_idx)

    def reset(self) -> None:
        """Forget the captions; the memory stays."""
        self.self_attention_cache.reset()


class PictureAttention(GPT2Attention):
    """GPT-2's cross-attention from R captions to B pictures, R a multiple of B, captions of a picture side by side."""

    def forward(
        self,
        hidden_states: Any,
        past_key_values: DicoCache | None = None,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Attend from `hidden_states` (R, T, d) to a memory (B, L, d) or, with a cache, to what is kept of it there."""
        memory = cast(torch.Tensor, encoder_hidden_states)
        pictures = memory.shape[0] if past_key_values is None else past_key_values.pictures
        # the captions of a picture are rows of one long query: (R, T, d) -> (B, R/B*T, d)
        output: Any
        output, weights = super().forward(
            hidden_states.reshape(pictures, -1, hidden_states.shape[-1]),
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            **kwargs,
        )
        return output.view(hidden_states.shape), weights


def caption_loss(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy of the words, summed and divided by `num_items`.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`): scores.
        labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
        smoothing (`float`): mass that is spread evenly over all tokens, in [0, 1).
        num_items (`int` or `torch.Tensor`, *optional*): what to divide by; the number of targets by default.

    Returns:
        `torch.Tensor` of shape `()`: in nats.
    """
    loss = nn.functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    return loss / ((labels != -100).sum() if num_items is None else num_items)


def make_encoder(config: DicoConfig) -> BertModel:
    """A BERT that reads embeddings: without word embedding and pooler."""
    attention: dict[str, Any] = {"attn_implementation": config._attn_implementation}
    settings = BertConfig(
        vocab_size=1,
        hidden_size=config.d_model,
        num_hidden_layers=config.encoder_layers,
        num_attention_heads=config.encoder_attention_heads,
        intermediate_size=config.encoder_ffn_dim,
        hidden_act=config.encoder_activation,
        hidden_dropout_prob=config.encoder_dropout,
        attention_probs_dropout_prob=config.encoder_attention_dropout,
        max_position_embeddings=config.max_image_tokens,
        layer_norm_eps=config.encoder_layer_norm_eps,
        initializer_range=config.initializer_range,
        use_cache=False,
        **attention,
    )
    encoder = BertModel(settings, add_pooling_layer=False)
    encoder.embeddings.word_embeddings = None
    return encoder


def make_decoder(config: DicoConfig) -> GPT2LMHeadModel:
    """A GPT-2 whose cross-attention reads a memory that captions share."""
    attention: dict[str, Any] = {"attn_implementation": config._attn_implementation}
    settings = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_position_embeddings,
        n_embd=config.d_model,
        n_layer=config.decoder_layers,
        n_head=config.decoder_attention_heads,
        n_inner=config.decoder_ffn_dim,
        activation_function=config.decoder_activation,
        resid_pdrop=config.decoder_dropout,
        embd_pdrop=config.decoder_input_dropout,
        attn_pdrop=config.decoder_attention_dropout,
        layer_norm_epsilon=config.decoder_layer_norm_eps,
        initializer_range=config.initializer_range,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        add_cross_attention=True,
        **attention,
    )
    decoder = GPT2LMHeadModel(settings)
    for index, block in enumerate(decoder.transformer.h):
        block.crossattention = PictureAttention(settings, is_cross_attention=True, layer_idx=index)
    decoder.init_weights()  # here, or the new ones miss GPT-2's smaller start of what goes onto the residual stream
    return decoder


class DicoPreTrainedModel(CaptionerPreTrainedModel):
    """Initialisation and capabilities of the DiCO captioner."""

    config: DicoConfig
    _no_split_modules = ["GPT2Block", "BertLayer", "CLIPEncoderLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's default for the projection; the three parts initialise themselves."""
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)


class DicoForImageCaptioning(DicoPreTrainedModel, GenerationMixin):
    """DiCO's captioner: a picture, or its cached tokens, to a caption.

    Cached tokens are the last layer's of CLIP's vision tower, with the class token and before the last layer norm:
    what `extract_image_features` and `hf-captioners features` give.

    Args:
        config ([`DicoConfig`]): sizes and rates.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import DicoConfig, DicoForImageCaptioning
    >>> config = DicoConfig(
    ...     vocab_size=50, d_model=32, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
    ...     decoder_ffn_dim=64, max_image_tokens=20, max_position_embeddings=16, features_only=True, feature_size=24,
    ... )
    >>> model = DicoForImageCaptioning(config).eval()
    >>> ids = model.generate(image_features=torch.randn(2, 9, 24), num_beams=3, max_length=10)
    >>> ids.shape[0], bool((ids[:, 0] == 47).all())
    (2, True)

    ```
    """

    beam_rules = {"dico": dico_beam_search, "standard": None}
    # Attention projections of encoder and decoder: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = (
        r"encoder\.encoder\.layer\.\d+\.attention\.self\.(query|value)"
        r"|decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(c_attn|q_attn)"
    )

    def __init__(self, config: DicoConfig) -> None:
        super().__init__(config)
        self.backbone: PreTrainedModel | None = None
        if not config.features_only:
            self.backbone = AutoModel.from_config(config.vision_config)
        self.vis_enc_to_enc_proj: nn.Linear | None = None
        if config.feature_size != config.d_model:
            self.vis_enc_to_enc_proj = nn.Linear(cast(int, config.feature_size), config.d_model)
        self.encoder: Any = make_encoder(config)
        self.decoder: Any = make_decoder(config)
        self.post_init()
        # the original's decoding; a checkpoint's generation_config.json replaces it
        self.generation_config = GenerationConfig(
            num_beams=5,
            beam_rule="dico",
            max_length=min(LONGEST, config.max_position_embeddings),
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )

    @classmethod
    def from_backbone(
        cls, backbone: str | Path | PreTrainedModel, config: DicoConfig, **kwargs: Any
    ) -> "DicoForImageCaptioning":
        """A captioner with a pretrained backbone, in the type it was saved in, and a fresh body in float32.

        Args:
            backbone (`str`, `Path` or `PreTrainedModel`): folder or Hub name of a CLIP, of its vision tower, or of any
                transformers vision model; or the tower.
            config ([`DicoConfig`]): its sizes; `vision_config` and `feature_size` are taken from the backbone.
            kwargs: passed to `from_pretrained`, as `revision`.

        Returns:
            [`DicoForImageCaptioning`]

        Raises:
            ValueError: a checkpoint that lacks weights of the tower; a model that is more than a tower.
        """
        tower = load_vision_tower(backbone, kwargs)
        settings = config.to_dict()
        settings.update(features_only=False, vision_config=tower.config, feature_size=_feature_size(tower))
        model = cls(DicoConfig(**settings))
        cast(PreTrainedModel, model.backbone).load_state_dict(tower.state_dict())
        return model

    def freeze_backbone(self, trainable: str = "none") -> int:
        """As in every captioner. The layer norm behind CLIP's last layer never learns: nothing here reads it."""
        count = super().freeze_backbone(trainable)
        if self.backbone is None or self.backbone.config.model_type != "clip_vision_model":
            return count
        self.backbone.get_submodule("post_layernorm").requires_grad_(False)
        return sum(one.numel() for one in self.backbone.parameters() if one.requires_grad)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: Any) -> None:
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.decoder.set_output_embeddings(new_embeddings)

    def encode_images(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> CaptionerEncoderOutput:
        """Encode pictures once, for any number of captions.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`, *optional*): preprocessed pictures.
            image_features (`torch.Tensor` of shape `(B, L, feature_size)`, *optional*): cached tokens, instead.
            image_attention_mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for real feature rows, 0 for padding.
            output_hidden_states (`bool`, defaults to `False`): also return every layer's output.

        Returns:
            [`CaptionerEncoderOutput`]

        Raises:
            ValueError: not exactly one of `pixel_values` and `image_features`; a wrong width; a picture without
                tokens, or with more than the encoder has positions for.
        """
        self.check_entrance(pixel_values, image_features, image_attention_mask, self.config.feature_size)
        features = cast(torch.Tensor, image_features)
        if pixel_values is not None:
            features = self.extract_image_features(pixel_values)
        mask = image_attention_mask
        if mask is not None and bool(mask.all()):
            mask = None
        output = self.encoder(
            inputs_embeds=self._encoder_input(features, mask),
            attention_mask=mask,
            output_hidden_states=output_hidden_states,
        )
        return CaptionerEncoderOutput(
            last_hidden_state=output.last_hidden_state,
            image_attention_mask=mask,
            image_features=features,
            hidden_states=output.hidden_states,
        )

    def _encoder_input(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Features (B, L, feature_size) in the encoder's width (B, L, d)."""
        if features.shape[1] > self.config.max_image_tokens:
            raise ValueError(
                f"a picture of {features.shape[1]} tokens is more than the encoder's "
                f"max_image_tokens={self.config.max_image_tokens}; make smaller pictures or larger patches."
            )
        hidden = features.to(self.decoder.dtype)
        if mask is not None:
            hidden = hidden.masked_fill(mask[..., None] == 0, 0.0)  # NaN there would reach the gradients
        return hidden if self.vis_enc_to_enc_proj is None else self.vis_enc_to_enc_proj(hidden)

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> Cache:
        """The decoder's state before the first token; holds the memory's keys and values, a row per picture."""
        settings, memory = self.decoder.config, encoder_outputs.last_hidden_state
        kept = DynamicCache(config=settings)
        for index, block in enumerate(self.decoder.transformer.h):
            attention = block.crossattention
            both = attention.c_attn(memory).unflatten(-1, (2, attention.num_heads, attention.head_dim))
            keys, values = both.permute(2, 0, 3, 1, 4)  # (B, L, 2, H, head) -> 2 x (B, H, L, head)
            kept.update(keys, values, index)
        return DicoCache(DynamicCache(config=settings), kept)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Write captions; see [`CaptionerPreTrainedModel.generate`]."""
        if self._caches_nothing():
            kwargs["use_cache"] = False
        return super().generate(*args, **kwargs)

    def _caches_nothing(self) -> bool:
        """Whether GPT-2 would leave a cache empty: activation checkpointing while training."""
        return self.training and self.decoder.is_gradient_checkpointing

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
        smoothing: float | None = None,
        pad_in_loss: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CaptionerOutput | tuple:
        """Score captions.

        Args:
            pixel_values, image_features, image_attention_mask: see `encode_images`.
            decoder_input_ids (`torch.LongTensor` of shape `(N, T)`, *optional*):
                The caption so far, start token first. Made from `labels` by default. N is a multiple of the number of
                pictures; captions of one picture stand side by side.
            encoder_outputs ([`CaptionerEncoderOutput`], *optional*): what `encode_images` gave, instead of pictures.
            past_key_values (`Cache`, *optional*): the state after the tokens before `decoder_input_ids`.
            labels (`torch.LongTensor` of shape `(N, T)`, *optional*):
                Words and end token, then -100 or the padding token.
            use_cache (`bool`, defaults to `False`): return `past_key_values`.
            output_hidden_states (`bool`, defaults to `False`): return every layer's output.
            smoothing (`float`, *optional*, defaults to `config.label_smoothing`): see `caption_loss`.
            pad_in_loss (`bool`, *optional*, defaults to `config.pad_in_loss`):
                Whether padding is a target like a word, at all places of `labels`.
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): what the loss is divided by, instead of this
                batch's number of targets. A trainer counts the labels that are not -100.
            logits_to_keep (`int`, defaults to 0): only the logits of the last positions; 0 for all.
            return_dict (`bool`, defaults to `True`): a [`CaptionerOutput`] instead of a tuple.

        Returns:
            [`CaptionerOutput`] or `tuple`

        Raises:
            ValueError: see `encode_images`; no `decoder_input_ids` and no `labels`; a caption longer than the position
                table; captions that cannot be shared out among the pictures; a cache that is not from `start_cache`.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encode_images(
                pixel_values, image_features, image_attention_mask, output_hidden_states=output_hidden_states
            )
        if decoder_input_ids is None:
            decoder_input_ids = self.shift_labels(labels)
        if use_cache and past_key_values is None and not self._caches_nothing():
            past_key_values = self.start_cache(encoder_outputs)
        output = self._decode(
            decoder_input_ids,
            encoder_outputs,
            past_key_values,
            logits_to_keep=logits_to_keep,
            output_hidden_states=output_hidden_states,
        )
        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if smoothing is None else smoothing
            targets = self._targets(labels, self.config.pad_in_loss if pad_in_loss is None else pad_in_loss)
            loss = caption_loss(output.logits, targets, smoothing, num_items_in_batch)
        result = CaptionerOutput(
            loss=loss,
            logits=output.logits,
            past_key_values=past_key_values,
            decoder_hidden_states=output.hidden_states,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )
        return result if return_dict else result.to_tuple()

    def _targets(self, labels: torch.Tensor, pad_in_loss: bool) -> torch.Tensor:
        pad = cast(int, self.config.pad_token_id)
        return labels.masked_fill(labels == -100, pad) if pad_in_loss else labels.masked_fill(labels == pad, -100)

    def _decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Cache | None, **options: Any
    ) -> Any:
        """GPT-2's output for captions (N, T) of B pictures."""
        if cache is not None and not isinstance(cache, DicoCache):
            raise ValueError(f"past_key_values must come from start_cache, not be a {type(cache).__name__}.")
        memory = encoder_outputs.last_hidden_state
        pictures = memory.shape[0] if cache is None else cache.pictures
        if input_ids.shape[0] % pictures:
            raise ValueError(f"{input_ids.shape[0]} captions cannot be shared out among {pictures} pictures evenly.")
        stop = input_ids.shape[1] + (0 if cache is None else cache.get_seq_length())
        longest = self.config.max_position_embeddings
        if stop > longest:
            raise ValueError(f"a caption of {stop} tokens is longer than max_position_embeddings={longest}.")
        repeats = memory.shape[0] // pictures  # generate repeats memory and mask for every caption of a picture
        return self.decoder(
            inputs_embeds=self.get_input_embeddings()(input_ids),
            encoder_hidden_states=memory[::repeats],
            encoder_attention_mask=self._memory_mask(encoder_outputs.image_attention_mask, memory, repeats),
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )

    def _memory_mask(self, mask: torch.Tensor | None, memory: torch.Tensor, repeats: int) -> Any:
        """The mask (B, 1, 1, L) of a memory with padding, as the attention in use wants it."""
        if mask is None:
            return None
        memory = memory[::repeats]
        return create_bidirectional_mask(
            config=self.decoder.config,
            inputs_embeds=memory[:, :1],
            attention_mask=mask[::repeats],
            encoder_hidden_states=memory,
        )


def load_vision_tower(source: str | Path | PreTrainedModel, options: dict[str, Any]) -> PreTrainedModel:
    """The image tower of a folder or Hub name, without what a CLIP has behind its tokens.

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
    loader: Any = AutoModel
    tower, report = loader.from_pretrained(source, output_loading_info=True, **{**options, "config": config})
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{source}: {len(missing)} weights of a {type(tower).__name__} are missing, as {missing[0]}.")
    return tower


def _feature_size(backbone: PreTrainedModel) -> int:
    """Width of a backbone's tokens, seen on one black picture."""
    size = backbone.config.to_dict().get("image_size", 224)  # a ResNet takes any
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.zeros(1, 3, height, width, dtype=backbone.dtype, device=backbone.device)
    training = backbone.training
    with torch.no_grad():
        tokens = grid_tokens(backbone.eval()(pixels).last_hidden_state)
    backbone.train(training)
    return tokens.shape[-1]
