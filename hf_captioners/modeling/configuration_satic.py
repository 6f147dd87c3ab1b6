"""Configuration of SATIC, the semi-autoregressive transformer (arXiv 2106.09436)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_captioner import CaptionerConfig

TRAINING_MASKS = ("decoding", "original")


@strict
class SaticConfig(CaptionerConfig):
    """Sizes and rates of a [`SaticForImageCaptioning`]. The defaults are the released models', with K = 4.

    No weight depends on `group_size`: a checkpoint loads into any other one
    (`from_pretrained(teacher, group_size=4)`), and `group_size=1` is the ordinary autoregressive transformer.

    Args:
        vocab_size (`int`, defaults to 9488):
            Words, special tokens included.
        group_size (`int`, defaults to 4):
            Words that are written in one step, K of the paper.
        d_model (`int`, defaults to 512):
            Width of encoder and decoder; even.
        encoder_layers (`int`, defaults to 6), decoder_layers (`int`, defaults to 6):
            Number of layers.
        num_attention_heads (`int`, defaults to 8):
            Heads of every attention; divides `d_model`.
        ffn_dim (`int`, defaults to 2048):
            Inner width of the feed-forward blocks.
        max_position_embeddings (`int`, defaults to 64):
            Longest caption in tokens, start and end included. Positions are sinusoids: raising it needs no training.
        feature_batch_norm (`int`, defaults to 0):
            Batch normalisations around the projection of the features: 0 none, 1 before it, 2 before and after.
        layer_norm_eps (`float`, defaults to 1e-6):
            Added to the standard deviation in every layer normalisation.
        feature_dropout (`float`, defaults to 0.5):
            Dropout on the projected features.
        dropout (`float`, defaults to 0.1):
            Dropout on the decoder's input, the attention weights, inside the feed-forward blocks and on every branch.
        training_mask (`str`, defaults to `"decoding"`):
            What the decoder sees when `labels` are given. `"decoding"`: what it sees when it writes. `"original"`: what
            the released models were trained with; there the start tokens of the first group are hidden after the first
            one, and so is the last word of the longest captions (see `label_length`), although both are visible when
            they write. With `group_size=1` there is no difference. Converted checkpoints have `"original"`.
        label_length (`int`, defaults to 16):
            Words per caption in the original's label file. Only read with `training_mask="original"`, whose input ends
            one position before the last group of such a caption is complete.
        features_only (`bool`, *optional*, defaults to `True` without a `vision_config`):
            Without a backbone: the model reads region features as `image_features`.
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of any transformers vision backbone, whose grid takes the place of region features.
        feature_size (defaults to 2048 in a features-only model), label_smoothing (defaults to 0.0): see
            [`CaptionerConfig`].
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`, default to 0, 0, 0 and 9487):
            Special tokens. The first three may share one id, as in the released vocabulary.
        decoder_start_token_id (`int`, *optional*, defaults to `bos_token_id`):
            What the first group is fed with.

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or fields that contradict each other, by name
            and value.

    Example:

    ```python
    >>> from hf_captioners import SaticConfig
    >>> config = SaticConfig(group_size=2)
    >>> config.group_size, config.feature_size, config.decoder_start_token_id
    (2, 2048, 0)

    ```
    """

    model_type = "satic"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "decoder_layers"}
    sub_configs_defaults = {"vision_config": SubConfigSpec(AutoConfig, model_type="swin", optional=True)}
    default_feature_size = 2048

    vocab_size: int = 9488
    group_size: int = 4
    d_model: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_attention_heads: int = 8
    ffn_dim: int = 2048
    max_position_embeddings: int = 64
    feature_batch_norm: int = 0
    layer_norm_eps: float = 1e-6
    feature_dropout: float | int = 0.5
    dropout: float | int = 0.1
    training_mask: str = "decoding"
    label_length: int = 16
    features_only: bool | None = None  # type: ignore[assignment]
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    unk_token_id: int | None = 9487

    def __post_init__(self, **kwargs: Any) -> None:
        if self.features_only is None:  # also configurations saved before there was such a field
            self.features_only = self.vision_config is None
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        super().validate_architecture()
        sizes = ("group_size", "encoder_layers", "decoder_layers", "num_attention_heads", "ffn_dim", "label_length")
        self._check_at_least(1, *sizes, "max_position_embeddings")
        if self.d_model < 2 or self.d_model % 2 or self.d_model % self.num_attention_heads:
            raise ValueError(
                f"SaticConfig: num_attention_heads={self.num_attention_heads} must divide d_model={self.d_model}, "
                "which must be even and positive."
            )
        if self.group_size > self.max_position_embeddings:
            raise ValueError(
                f"SaticConfig: group_size={self.group_size} is larger than "
                f"max_position_embeddings={self.max_position_embeddings}."
            )
        if self.feature_batch_norm not in (0, 1, 2):
            raise ValueError(f"SaticConfig: feature_batch_norm must be 0, 1 or 2, not {self.feature_batch_norm}.")
        if self.training_mask not in TRAINING_MASKS:
            raise ValueError(f"SaticConfig: training_mask must be one of {TRAINING_MASKS}, not {self.training_mask!r}.")
        self._check_rates("feature_dropout", "dropout")
