"""Configuration of SATIC, the semi-autoregressive transformer (arXiv 2106.09436)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
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
        label_smoothing (`float`, defaults to 0.0):
            Probability mass that the training loss gives to the other words.
        training_mask (`str`, defaults to `"decoding"`):
            What the decoder sees when `labels` are given. `"decoding"`: what it sees when it writes. `"original"`: what
            the released models were trained with; there the start tokens of the first group are hidden after the first
            one, and so is the last word of the longest captions (see `label_length`), although both are visible when
            they write. With `group_size=1` there is no difference. Converted checkpoints have `"original"`.
        label_length (`int`, defaults to 16):
            Words per caption in the original's label file. Only read with `training_mask="original"`, whose input ends
            one position before the last group of such a caption is complete.
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of any transformers vision backbone, whose grid takes the place of region features. By
            default there is none and the model reads `image_features`.
        feature_size (`int`, *optional*):
            Width of the region features or of the backbone's tokens. Defaults to 2048 without a backbone, else to the
            `hidden_size` of `vision_config`; must be given where that has none (1280 for MobileNetV2 1.0).
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
    label_smoothing: float | int = 0.0
    training_mask: str = "decoding"
    label_length: int = 16
    vision_config: dict | PreTrainedConfig | None = None
    feature_size: int | None = None
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    unk_token_id: int | None = 9487
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)
        if self.feature_size is None:
            self.feature_size = self._default_feature_size()

    def _default_feature_size(self) -> int:
        if not isinstance(self.vision_config, PreTrainedConfig):  # region features
            return 2048
        width = self.vision_config.to_dict().get("hidden_size")
        if width is None:
            raise ValueError(
                f"SaticConfig: feature_size is needed, because a vision_config of type "
                f"{self.vision_config.model_type!r} has no hidden_size. Give the width of the backbone's tokens "
                "(1280 for MobileNetV2 1.0)."
            )
        return width

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        sizes = ("vocab_size", "group_size", "encoder_layers", "decoder_layers", "num_attention_heads", "ffn_dim")
        for name in (*sizes, "max_position_embeddings", "label_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"SaticConfig: {name} must be at least 1, not {getattr(self, name)}.")
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
        for name in ("feature_dropout", "dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"SaticConfig: {name} must be in [0, 1), not {getattr(self, name)}.")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id", "decoder_start_token_id"):
            index = getattr(self, name)
            if index is not None and not 0 <= index < self.vocab_size:
                raise ValueError(f"SaticConfig: {name}={index} is not one of the {self.vocab_size} words.")
