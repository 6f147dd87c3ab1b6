"""Configuration of SCD-Net, the semantic-conditional diffusion captioner (CVPR 2023, arXiv 2212.03099)."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_captioner import CaptionerConfig
from .diffusion_scdnet import NOISE_SCHEDULES, bits_needed

RETRIEVAL = ("sentence", "none")


@strict
class ScdnetConfig(CaptionerConfig):
    """Sizes and rates of a [`ScdnetForImageCaptioning`]. The defaults are the released first stage's.

    Args:
        vocab_size (`int`, defaults to 10200):
            Words, special tokens included.
        num_bits (`int`, *optional*, defaults to `ceil(log2 vocab_size)`):
            Bits of a word.
        bit_scale (`float`, defaults to 1.0):
            Size of a bit, b.
        noise_schedule (`str`, defaults to `"cosine"`):
            Or `"linear"`.
        max_position_embeddings (`int`, defaults to 21):
            Longest caption in tokens, start and end included. All but the start are written at once, so that the
            network always has `max_position_embeddings - 1` places; this length is learned and not free afterwards.
        caption_positions (`int`, defaults to 5000), retrieved_positions (`int`, defaults to 5000):
            Rows of the tables of positions, of captions and of retrieved sentences.
        hidden_size (`int`, defaults to 512), intermediate_size (`int`, defaults to 2048):
            Width of the network and, within, of its feed-forward blocks.
        num_attention_heads (`int`, defaults to 8):
            Heads of every attention; divides `hidden_size`.
        visual_layers, semantic_layers, decoder_layers (`int`, default to 3):
            Number of layers: over the regions; over caption and retrieved sentence; of the decoder.
        time_frequencies (`int`, defaults to 128):
            Learned frequencies of the time's features.
        sees_previous (`bool`, defaults to `False`):
            Whether this is a second stage, which also sees the sentence of a first one.
        first_stage (`ScdnetConfig` or `dict`, *optional*):
            Of the network that writes the sentence which a second stage sees: with it the model is a cascade and owns
            both. Its backbone is the second stage's.
        max_regions (`int`, *optional*):
            Regions of a picture that a features-only model looks at: the first ones of its `image_features`, wherever
            they come from. All by default; the released models see 50.
        retrieval (`str`, defaults to `"sentence"`):
            `"sentence"`: every picture comes with a retrieved sentence. `"none"`: without one the model sees an empty
            sentence, for models that were trained so.
        visual_dropout (`float`, defaults to 0.5):
            On the embedded features.
        dropout (`float`, defaults to 0.1), attention_dropout (`float`, defaults to 0.1):
            Everywhere else; on the weights of attention.
        label_smoothing (`float`, defaults to 0.1):
            See [`CaptionerConfig`]; the mass is spread over the other words.
        self_conditioning (`float`, defaults to 0.5):
            Rate at which a training step first predicts and then sees its own prediction.
        replaced_words (`float`, defaults to 0.556):
            Rate at which cross-entropy training of a second stage replaces words of the sentence that it sees by random
            ones. The authors meant 0.15 for each caption, but replaced in one sentence of all five captions of a
            picture five times, `1 - 0.85 ** 5`; the released weights were trained so.
        replaced_together (`bool`, defaults to `True`):
            Whether all captions of a picture see the same replaced words. With `replaced_words=0.15` and `False` it is
            what the authors meant.
        scoring_time (`float`, defaults to 1.0), scoring_seed (`int`, defaults to 0):
            Time and seed of the noise at which captions are scored where nothing else is given: by
            `sequence_log_probs`, and by the loss in evaluation mode. At 1.0 the network sees noise only, as in the
            first step of a sampler, so that a caption's log-probability is that of a distribution over captions.
        features_only (`bool`, *optional*, defaults to `True` without a `vision_config`):
            Without a backbone: the model reads region features as `image_features`.
        vision_config (`dict` or `PreTrainedConfig`, *optional*):
            Configuration of any transformers vision backbone, whose grid takes the place of region features.
        feature_size (defaults to 2048 in a features-only model): see [`CaptionerConfig`].
        pad_token_id, bos_token_id, eos_token_id, unk_token_id (`int`, default to 0, 0, 0 and 10199):
            Special tokens. The first three may share one id, as in the released vocabulary.

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or fields that contradict each other, by name
            and value.

    Example:

    ```python
    >>> from hf_captioners import ScdnetConfig
    >>> config = ScdnetConfig(sees_previous=True)
    >>> config.num_bits, config.feature_size, config.caption_length
    (14, 2048, 20)

    ```
    """

    model_type = "scdnet"
    attribute_map = {"num_hidden_layers": "decoder_layers"}
    sub_configs_defaults = {"vision_config": SubConfigSpec(AutoConfig, model_type="swin", optional=True)}
    default_feature_size = 2048

    vocab_size: int = 10200
    num_bits: int | None = None
    bit_scale: float | int = 1.0
    noise_schedule: str = "cosine"
    max_position_embeddings: int = 21
    caption_positions: int = 5000
    retrieved_positions: int = 5000
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_attention_heads: int = 8
    visual_layers: int = 3
    semantic_layers: int = 3
    decoder_layers: int = 3
    time_frequencies: int = 128
    sees_previous: bool = False
    first_stage: dict | PreTrainedConfig | None = None
    max_regions: int | None = None
    retrieval: str = "sentence"
    visual_dropout: float | int = 0.5
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    label_smoothing: float | int = 0.1
    self_conditioning: float | int = 0.5
    replaced_words: float | int = 0.556
    replaced_together: bool = True
    scoring_time: float | int = 1.0
    scoring_seed: int = 0
    features_only: bool | None = None  # type: ignore[assignment]
    pad_token_id: int | None = 0
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    unk_token_id: int | None = 10199

    def __post_init__(self, **kwargs: Any) -> None:
        if self.features_only is None:
            self.features_only = self.vision_config is None
        if self.num_bits is None:
            self.num_bits = bits_needed(self.vocab_size)
        if isinstance(self.first_stage, dict):
            self.first_stage = type(self)(**self.first_stage)
        super().__post_init__(**kwargs)

    @property
    def caption_length(self) -> int:
        """Words and end token that are written at once, L."""
        return self.max_position_embeddings - 1

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        super().validate_architecture()
        layers = ("visual_layers", "semantic_layers", "decoder_layers")
        tables = ("retrieved_positions", "time_frequencies", "intermediate_size", "num_attention_heads")
        self._check_at_least(1, *layers, *tables, "hidden_size", "num_bits")
        self._check_at_least(2, "max_position_embeddings")
        self._check_at_least(self.caption_length, "caption_positions")
        self._check_heads("num_attention_heads", "hidden_size")
        self._check_rates("visual_dropout", "dropout", "attention_dropout")
        if self.max_regions is not None:
            self._check_at_least(1, "max_regions")
            if not self.features_only:
                raise ValueError(
                    f"ScdnetConfig: max_regions={self.max_regions} is for a features_only model; this one has a "
                    "vision_config, whose grid it sees whole."
                )
        for name in ("caption_positions", "retrieved_positions"):
            if vars(self)[name] > self.max_positions:
                raise ValueError(
                    f"ScdnetConfig: {name}={vars(self)[name]} is beyond the limit of {self.max_positions}."
                )
        for name in ("self_conditioning", "replaced_words", "scoring_time"):
            if not 0 <= vars(self)[name] <= 1:
                raise ValueError(f"ScdnetConfig: {name} must be in [0, 1], not {vars(self)[name]}.")
        for name, known in (("noise_schedule", NOISE_SCHEDULES), ("retrieval", RETRIEVAL)):
            if vars(self)[name] not in known:
                raise ValueError(f"ScdnetConfig: {name} must be one of {', '.join(known)}, not {vars(self)[name]!r}.")
        if not self.bit_scale > 0:
            raise ValueError(f"ScdnetConfig: bit_scale must be above 0, not {self.bit_scale}.")
        assert self.num_bits is not None
        if self.num_bits > 24 or 2**self.num_bits < self.vocab_size:
            raise ValueError(
                f"ScdnetConfig: num_bits={self.num_bits} must be between {bits_needed(self.vocab_size)}, which "
                f"vocab_size={self.vocab_size} needs, and 24."
            )
        if self.first_stage is not None:
            self._check_first_stage(self.first_stage)

    def _check_first_stage(self, first: Any) -> None:
        if not isinstance(first, ScdnetConfig) or first.sees_previous or first.first_stage is not None:
            raise ValueError("ScdnetConfig: first_stage must be the ScdnetConfig of a first stage.")
        if not self.sees_previous:
            raise ValueError("ScdnetConfig: a first_stage needs sees_previous=True, to see its words.")
        if not first.features_only:
            raise ValueError("ScdnetConfig: first_stage must be features_only; it sees what the second stage sees.")
        for name in ("vocab_size", "num_bits", "bit_scale", "max_position_embeddings", "feature_size"):
            if vars(first)[name] != vars(self)[name]:
                raise ValueError(
                    f"ScdnetConfig: first_stage has {name}={vars(first)[name]}, but the second {vars(self)[name]}; "
                    "the stages of a cascade share it."
                )
