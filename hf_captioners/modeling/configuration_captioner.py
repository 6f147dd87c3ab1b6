"""Fields and checks that the configurations of all captioners share."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, ClassVar

from transformers import CONFIG_MAPPING, PreTrainedConfig

_POSITIONS = ("max_position_embeddings", "n_positions", "max_image_tokens")


class CaptionerConfig(PreTrainedConfig):
    """Base of the captioners' configurations: an encoder of pictures and a decoder of words.

    A checkpoint that carries its code names it in `auto_map` and its pipeline in `custom_pipelines`. With the package
    imported these entries are dropped on loading: transformers asks for `trust_remote_code=True` whenever it sees a
    pipeline, even when the code that it names is already here, and a later save would name code that it does not carry.

    Args:
        features_only (`bool`, defaults to `False`):
            Without a backbone: the model reads cached `image_features`.
        vision_config (`dict` or `PreTrainedConfig`, *optional*, defaults to the paper's backbone):
            Configuration of any transformers vision backbone. `None` in a features-only model.
        feature_size (`int`, *optional*):
            Width of the backbone's tokens. Defaults to the `hidden_size` of `vision_config`; must be given where that
            configuration has none (1280 for MobileNetV2 1.0). A features-only model has the paper's by default.
        detector (`str`, *optional*):
            Of a features-only model that reads regions: Hub name or folder of the detector that makes them, or a
            sub-folder of the captioner's; with it pictures can be captioned, see [`CaptionerDetector`].
        label_smoothing (`float`, defaults to 0.0):
            Probability mass that the training loss gives to other words.
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`, *optional*):
            Special tokens.
        decoder_start_token_id (`int`, *optional*, defaults to `bos_token_id`):
            What a caption starts with.

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or fields that contradict each other, by name
            and value.
    """

    max_layers: ClassVar[int] = 500  # of a stack; a folder that declares 100,000 of them would take hours to be refused
    max_positions: ClassVar[int] = 65_536
    default_backbone: ClassVar[dict[str, Any] | None] = None  # of a model made without a backbone or a feature size
    default_feature_size: ClassVar[int | None] = None  # of a features-only model

    is_encoder_decoder: bool = True
    tie_word_embeddings: bool = False
    features_only: bool = False
    vision_config: dict | PreTrainedConfig | None = None
    feature_size: int | None = None
    detector: str | None = None
    label_smoothing: float | int = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    unk_token_id: int | None = None
    decoder_start_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if not __name__.startswith("transformers_modules"):
            for name in ("auto_map", "custom_pipelines"):
                kwargs.pop(name, None)
        if self.vision_config is None and not self.features_only and self.default_backbone is not None:
            self.vision_config = dict(self.default_backbone)
        self._check_vision_type()
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id
        super().__post_init__(**kwargs)
        if self.feature_size is None:
            self.feature_size = self._default_feature_size()

    def _check_vision_type(self) -> None:
        """Refuse a kind of backbone that transformers does not know; its own message lists all that it knows."""
        kind = self.vision_config.get("model_type") if isinstance(self.vision_config, dict) else None
        if kind is not None and kind not in CONFIG_MAPPING:
            near = get_close_matches(str(kind), list(CONFIG_MAPPING), 3)
            advice = f"; do you mean {' or '.join(near)}?" if near else ", such as swin or vit."
            raise ValueError(
                f"{type(self).__name__}: vision_config: model_type must be that of a vision model of transformers, not "
                f"{kind!r}{advice}"
            )

    def _default_feature_size(self) -> int | None:
        if not isinstance(self.vision_config, PreTrainedConfig):
            return self.default_feature_size
        width = self._backbone_width(self.vision_config)
        if width is None:
            raise ValueError(
                f"{type(self).__name__}: feature_size is needed, because a vision_config of type "
                f"{self.vision_config.model_type!r} does not say how wide its output is. Give the width of the "
                "backbone's tokens (1280 for MobileNetV2 1.0)."
            )
        return width

    def _backbone_width(self, vision_config: PreTrainedConfig) -> int | None:
        """Width of what the captioner reads of its backbone, if the backbone's configuration has it."""
        return vision_config.to_dict().get("hidden_size")

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        name, vision = type(self).__name__, self.vision_config
        if self.features_only and vision is not None:
            raise ValueError(f"{name}: features_only=True leaves no place for a vision_config; give one of the two.")
        if not self.features_only and vision is None:
            raise ValueError(f"{name}: give a vision_config, or features_only=True for a model of cached features.")
        if isinstance(vision, PreTrainedConfig) and "vision_config" in vision.sub_configs:
            raise ValueError(
                f"{name}: vision_config is of the whole {vision.model_type!r}; give that of its image tower."
            )
        self._check_limits()
        self._check_at_least(1, "vocab_size", "feature_size")
        self._check_rates("label_smoothing")
        self._check_token_ids("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id", "decoder_start_token_id")

    def _check_limits(self) -> None:
        """Bound what is made before a weight is read: layers, and tables of positions."""
        parts = {"": self, "vision_config.": self.vision_config, "text_config.": vars(self).get("text_config")}
        for part, config in parts.items():
            for name, value in vars(config).items() if isinstance(config, PreTrainedConfig) else ():
                layers = name.endswith("layers") or name in ("n_layer", "depths")
                limit = self.max_layers if layers else self.max_positions if name in _POSITIONS else None
                largest = max(value, default=0) if isinstance(value, list | tuple) else value
                if limit is not None and isinstance(largest, int) and largest > limit:
                    raise ValueError(
                        f"{type(self).__name__}: {part}{name}={value} is beyond the limit of {limit}; to raise it, set "
                        f"CaptionerConfig.{'max_layers' if layers else 'max_positions'}"
                    )

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ValueError(f"{type(self).__name__}: {name} must be at least {least}, not {getattr(self, name)}.")

    def _check_rates(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}: {name} must be in [0, 1), not {getattr(self, name)}.")

    def _check_token_ids(self, *names: str) -> None:
        for name in names:
            index = getattr(self, name)
            if index is not None and not 0 <= index < self.vocab_size:
                raise ValueError(f"{type(self).__name__}: {name}={index} is not an id of vocab_size={self.vocab_size}.")

    def _check_heads(self, heads: str, width: str = "d_model") -> None:
        if getattr(self, width) % getattr(self, heads):
            raise ValueError(
                f"{type(self).__name__}: {heads}={getattr(self, heads)} does not divide {width}={getattr(self, width)}."
            )


def is_captioner_config(config: Any) -> bool:
    """Tell whether a configuration is a captioner's, be it of code that came with a checkpoint.

    Such code is imported anew for each of its entries, so that there can be several classes of the name.

    Args:
        config: any object.
    """
    return any(parent.__name__ == CaptionerConfig.__name__ for parent in type(config).__mro__)
