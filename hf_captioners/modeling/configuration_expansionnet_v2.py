"""Configuration of ExpansionNet v2 (arXiv 2208.06551)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_captioner import CaptionerConfig

# Swin-L, patch 4, window 12, 384 px: the backbone of the released model (paper, section 4.2)
SWIN_LARGE_384: dict[str, Any] = {
    "model_type": "swin",
    "image_size": 384,
    "patch_size": 4,
    "embed_dim": 192,
    "depths": [2, 2, 18, 2],
    "num_heads": [6, 12, 24, 48],
    "window_size": 12,
    "drop_path_rate": 0.1,
}


@strict
class ExpansionNetV2Config(CaptionerConfig):
    """Sizes and rates of an [`ExpansionNetV2ForImageCaptioning`]. The defaults are the released model's.

    Args:
        vocab_size (`int`, defaults to 10000):
            Words, special tokens included.
        d_model (`int`, defaults to 512):
            Width of encoder and decoder.
        encoder_layers (`int`, defaults to 3), decoder_layers (`int`, defaults to 3):
            Number of layers.
        num_attention_heads (`int`, defaults to 8):
            Heads of the cross-attention; divides `d_model`.
        ffn_dim (`int`, defaults to 2048):
            Inner width of the feed-forward blocks.
        encoder_expansion_groups (`list[int]`, defaults to `[32, 64, 128, 256, 512]`):
            Slots of each group of the static expansion, in order.
        decoder_expansion_size (`int`, defaults to 16):
            Slots that each position adds in the dynamic expansion.
        max_position_embeddings (`int`, defaults to 74):
            Longest caption in tokens, start and end included.
        expansion_eps (`float`, defaults to 1e-9):
            Added to the sums that normalise the expansions. Part of the model: a checkpoint needs the one that it was
            trained with.
        layer_norm_eps (`float`, defaults to 1e-5):
            Epsilon of every LayerNorm.
        encoder_dropout, decoder_dropout, encoder_input_dropout, decoder_input_dropout, other_dropout
            (`float`, defaults to 0.3): inside the encoder layers, inside the decoder layers, after the input
            projection, on the word embedding and in the fusion of the layers. The paper trains with 0.3 in the
            cross-entropy phases and 0.1 in the self-critical ones.
        label_smoothing (`float`, defaults to 0.1), features_only, vision_config (defaults to Swin-L at 384 pixels),
            feature_size (defaults to 1536 in a features-only model): see [`CaptionerConfig`].
        pad_token_id, bos_token_id, eos_token_id, unk_token_id, decoder_start_token_id (`int`):
            Special tokens, by default those of the released vocabulary (78, 79, 77, 80, 79).

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or sizes that contradict each other, by name
            and value.

    Example:

    ```python
    >>> from hf_captioners import ExpansionNetV2Config
    >>> config = ExpansionNetV2Config()
    >>> config.feature_size, sum(config.encoder_expansion_groups), config.vision_config.model_type
    (1536, 992, 'swin')

    ```
    """

    model_type = "expansionnet_v2"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "decoder_layers"}
    sub_configs_defaults = {"vision_config": SubConfigSpec(AutoConfig, model_type="swin", optional=True)}
    default_backbone = SWIN_LARGE_384
    default_feature_size = 1536

    vocab_size: int = 10000
    d_model: int = 512
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_attention_heads: int = 8
    ffn_dim: int = 2048
    encoder_expansion_groups: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    decoder_expansion_size: int = 16
    max_position_embeddings: int = 74
    expansion_eps: float = 1e-9
    layer_norm_eps: float = 1e-5
    encoder_dropout: float | int = 0.3
    decoder_dropout: float | int = 0.3
    encoder_input_dropout: float | int = 0.3
    decoder_input_dropout: float | int = 0.3
    other_dropout: float | int = 0.3
    label_smoothing: float | int = 0.1
    pad_token_id: int | None = 78
    bos_token_id: int | None = 79
    eos_token_id: int | None = 77
    unk_token_id: int | None = 80

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder_expansion_groups = list(self.encoder_expansion_groups)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        super().validate_architecture()
        sizes = ("d_model", "encoder_layers", "decoder_layers", "ffn_dim", "decoder_expansion_size")
        self._check_at_least(1, *sizes, "num_attention_heads", "max_position_embeddings")
        self._check_heads("num_attention_heads")
        groups = self.encoder_expansion_groups
        if not groups or min(groups) < 1:
            raise ValueError(f"ExpansionNetV2Config: encoder_expansion_groups needs positive sizes, not {groups}.")
        parts = ("encoder", "decoder", "encoder_input", "decoder_input", "other")
        self._check_rates(*(f"{part}_dropout" for part in parts))
