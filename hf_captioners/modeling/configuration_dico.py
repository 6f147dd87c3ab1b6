"""Configuration of the DiCO captioner (arXiv 2408.14547)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

from .configuration_captioner import CaptionerConfig

# The released backbone: the vision tower of CLIP ViT-L/14
CLIP_VIT_L_14: dict[str, Any] = {
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
class DicoCaptionerConfig(CaptionerConfig):
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
        pad_in_loss (`bool`, defaults to `False`):
            Whether padding is learned like a word, as the original does: the loss is then the mean over all places of
            the labels, and so depends on how far they are padded. In training it is one of the `model_options`.
        label_smoothing (defaults to 0.0), features_only, vision_config (defaults to CLIP ViT-L/14's), feature_size
            (defaults to 1024 in a features-only model): see [`CaptionerConfig`].
        pad_token_id, bos_token_id, eos_token_id, unk_token_id, decoder_start_token_id (`int`):
            Special tokens, by default the last of the vocabulary as in the original: start, end, padding (49406,
            49407, 49408); the decoder starts with the start token. CLIP's tokenizer has no unknown word.

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or sizes that contradict each other, by name
            and value.

    Example:

    ```python
    >>> from hf_captioners import DicoCaptionerConfig
    >>> config = DicoCaptionerConfig()
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
    default_backbone = CLIP_VIT_L_14
    default_feature_size = 1024

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
    pad_in_loss: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        for name, place in (("bos_token_id", 3), ("eos_token_id", 2), ("pad_token_id", 1)):
            if getattr(self, name) is None:
                setattr(self, name, self.vocab_size - place)
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        super().validate_architecture()
        parts, sizes = ("encoder", "decoder"), ("layers", "attention_heads", "ffn_dim")
        self._check_at_least(1, "d_model", *(f"{part}_{size}" for part in parts for size in sizes))
        self._check_at_least(1, "max_image_tokens", "max_position_embeddings")
        rates = ("encoder", "encoder_attention", "decoder_input", "decoder", "decoder_attention")
        self._check_rates(*(f"{rate}_dropout" for rate in rates))
        for part in parts:
            self._check_heads(f"{part}_attention_heads")
            activation = getattr(self, f"{part}_activation")
            if activation not in ACT2FN:
                raise ValueError(
                    f"DicoCaptionerConfig: {part}_activation={activation!r} is not an activation of transformers."
                )
