"""Configuration of the DiCO captioner (arXiv 2408.14547)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

from .configuration_captioner import CaptionerConfig

# The released backbone: the vision tower of CLIP ViT-L/14
CLIP_VIT_L_14 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}


@strict
class DicoConfig(CaptionerConfig):
    """Sizes and rates of a [`DicoForImageCaptioning`]. The defaults are the released model's.

    Args:
        vocab_size (`int`, defaults to 49409):
            Tokens: CLIP's and one for padding.
        d_model (`int`, defaults to 512):
            Width of encoder and decoder.
        encoder_layers (`int`, defaults to 3), decoder_layers (`int`, defaults to 3):
            Depths.
        encoder_attention_heads (`int`, defaults to 8), decoder_attention_heads (`int`, defaults to 8):
            Heads of every attention.
        encoder_ffn_dim (`int`, defaults to 2048), decoder_ffn_dim (`int`, defaults to 2048):
            Inner widths of the feed-forward blocks.
        encoder_activation (`str`, defaults to `"gelu"`), decoder_activation (`str`, defaults to `"gelu_new"`):
            Their activations, by their names in transformers.
        encoder_layer_norm_eps (`float`, defaults to 1e-12), decoder_layer_norm_eps (`float`, defaults to 1e-5):
            Eps of the layer norms.
        max_image_tokens (`int`, defaults to 512):
            Most tokens of a picture, the class token included; the encoder has a position for each.
        max_position_embeddings (`int`, defaults to 1024):
            Longest caption in tokens, start and end included. CLIP's tokenizer cuts captions to 77.
        encoder_dropout, encoder_attention_dropout, decoder_input_dropout, decoder_dropout, decoder_attention_dropout
            (`float`, each defaults to 0.1): rates of dropout: after the embeddings and on the branches of the encoder,
            on its attention, on the embedded words, on the branches of the decoder, and on its attentions.
        initializer_range (`float`, defaults to 0.02):
            Deviation of fresh weights.
        label_smoothing (`float`, defaults to 0.0):
            Probability mass that the training loss spreads evenly over all tokens.
        pad_in_loss (`bool`, defaults to `False`):
            Whether padding is learned like a word, as the original does: the loss is then the mean over all places of
            the labels, and so depends on how far they are padded.
        features_only (`bool`, defaults to `False`):
            Without a backbone: the model reads cached `image_features`.
        vision_config (`dict` or `PreTrainedConfig`, *optional*, defaults to CLIP ViT-L/14's):
            Configuration of the vision backbone, of any transformers model type; `None` in a features-only model.
        feature_size (`int`, *optional*):
            Width of the backbone's tokens. Defaults to the `hidden_size` of `vision_config`; must be given where that
            configuration has none (1280 for MobileNetV2 1.0), and is 1024 by default in a features-only model.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id, decoder_start_token_id (`int`):
            Special tokens, by default the last of the vocabulary as in the original: start, end, padding (49406,
            49407, 49408); the decoder starts with the start token. CLIP's tokenizer has no unknown word.

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or sizes that contradict each other, by name
            and value.

    Example:

    ```python
    >>> from hf_captioners import DicoConfig
    >>> config = DicoConfig()
    >>> config.feature_size, config.vision_config.model_type, config.pad_token_id
    (1024, 'clip_vision_model', 49408)

    ```
    """

    model_type = "dico"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "decoder_layers",
        "num_attention_heads": "decoder_attention_heads",
    }
    sub_configs_defaults = {"vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model", optional=True)}

    vocab_size: int = 49409
    d_model: int = 512
    encoder_layers: int = 3
    decoder_layers: int = 3
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_ffn_dim: int = 2048
    decoder_ffn_dim: int = 2048
    encoder_activation: str = "gelu"
    decoder_activation: str = "gelu_new"
    encoder_layer_norm_eps: float = 1e-12
    decoder_layer_norm_eps: float = 1e-5
    max_image_tokens: int = 512
    max_position_embeddings: int = 1024
    encoder_dropout: float | int = 0.1
    encoder_attention_dropout: float | int = 0.1
    decoder_input_dropout: float | int = 0.1
    decoder_dropout: float | int = 0.1
    decoder_attention_dropout: float | int = 0.1
    initializer_range: float = 0.02
    label_smoothing: float | int = 0.0
    pad_in_loss: bool = False
    features_only: bool = False
    vision_config: dict | PreTrainedConfig | None = None
    feature_size: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    unk_token_id: int | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None and not self.features_only:
            self.vision_config = dict(CLIP_VIT_L_14)
        for name, place in (("bos_token_id", 3), ("eos_token_id", 2), ("pad_token_id", 1)):
            if getattr(self, name) is None:
                setattr(self, name, self.vocab_size - place)
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)
        if self.feature_size is None:
            self.feature_size = self._default_feature_size()

    def _default_feature_size(self) -> int:
        if not isinstance(self.vision_config, PreTrainedConfig):  # features only
            return CLIP_VIT_L_14["hidden_size"]  # type: ignore[return-value]
        width = self.vision_config.to_dict().get("hidden_size")
        if width is None:
            raise ValueError(
                f"DicoConfig: feature_size is needed, because a vision_config of type "
                f"{self.vision_config.model_type!r} has no hidden_size. Give the width of the backbone's tokens "
                "(1280 for MobileNetV2 1.0)."
            )
        return width

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        if self.features_only and self.vision_config is not None:
            raise ValueError("DicoConfig: features_only=True leaves no place for a vision_config; give one.")
        if isinstance(self.vision_config, PreTrainedConfig) and "vision_config" in self.vision_config.sub_configs:
            raise ValueError(
                f"DicoConfig: vision_config is of the whole {self.vision_config.model_type!r}; give that of its image "
                "tower."
            )
        sizes = [
            f"{part}_{size}" for part in ("encoder", "decoder") for size in ("layers", "attention_heads", "ffn_dim")
        ]
        for name in ("vocab_size", "d_model", *sizes, "max_image_tokens", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"DicoConfig: {name} must be at least 1, not {getattr(self, name)}.")
        rates = ("encoder", "encoder_attention", "decoder_input", "decoder", "decoder_attention")
        for name in (*(f"{rate}_dropout" for rate in rates), "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"DicoConfig: {name} must be in [0, 1), not {getattr(self, name)}.")
        for part in ("encoder", "decoder"):
            heads, activation = getattr(self, f"{part}_attention_heads"), getattr(self, f"{part}_activation")
            if self.d_model % heads:
                raise ValueError(f"DicoConfig: {part}_attention_heads={heads} does not divide d_model={self.d_model}.")
            if activation not in ACT2FN:
                raise ValueError(f"DicoConfig: {part}_activation={activation!r} is not an activation of transformers.")
        for name in ("bos", "eos", "pad", "decoder_start"):
            index = getattr(self, f"{name}_token_id")
            if not 0 <= index < self.vocab_size:
                raise ValueError(f"DicoConfig: {name}_token_id={index} is not an id of vocab_size={self.vocab_size}.")
