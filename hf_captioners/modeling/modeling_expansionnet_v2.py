"""ExpansionNet v2 (arXiv 2208.06551).

"Exploiting Multiple Sequence Lengths in Fast End to End Training for Image Captioning", J. C. Hu, R. Cavicchioli and
A. Capotondi, 2022.

A vision backbone gives a grid of tokens; three encoder layers with static expansion turn them into the memory; three
decoder layers with dynamic expansion and cross-attention write the caption. Parameter names are those of the published
checkpoints, except that the backbone is a transformers model under `backbone.`.

Where this differs from the authors' code:

1. The two classes End and Body are one: `config.features_only` leaves the backbone out, and `image_features` is the
   other input of every model.
2. Padded caption positions are not masked: they only follow the end, and every layer is causal. Their logits are
   defined but have no target.
3. The keys and values of the memory are projected once for a picture and shared by its captions.
4. Stochastic depth acts on both branches of a Swin block, as in the authors' backbone (transformers has it on one).
5. A backbone trained from scratch starts from transformers' initialisation, not from Xavier's.
6. The training loss is normalised by the targets of the whole optimizer step when the trainer passes their number.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel

from .captioner_attention import CaptionerAttention
from .captioner_autoregressive import AutoregressiveCaptioner, DecodeOptions, Decoding
from .captioner_cache import CaptionerCache
from .captioner_layers import initialize, padding_mask
from .captioner_losses import smoothed_divergence
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from .configuration_expansionnet_v2 import ExpansionNetV2Config
from .decoding_expansionnet_v2 import ExpansionNetV2Beams
from .expansion_expansionnet_v2 import DynamicExpansion, ExpansionCacheLayer, StaticExpansion
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .processing_captioner import ExpansionNetV2Processor


class CrossAttention(CaptionerAttention):
    """Multi-head attention of the captions to the memory of their picture (no dropout inside, as in the original)."""

    def __init__(self, config: ExpansionNetV2Config) -> None:
        super().__init__(config, config.d_model)
        self.Wq = nn.Linear(config.d_model, config.d_model)
        self.Wk = nn.Linear(config.d_model, config.d_model)
        self.Wv = nn.Linear(config.d_model, config.d_model)
        self.out_linear = nn.Linear(config.d_model, config.d_model)

    def project_memory(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (B, H, L, head), of a memory (B, L, d)."""
        return self.split(self.Wk(memory)), self.split(self.Wv(memory))

    def forward(
        self,
        hidden: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        all_weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(R, T, d) -> (R, T, d); see [`CaptionerAttention.attend_to_images`]."""
        return self.out_linear(self.attend_to_images(self.Wq(hidden), keys, values, mask, all_weights))


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, d_model: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(d_model, ffn_dim)
        self.linear_2 = nn.Linear(ffn_dim, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, d) -> (…, d)"""
        return self.linear_2(self.dropout(self.linear_1(hidden).relu()))


class EncoderLayer(GradientCheckpointingLayer):
    """Static expansion and feed-forward, each pre-norm and residual."""

    def __init__(self, config: ExpansionNetV2Config) -> None:
        super().__init__()
        rate = config.encoder_dropout
        self.norm_1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.norm_2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.stc_exp = StaticExpansion(config.d_model, config.encoder_expansion_groups, rate, config.expansion_eps)
        self.ff = FeedForward(config.d_model, config.ffn_dim, rate)
        self.dropout = nn.Dropout(rate)

    def forward(self, hidden: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, L, d) -> (B, L, d)"""
        hidden = hidden + self.dropout(self.stc_exp(self.norm_1(hidden), token_mask))
        return hidden + self.dropout(self.ff(self.norm_2(hidden)))


class DecoderLayer(GradientCheckpointingLayer):
    """Dynamic expansion, cross-attention and feed-forward, each pre-norm and residual."""

    def __init__(self, config: ExpansionNetV2Config) -> None:
        super().__init__()
        rate = config.decoder_dropout
        self.norm_1 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.norm_2 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.norm_3 = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dyn_exp = DynamicExpansion(config.d_model, config.decoder_expansion_size, rate, config.expansion_eps)
        self.mha = CrossAttention(config)
        self.ff = FeedForward(config.d_model, config.ffn_dim, rate)
        self.dropout = nn.Dropout(rate)

    def forward(
        self,
        hidden: torch.Tensor,
        memory: torch.Tensor,
        memory_mask: torch.Tensor | None,
        cache: ExpansionCacheLayer | None,
        all_weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(R, T, d) -> (R, T, d), attending to a memory (B, L, d); with a cache the memory is read from there."""
        keys, values = self.mha.project_memory(memory) if cache is None else (cache.memory_keys, cache.memory_values)
        hidden = hidden + self.dropout(self.dyn_exp(self.norm_1(hidden), cache))
        hidden = hidden + self.dropout(self.mha(self.norm_2(hidden), keys, values, memory_mask, all_weights))
        return hidden + self.dropout(self.ff(self.norm_3(hidden)))


class WordEmbedding(nn.Module):
    """Word vectors, dropped out and then scaled by the square root of their width."""

    def __init__(self, config: ExpansionNetV2Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.decoder_input_dropout)
        self.scale = config.d_model**0.5

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(R, T) -> (R, T, d)"""
        return self.dropout(self.embed(input_ids)) * self.scale


class ExpansionNetV2ForImageCaptioning(AutoregressiveCaptioner, GenerationMixin):
    """ExpansionNet v2: a picture, or its cached grid features, to a caption.

    Args:
        config ([`ExpansionNetV2Config`]): sizes and rates.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import ExpansionNetV2Config, ExpansionNetV2ForImageCaptioning
    >>> config = ExpansionNetV2Config(
    ...     vocab_size=50, d_model=32, num_attention_heads=4, ffn_dim=64, encoder_expansion_groups=[4, 8],
    ...     decoder_expansion_size=4, features_only=True, feature_size=24,
    ...     pad_token_id=0, bos_token_id=1, eos_token_id=2, unk_token_id=3,
    ... )
    >>> model = ExpansionNetV2ForImageCaptioning(config).eval()
    >>> ids = model.generate(image_features=torch.randn(2, 9, 24), num_beams=3, max_length=10)
    >>> ids.shape[0], bool((ids[:, 0] == 1).all())
    (2, True)

    ```
    """

    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    processor_class = ExpansionNetV2Processor
    decodings = {"paper": Decoding(beams=ExpansionNetV2Beams), "standard": Decoding()}
    word_loss = staticmethod(smoothed_divergence)  # paper, section 4.3
    input_embeddings, output_embeddings = "out_embedder.embed", "vocab_linear"
    # Attention and expansion projections of the body: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = r"(encoders|decoders)\.\d+\.(stc_exp|dyn_exp|mha)\.(class_a_embed|class_b_embed|Wq|Wv)"
    config: ExpansionNetV2Config

    def __init__(self, config: ExpansionNetV2Config) -> None:
        super().__init__(config)
        self.backbone = self.new_backbone()
        if self.backbone is not None:
            _add_mlp_drop_path(self.backbone)
        self.input_linear = nn.Linear(cast(int, config.feature_size), config.d_model)
        self.encoders: Any = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoders: Any = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.enc_reduce_group = nn.Linear(config.encoder_layers * config.d_model, config.d_model)
        self.enc_reduce_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.dec_reduce_group = nn.Linear(config.decoder_layers * config.d_model, config.d_model)
        self.dec_reduce_norm = nn.LayerNorm(config.d_model, eps=config.layer_norm_eps)
        self.out_embedder = WordEmbedding(config)
        self.pos_encoder = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.vocab_linear = nn.Linear(config.d_model, config.vocab_size)
        self.enc_input_dropout = nn.Dropout(config.encoder_input_dropout)
        self.other_dropout = nn.Dropout(config.other_dropout)
        self.post_init()

    def default_decoding(self) -> dict[str, Any]:
        """The paper's (section 4.4)."""
        return {"num_beams": 5, "decoding": "paper", "max_length": self.config.max_position_embeddings}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform for every table, torch's default for every vector (specification of the original)."""
        initialize(module, xavier=True)

    def encode(self, features: torch.Tensor, mask: torch.Tensor | None, **inputs: Any) -> CaptionerEncoderOutput:
        """Static expansions over the tokens, and the fusion of their layers."""
        mask = padding_mask(mask)
        hidden = self.enc_input_dropout(self.input_linear(features.to(self.dtype)))  # (B, L, d)
        states = [hidden]
        for layer in self.encoders:
            states.append(layer(states[-1], mask))
        fused = self.other_dropout(self.enc_reduce_group(torch.cat(states[1:], dim=-1)))  # (B, L, layers * d) to d
        return CaptionerEncoderOutput(
            last_hidden_state=self.enc_reduce_norm(states[-1] + fused),
            image_attention_mask=mask,
            hidden_states=tuple(states),
        )

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> CaptionerCache:
        """The decoder's state before the first token; holds the projections of the memory."""
        memory = encoder_outputs.last_hidden_state
        return CaptionerCache(
            layers=[ExpansionCacheLayer(*layer.mha.project_memory(memory)) for layer in self.decoders]
        )

    def decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Any, options: DecodeOptions
    ) -> CaptionerOutput:
        """Dynamic expansions over the words, attention to the memory, and the fusion of their layers."""
        caches: list[Any] = [None] * len(self.decoders) if cache is None else cache.layers
        start = 0 if cache is None else cache.get_seq_length()
        mask = encoder_outputs.image_attention_mask
        visible = None if mask is None else mask.bool()[:, None, None]  # (B, 1, 1, L)
        positions = self.pos_encoder.weight[start : start + input_ids.shape[1]]  # (T, d)
        states = [self.out_embedder(input_ids) + positions]  # (N, T, d)
        weights: list[torch.Tensor] | None = [] if options.output_attentions else None
        for layer, layer_cache in zip(self.decoders, caches, strict=True):
            states.append(layer(states[-1], encoder_outputs.last_hidden_state, visible, layer_cache, weights))
        fused = self.other_dropout(self.dec_reduce_group(torch.cat(states[1:], dim=-1)))  # (N, T, d)
        output = self.dec_reduce_norm(states[-1] + fused)[:, -options.logits_to_keep :]
        return CaptionerOutput(
            logits=self.vocab_linear(output),
            decoder_hidden_states=tuple(states),
            cross_attentions=None if weights is None else tuple(weights),
        )


class _DropPathAfterMLP:
    """Forward hook: stochastic depth per picture, with the rate of the block."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, mlp: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        if not mlp.training:
            return output
        keep = 1.0 - self.rate
        return output * output.new_empty(output.shape[0], 1, 1).bernoulli_(keep).div_(keep)


def _add_mlp_drop_path(backbone: PreTrainedModel) -> None:
    """Put stochastic depth on the MLP branch of Swin blocks too (header, 4); other backbones stay as they are."""
    if backbone.config.model_type != "swin" or not backbone.config.drop_path_rate:
        return
    from transformers.models.swin.modeling_swin import SwinDropPath, SwinLayer

    for block in backbone.modules():
        if isinstance(block, SwinLayer) and isinstance(block.drop_path, SwinDropPath):
            block.mlp.register_forward_hook(_DropPathAfterMLP(block.drop_path.drop_prob))
