"""Configuration of CLIP-GPT2, the low-cost captioner, and of ClipCap (arXiv 2111.09734)."""

from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GPT2Config, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_captioner import CaptionerConfig

MAPPING_TYPES = ("linear", "mlp", "transformer")


@strict
class ClipGpt2Config(CaptionerConfig):
    """Sizes and switches of a [`ClipGpt2ForImageCaptioning`]. The defaults are CLIP ViT-B/32 and the smallest GPT-2.

    Args:
        vision_config (`dict` or `PreTrainedConfig`, *optional*, defaults to CLIP ViT-B/32):
            Configuration of a CLIP vision tower, or of any transformers vision backbone that pools its output. `None`
            in a features-only model.
        feature_size (`int`, *optional*):
            Width D of an image embedding, or of a region's features. Defaults to CLIP's `projection_dim` or to the
            `hidden_size` of `vision_config`, and to 512 in a features-only model.
        features_only, label_smoothing (defaults to 0.0): see [`CaptionerConfig`].
        text_config (`dict` or `GPT2Config`, *optional*, defaults to the smallest GPT-2):
            Configuration of GPT-2. Its `vocab_size` is the captioner's.
        prefix_length (`int`, defaults to 1):
            Image tokens P that one embedding becomes.
        mapping_type (`str`, defaults to `"linear"`):
            How: `"linear"`, `"mlp"` (two layers with tanh between) or `"transformer"` (ClipCap's).
        clip_length (`int`, *optional*, defaults to `prefix_length`):
            Tokens C that the embedding is projected to at the input of the transformer mapper.
        mapping_layers (`int`, defaults to 8), mapping_heads (`int`, defaults to 8), mapping_ratio (`int`, defaults
            to 2): layers and heads of the transformer mapper, and inner over outer width of its feed-forward blocks.
        normalize_prefix (`bool`, defaults to `False`):
            Scale every embedding to length 1 before it is mapped. Part of the model: a checkpoint needs the switch
            that it was trained with.
        tag_token_ids (`list[list[int]]`, *optional*):
            The words of the tag predictor, each as its tokens; see [`ClipGpt2Processor.tag_token_ids`]. By default
            there is no tag predictor.
        max_anchors (`int`, defaults to 5), anchor_threshold (`float`, defaults to 0.5):
            The predictor's best words, at most so many (0: none) and each more probable than that, become anchors when
            none are given.
        tag_loss_weight (`float`, defaults to 1.0):
            Weight of the predictor's loss beside that of the words.
        separator_token_id (`int`, *optional*, defaults to `decoder_start_token_id`):
            Token between anchors and caption.
        max_position_embeddings (`int`, *optional*):
            Longest caption in tokens, start and end included. By default what GPT-2's positions leave behind the
            image tokens.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id, decoder_start_token_id (`int`, *optional*):
            Special tokens. Start and end are GPT-2's by default, which has the same token for both and none for
            padding: padding is then the end token too, masked or -100 wherever that matters.

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or fields that contradict each other, by name
            and value.

    Example:

    ```python
    >>> from hf_captioners import ClipGpt2Config
    >>> config = ClipGpt2Config()
    >>> config.feature_size, config.prefix_length, config.vocab_size, config.eos_token_id
    (512, 1, 50257, 50256)

    ```
    """

    model_type = "clip_gpt2"
    default_backbone = {"model_type": "clip_vision_model"}
    default_feature_size = 512
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip_vision_model", optional=True),
        "text_config": SubConfigSpec(GPT2Config),
    }

    text_config: dict | PreTrainedConfig | None = None
    prefix_length: int = 1
    mapping_type: str = "linear"
    clip_length: int | None = None
    mapping_layers: int = 8
    mapping_heads: int = 8
    mapping_ratio: int = 2
    normalize_prefix: bool = False
    tag_token_ids: list[list[int]] | None = None
    max_anchors: int = 5
    anchor_threshold: float | int = 0.5
    tag_loss_weight: float | int = 1.0
    separator_token_id: int | None = None
    max_position_embeddings: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            self.text_config = {**self.text_config, **self._special_tokens()}
        super().__post_init__(**kwargs)
        text = cast(GPT2Config, self.text_config)
        if text.model_type != "gpt2":
            raise ValueError(f"ClipGpt2Config: text_config must be of type 'gpt2', not {text.model_type!r}.")
        if self.clip_length is None:
            self.clip_length = self.prefix_length
        if self.max_position_embeddings is None:  # the start token takes no position: the image does
            self.max_position_embeddings = text.n_positions - self.prefix_length + 1
        if self.eos_token_id is None:
            self.eos_token_id = cast(int, text.eos_token_id)
        if self.bos_token_id is None:
            self.bos_token_id = text.bos_token_id
        if self.pad_token_id is None:
            self.pad_token_id = self.eos_token_id
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        if self.separator_token_id is None:
            self.separator_token_id = self.decoder_start_token_id
        for name, index in self._special_tokens().items():  # one vocabulary, one end: Trainer compares them
            setattr(text, name, index)

    def _special_tokens(self) -> dict[str, int]:
        tokens = {
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
        }
        return {name: index for name, index in tokens.items() if index is not None}

    @property
    def vocab_size(self) -> int:
        """Tokens of GPT-2's vocabulary, special ones included."""
        return cast(GPT2Config, self.text_config).vocab_size

    def _backbone_width(self, vision_config: PreTrainedConfig) -> int | None:
        is_clip = vision_config.model_type == "clip_vision_model"
        return vision_config.to_dict().get("projection_dim" if is_clip else "hidden_size")

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        super().validate_architecture()
        if self.mapping_type not in MAPPING_TYPES:
            raise ValueError(
                f"ClipGpt2Config: mapping_type must be one of {', '.join(MAPPING_TYPES)}, not {self.mapping_type!r}."
            )
        self._check_at_least(1, "prefix_length", "clip_length", "mapping_layers", "mapping_heads", "mapping_ratio")
        self._check_at_least(1, "max_position_embeddings")
        self._check_at_least(0, "tag_loss_weight", "max_anchors")
        self._check_rates("anchor_threshold")
        self._check_token_ids("separator_token_id")
        if self.separator_token_id is None or self.eos_token_id is None:
            raise ValueError("ClipGpt2Config: give bos_token_id and eos_token_id; text_config has none.")
        text = cast(GPT2Config, self.text_config)
        if self.mapping_type == "transformer" and text.n_embd % self.mapping_heads:
            raise ValueError(
                f"ClipGpt2Config: mapping_heads={self.mapping_heads} does not divide GPT-2's n_embd={text.n_embd}."
            )
        for index, tokens in enumerate(self.tag_token_ids or []):
            if not tokens or not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
                raise ValueError(
                    f"ClipGpt2Config: tag_token_ids[{index}]={tokens} must be ids below vocab_size={self.vocab_size}."
                )
