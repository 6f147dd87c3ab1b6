"""ExpansionNet v2 (arXiv 2208.06551).

"Exploiting Multiple Sequence Lengths in Fast End to End Training for Image Captioning", J. C. Hu, R. Cavicchioli and
A. Capotondi, 2022.

A vision backbone gives a grid of tokens; three encoder layers with static expansion turn them into the memory; three
decoder layers with dynamic expansion and cross-attention write the caption. Parameter names are those of the published
checkpoints, except that the backbone is a transformers model under `backbone.`.

Where this differs from the authors' code:

1. The two classes End and Body are one: `config.features_only` leaves the backbone out, and `image_features` is the
   second entrance of every model.
2. Padded caption positions are not masked: they only follow the end, and every layer is causal. Their logits are
   defined but have no target.
3. The keys and values of the memory are projected once for a picture and shared by its captions.
4. Stochastic depth acts on both branches of a Swin block, as in the authors' backbone (transformers has it on one).
5. A backbone trained from scratch starts from transformers' initialisation, not from Xavier's.
6. The training loss is normalised by the targets of the whole optimizer step when the trainer says how many there are.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel

from .beam_search_expansionnet_v2 import paper_beam_search
from .captioner_base import CaptionerPreTrainedModel
from .captioner_layers import at_least_float32, grid_tokens
from .captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from .configuration_expansionnet_v2 import ExpansionNetV2Config
from .expansion_expansionnet_v2 import DynamicExpansion, ExpansionCacheLayer, StaticExpansion
from .image_processing_captioner import CaptionerImageProcessor  # noqa: F401  travels with the model
from .pipeline_image_to_text import ImageToTextPipeline  # noqa: F401  travels with the model
from .processing_expansionnet_v2 import ExpansionNetV2Processor  # noqa: F401  travels with the model

MASKED_SCORE = -1e4  # finite as in the original: a fully masked row attends evenly instead of being NaN


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations. Heads in dimension 1; returns (B, T, H, head) and the weights (B, H, T, L)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = at_least_float32(scores).softmax(-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


class CrossAttention(nn.Module):
    """Multi-head attention of the captions to the memory of their picture (no dropout inside, as in the original)."""

    is_causal = False

    def __init__(self, config: ExpansionNetV2Config) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.d_model // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.Wq = nn.Linear(config.d_model, config.d_model)
        self.Wk = nn.Linear(config.d_model, config.d_model)
        self.Wv = nn.Linear(config.d_model, config.d_model)
        self.out_linear = nn.Linear(config.d_model, config.d_model)

    def project_memory(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each (B, H, L, head), of a memory (B, L, d)."""
        shape = (*memory.shape[:2], self.num_heads, self.head_dim)
        return self.Wk(memory).view(shape).transpose(1, 2), self.Wv(memory).view(shape).transpose(1, 2)

    def forward(
        self, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Attend from `hidden` (R, T, d) to B pictures, R a multiple of B, captions of one picture side by side."""
        images = keys.shape[0]
        # the captions of a picture are rows of one long query: (B, R/B*T, H, head) -> (B, H, R/B*T, head)
        query = self.Wq(hidden).view(images, -1, self.num_heads, self.head_dim).transpose(1, 2)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, _ = attention(self, query, keys, values, mask, dropout=0.0, scaling=self.scaling)
        return self.out_linear(output.reshape(hidden.shape))


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
    ) -> torch.Tensor:
        """(R, T, d) -> (R, T, d), attending to a memory (B, L, d); with a cache the memory is read from there."""
        keys, values = self.mha.project_memory(memory) if cache is None else (cache.memory_keys, cache.memory_values)
        hidden = hidden + self.dropout(self.dyn_exp(self.norm_1(hidden), cache))
        hidden = hidden + self.dropout(self.mha(self.norm_2(hidden), keys, values, memory_mask))
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


def label_smoothed_loss(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Divergence of the smoothed targets from the model's words (paper, section 4.3).

    The target distribution is `1 - smoothing` on the right word and `smoothing / (V - 1)` on each of the others. In
    contrast to the cross-entropy with `label_smoothing` of torch, which spreads over all V words, the loss has its
    minimum at 0.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`): scores.
        labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
        smoothing (`float`): mass of the other words, in [0, 1).
        num_items (`int` or `torch.Tensor`, *optional*): what to divide the sum by; the number of targets by default.

    Returns:
        `torch.Tensor` of shape `()`: the loss in nats per target.
    """
    log_probs = at_least_float32(logits).log_softmax(-1)
    targets = labels != -100
    right = log_probs.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    other = smoothing / (logits.shape[-1] - 1)
    expected = (1 - smoothing - other) * right + other * log_probs.sum(-1)
    entropy = -torch.special.xlogy(torch.tensor([1 - smoothing, smoothing]), torch.tensor([1 - smoothing, other])).sum()
    loss = (-expected - entropy.to(expected)).masked_fill(~targets, 0.0).sum()
    return loss / (targets.sum() if num_items is None else num_items)


class ExpansionNetV2PreTrainedModel(CaptionerPreTrainedModel):
    """Initialisation and capabilities of ExpansionNet v2."""

    config: ExpansionNetV2Config
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Xavier-uniform for every table, torch's default for every vector (specification of the original)."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                bound = module.in_features**-0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.Embedding):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class ExpansionNetV2ForImageCaptioning(ExpansionNetV2PreTrainedModel, GenerationMixin):
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

    beam_rules = {"paper": paper_beam_search, "standard": None}
    # Attention and expansion projections of the body: a good first choice for `LoraConfig(target_modules=…)`
    LORA_TARGET_MODULES = r"(encoders|decoders)\.\d+\.(stc_exp|dyn_exp|mha)\.(class_a_embed|class_b_embed|Wq|Wv)"

    def __init__(self, config: ExpansionNetV2Config) -> None:
        super().__init__(config)
        self.backbone: PreTrainedModel | None = None
        if not config.features_only:
            self.backbone = AutoModel.from_config(config.vision_config)
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
        # the paper's decoding (section 4.4); a checkpoint's generation_config.json replaces it
        self.generation_config = GenerationConfig(
            num_beams=5,
            beam_rule="paper",
            max_length=config.max_position_embeddings,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            decoder_start_token_id=config.decoder_start_token_id,
        )

    @classmethod
    def from_backbone(
        cls, backbone: str | PreTrainedModel, config: ExpansionNetV2Config, **kwargs: Any
    ) -> "ExpansionNetV2ForImageCaptioning":
        """A captioner with a pretrained backbone and a fresh body.

        Args:
            backbone (`str` or `PreTrainedModel`): folder or Hub name of any transformers vision model, or the model.
            config ([`ExpansionNetV2Config`]): its sizes; `vision_config` and `feature_size` are taken from the
            backbone.
            kwargs: passed to `AutoModel.from_pretrained`.

        Returns:
            [`ExpansionNetV2ForImageCaptioning`]
        """
        tower = AutoModel.from_pretrained(backbone, **kwargs) if isinstance(backbone, str) else backbone
        settings = config.to_dict()
        settings.update(features_only=False, vision_config=tower.config, feature_size=_feature_size(tower))
        model = cls(ExpansionNetV2Config(**settings))
        assert model.backbone is not None
        model.backbone.load_state_dict(tower.state_dict())
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.out_embedder.embed

    def set_input_embeddings(self, value: Any) -> None:
        self.out_embedder.embed = value

    def get_output_embeddings(self) -> nn.Module:
        return self.vocab_linear

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.vocab_linear = new_embeddings

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
            ValueError: not exactly one of `pixel_values` and `image_features`; a wrong width; a picture without tokens.
        """
        self.check_entrance(pixel_values, image_features, image_attention_mask, self.config.feature_size)
        features = cast(torch.Tensor, image_features)
        if pixel_values is not None:
            features = self.extract_image_features(pixel_values)
        if image_attention_mask is not None and bool(image_attention_mask.all()):
            image_attention_mask = None
        hidden = self.enc_input_dropout(self.input_linear(features.to(self.input_linear.weight.dtype)))
        states = [hidden]
        for layer in self.encoders:
            states.append(layer(states[-1], image_attention_mask))
        fused = self.other_dropout(self.enc_reduce_group(torch.cat(states[1:], dim=-1)))
        return CaptionerEncoderOutput(
            last_hidden_state=self.enc_reduce_norm(states[-1] + fused),
            image_attention_mask=image_attention_mask,
            image_features=features,
            hidden_states=tuple(states) if output_hidden_states else None,
        )

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> Cache:
        """The decoder's state before the first token; holds the projections of the memory, a row per picture."""
        memory = encoder_outputs.last_hidden_state
        return Cache(layers=[ExpansionCacheLayer(*layer.mha.project_memory(memory)) for layer in self.decoders])

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
            labels (`torch.LongTensor` of shape `(N, T)`, *optional*): words and end token, then -100.
            use_cache (`bool`, defaults to `False`): return `past_key_values`.
            output_hidden_states (`bool`, defaults to `False`): return every layer's output.
            smoothing (`float`, *optional*, defaults to `config.label_smoothing`): see `label_smoothed_loss`. (Any
                argument with "label" in its name is a target to transformers' Trainer.)
            num_items_in_batch (`int` or `torch.Tensor`, *optional*): what the loss is divided by, instead of this
                batch's number of targets.
            logits_to_keep (`int`, defaults to 0): only the logits of the last positions; 0 for all.
            return_dict (`bool`, defaults to `True`): a [`CaptionerOutput`] instead of a tuple.

        Returns:
            [`CaptionerOutput`] or `tuple`

        Raises:
            ValueError: see `encode_images`; no `decoder_input_ids` and no `labels`; a caption longer than the position
                table.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encode_images(
                pixel_values, image_features, image_attention_mask, output_hidden_states=output_hidden_states
            )
        if decoder_input_ids is None:
            decoder_input_ids = self.shift_labels(labels)
        if use_cache and past_key_values is None:
            past_key_values = self.start_cache(encoder_outputs)
        states = self._decode(decoder_input_ids, encoder_outputs, past_key_values)
        fused = self.other_dropout(self.dec_reduce_group(torch.cat(states[1:], dim=-1)))
        output = self.dec_reduce_norm(states[-1] + fused)
        logits = self.vocab_linear(output[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            smoothing = self.config.label_smoothing if smoothing is None else smoothing
            loss = label_smoothed_loss(logits, labels, smoothing, num_items_in_batch)
        result = CaptionerOutput(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            decoder_hidden_states=tuple(states) if output_hidden_states else None,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )
        return result if return_dict else result.to_tuple()

    def _decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Cache | None
    ) -> list[torch.Tensor]:
        """The decoder's input and the output of each layer, (N, T, d) each."""
        caches: list[Any] = [None] * len(self.decoders) if cache is None else cache.layers
        start = 0 if cache is None else caches[0].get_seq_length()
        stop = start + input_ids.shape[1]
        if stop > self.config.max_position_embeddings:
            raise ValueError(
                f"a caption of {stop} tokens is longer than "
                f"max_position_embeddings={self.config.max_position_embeddings}."
            )
        memory = encoder_outputs.last_hidden_state
        mask = encoder_outputs.image_attention_mask
        images = memory.shape[0] if cache is None else caches[0].memory_keys.shape[0]
        if input_ids.shape[0] % images:
            raise ValueError(f"{input_ids.shape[0]} captions cannot be shared out among {images} pictures evenly.")
        if mask is not None:  # generate repeats the mask for every caption of a picture
            mask = mask[:: mask.shape[0] // images]
            mask = ((1 - mask[:, None, None].to(memory.dtype)) * MASKED_SCORE).to(memory.dtype)
        states = [self.out_embedder(input_ids) + self.pos_encoder.weight[start:stop]]
        for layer, layer_cache in zip(self.decoders, caches, strict=True):
            states.append(layer(states[-1], memory, mask, layer_cache))
        return states


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
