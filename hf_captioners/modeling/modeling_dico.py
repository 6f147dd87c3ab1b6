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
5. Captions are at most 30 tokens long by default, as in the original's scripts; its configuration has 20.

The original can write the padding token like a word; `generation_config.suppress_tokens = [config.pad_token_id]`
forbids it. That is off by default, as in the original.
"""

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPImageProcessorPil,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from .captioner_autoregressive import AutoregressiveCaptioner, DecodeOptions, Decoding
from .captioner_cache import CaptionerCache
from .captioner_layers import eager_attention, padding_mask, weights_of_captions
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from .configuration_dico import DicoCaptionerConfig
from .decoding_dico import DicoBeams
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .processing_dico import DicoProcessor

LONGEST = 30  # tokens that the original's scripts let a caption have, start and end included


class DicoCache(CaptionerCache, EncoderDecoderCache):
    """Keys and values of the captions, a row per caption, and of the memory, a row per *picture*.

    Args:
        captions (`DynamicCache`): of the decoder's self-attention.
        memory (`DynamicCache`): of its cross-attention, complete; see `start_cache`.
    """

    def __init__(self, captions: DynamicCache, memory: DynamicCache) -> None:
        super().__init__(captions, memory)
        self.layers = captions.layers  # all that ever grows and is reordered

    @property
    def images(self) -> int:
        """Number of pictures B."""
        layer: Any = self.cross_attention_cache.layers[0]
        return layer.keys.shape[0]

    def reorder_cache(self, beam_idx: Any) -> None:
        """Let caption `i` continue caption `beam_idx[i]`, which must be of the same picture."""
        self.self_attention_cache.reorder_cache(beam_idx)

    def reset(self) -> None:
        """Forget the captions; the memory stays."""
        self.self_attention_cache.reset()


class ImageAttention(GPT2Attention):
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
        images = memory.shape[0] if past_key_values is None else past_key_values.images
        # the captions of a picture are rows of one long query: (R, T, d) -> (B, R/B*T, d)
        output: Any
        weights: Any
        output, weights = super().forward(
            hidden_states.reshape(images, -1, hidden_states.shape[-1]),
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            **kwargs,
        )
        if weights is not None:
            weights = weights_of_captions(weights, len(hidden_states))  # (R, H, T, L)
        return output.view(hidden_states.shape), weights  # (R, T, d)


def make_encoder(config: DicoCaptionerConfig) -> BertModel:
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


def make_decoder(config: DicoCaptionerConfig) -> GPT2LMHeadModel:
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
        block.crossattention = ImageAttention(settings, is_cross_attention=True, layer_idx=index)
    decoder.init_weights()  # here, or the new ones miss GPT-2's smaller start of what goes onto the residual stream
    return decoder


class DicoForImageCaptioning(AutoregressiveCaptioner, GenerationMixin):
    """DiCO's captioner: a picture, or its cached tokens, to a caption.

    Cached tokens are the last layer's of CLIP's vision tower, with the class token and before the last layer norm:
    what `extract_image_features` and `hf-captioners features` give.

    The loss takes `pad_in_loss` (`bool`, *optional*, defaults to `config.pad_in_loss`) beside `smoothing`: whether
    padding is a target like a word, at all places of `labels`, which may be padded with -100 or the padding token.

    Args:
        config ([`DicoCaptionerConfig`]): sizes and rates.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import DicoCaptionerConfig, DicoForImageCaptioning
    >>> config = DicoCaptionerConfig(
    ...     vocab_size=50, d_model=32, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
    ...     decoder_ffn_dim=64, max_image_tokens=20, max_position_embeddings=16, features_only=True, feature_size=24,
    ... )
    >>> model = DicoForImageCaptioning(config).eval()
    >>> ids = model.generate(image_features=torch.randn(2, 9, 24), num_beams=3, max_length=10)
    >>> ids.shape[0], bool((ids[:, 0] == 47).all())
    (2, True)

    ```
    """

    _no_split_modules = ["GPT2Block", "BertLayer", "CLIPEncoderLayer"]
    processor_class = DicoProcessor
    decodings = {"paper": Decoding(beams=DicoBeams), "standard": Decoding()}
    loss_inputs = (*AutoregressiveCaptioner.loss_inputs, "pad_in_loss")
    input_embeddings, output_embeddings = "decoder.transformer.wte", "decoder.lm_head"
    # Attention projections of encoder and decoder: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = (
        r"encoder\.encoder\.layer\.\d+\.attention\.self\.(query|value)"
        r"|decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(c_attn|q_attn)"
    )
    config: DicoCaptionerConfig

    def __init__(self, config: DicoCaptionerConfig) -> None:
        super().__init__(config)
        self.backbone = self.new_backbone()
        self.vis_enc_to_enc_proj: nn.Linear | None = None
        if config.feature_size != config.d_model:
            self.vis_enc_to_enc_proj = nn.Linear(cast(int, config.feature_size), config.d_model)
        self.encoder: Any = make_encoder(config)
        self.decoder: Any = make_decoder(config)
        self.post_init()

    @classmethod
    def new(
        cls, captions: Any, backbone: Any = None, features: Any = None, *, tokenizer: Any = None, **options: Any
    ) -> tuple[Any, DicoProcessor]:
        """As for every captioner, with CLIP's tokenizer: by default that of `backbone`, which `"words"` replaces."""
        if tokenizer is None:
            if not isinstance(backbone, (str, Path)):
                raise ValueError(
                    f'{cls.__name__}.new: give tokenizer (--tokenizer), the name of a CLIP or "words" for those of the '
                    "captions, or a CLIP as backbone, which has one."
                )
            tokenizer = backbone
        if backbone is None:
            options.setdefault("image_processor", CLIPImageProcessorPil())
        return super().new(captions, backbone, features, tokenizer=tokenizer, **options)

    def default_decoding(self) -> dict[str, Any]:
        """Beam search of the original."""
        return {"num_beams": 5, "decoding": "paper", "max_length": min(LONGEST, self.config.max_position_embeddings)}

    def freeze_backbone(self, trainable: str = "none") -> int:
        """Freeze as every captioner does. The layer norm behind CLIP's last layer never learns: nothing reads it."""
        count = super().freeze_backbone(trainable)
        if self.backbone is None or self.backbone.config.model_type != "clip_vision_model":
            return count
        self.backbone.get_submodule("post_layernorm").requires_grad_(False)
        return sum(weight.numel() for weight in self.backbone.parameters() if weight.requires_grad)

    def encode(self, features: torch.Tensor, mask: torch.Tensor | None, **inputs: Any) -> CaptionerEncoderOutput:
        """BERT over the projected tokens.

        Raises:
            ValueError: more tokens than BERT has positions for.
        """
        if features.shape[1] > self.config.max_image_tokens:
            raise ValueError(
                f"a picture of {features.shape[1]} tokens is more than the encoder's "
                f"max_image_tokens={self.config.max_image_tokens}; make smaller pictures or larger patches."
            )
        mask = padding_mask(mask)
        hidden = features.to(self.decoder.dtype)  # (B, L, feature_size)
        if mask is not None:
            hidden = hidden.masked_fill(mask[..., None] == 0, 0.0)  # NaN there would reach the gradients
        if self.vis_enc_to_enc_proj is not None:
            hidden = self.vis_enc_to_enc_proj(hidden)  # (B, L, d)
        output = self.encoder(inputs_embeds=hidden, attention_mask=mask, output_hidden_states=True)
        return CaptionerEncoderOutput(
            last_hidden_state=output.last_hidden_state,
            image_attention_mask=mask,
            hidden_states=output.hidden_states,
        )

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> CaptionerCache | None:
        """The decoder's state before the first token; holds the memory's keys and values."""
        if self.training and self.decoder.is_gradient_checkpointing:  # GPT-2 would leave it empty
            return None
        settings, memory = self.decoder.config, encoder_outputs.last_hidden_state
        kept = DynamicCache(config=settings)
        for index, block in enumerate(self.decoder.transformer.h):
            attention = block.crossattention
            # (B, L, 2 d) -> (B, L, 2, H, head) -> 2 x (B, H, L, head)
            both = attention.c_attn(memory).unflatten(-1, (2, attention.num_heads, attention.head_dim))
            keys, values = both.permute(2, 0, 3, 1, 4)
            kept.update(keys, values, index)
        return DicoCache(DynamicCache(config=settings), kept)

    def decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Any, options: DecodeOptions
    ) -> CaptionerOutput:
        """GPT-2 with cross-attention to the memory."""
        with eager_attention(self.decoder, options.output_attentions):
            output = self.decoder(
                inputs_embeds=self.get_input_embeddings()(input_ids),
                encoder_hidden_states=encoder_outputs.last_hidden_state,
                encoder_attention_mask=self._memory_mask(encoder_outputs),
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=options.logits_to_keep,
                output_hidden_states=options.output_hidden_states,
                output_attentions=options.output_attentions,
            )
        return CaptionerOutput(
            logits=output.logits,
            decoder_hidden_states=output.hidden_states,
            cross_attentions=output.cross_attentions,
        )

    def _memory_mask(self, encoder_outputs: CaptionerEncoderOutput) -> Any:
        """The mask (B, 1, 1, L) of a memory with padding, as the attention in use wants it."""
        memory, mask = encoder_outputs.last_hidden_state, encoder_outputs.image_attention_mask
        if mask is None:
            return None
        return create_bidirectional_mask(
            config=self.decoder.config,
            inputs_embeds=memory[:, :1],
            attention_mask=mask,
            encoder_hidden_states=memory,
        )

    def _learns_padding(self, pad_in_loss: bool | None) -> bool:
        return self.config.pad_in_loss if pad_in_loss is None else pad_in_loss

    def target_places(self, labels: torch.Tensor, pad_in_loss: bool | None = None, **loss_inputs: Any) -> torch.Tensor:
        """Places of words, or all."""
        return (labels != -100) & (labels != self.config.pad_token_id) | self._learns_padding(pad_in_loss)

    def caption_loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        num_items: torch.Tensor | int | None,
        *args: Any,
        pad_in_loss: bool | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Cross-entropy of the words, or also of the padding behind them; `num_items` counts words in both cases."""
        pad = cast(int, self.config.pad_token_id)
        words = labels.masked_fill(labels == pad, -100)
        if not self._learns_padding(pad_in_loss):
            return super().caption_loss(logits, words, num_items, *args, **options)
        if num_items is not None:  # so that a batch's mean over all places counts by its words
            num_items = num_items * labels.numel() / (words != -100).sum()
        return super().caption_loss(logits, words.masked_fill(words == -100, pad), num_items, *args, **options)
