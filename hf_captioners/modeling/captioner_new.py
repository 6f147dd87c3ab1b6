"""A new captioner for given captions: its vocabulary, its processor and a fresh body, in one call."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from typing_extensions import Self

from .captioner_adapters import nor_on_hub
from .captioner_hub import HubOutOfReachError
from .captioner_trust import RemoteCodeError, foreign_code, load_pretrained, refuse_kernels
from .image_processing_captioner import CaptionerImageProcessor
from .processing_captioner import CaptionerProcessor
from .tokenization_words import RULES, WordRule, build_vocabulary, build_word_tokenizer, special_token_ids

WORDS = "words"
"""A tokenizer of the captions' own words."""

# fields of every configuration that say what it is, not how the captioner works
_NO_OPTIONS = {"architectures", "dtype", "transformers_version"}


class HasFeatureSize(Protocol):
    """An object that knows the width of cached features, as a `FeatureStore` does."""

    @property
    def feature_size(self) -> int | None:
        """Width of a token; `None` as long as there is none."""
        ...


def check_fields(config: Any, options: Iterable[str], source: str) -> None:
    """Refuse options that are no fields of a configuration: transformers would take them for something else.

    Args:
        config (`PreTrainedConfig` or its class): the configuration.
        options (`Iterable[str]`): names.
        source (`str`): where they come from, the beginning of the message.

    Raises:
        ValueError: naming the option, and what it may mean.
    """
    known = sorted({field.name for field in dataclasses.fields(config)} - _NO_OPTIONS)
    for name in options:
        if name not in known:
            near = get_close_matches(str(name), known, 3)
            advice = f"do you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}."
            config_class = config if isinstance(config, type) else type(config)
            raise ValueError(f"{source} {name}: no field of {config_class.__name__}; {advice}")


def load_named(loader: Any, argument: str, source: str | Path, trust_remote_code: bool, **options: Any) -> Any:
    """Load a part of a new captioner, or say which argument named what cannot be loaded.

    Args:
        loader (`type`): a class with `from_pretrained`.
        argument (`str`): name of the argument.
        source (`str` or `Path`): folder or Hub name, its value.
        trust_remote_code (`bool`): whether code that comes with it may run.
        options: passed to `from_pretrained`.

    Raises:
        ValueError: in the place of an `OSError`.
    """
    try:
        return load_pretrained(loader, source, trust_remote_code, **options)
    except RemoteCodeError:
        raise
    except OSError as error:
        raise ValueError(f"{argument}={str(source)!r}: {loading_problem(source, error)}") from error


_LACKING = re.compile(r"containing (?:a|a file named) ([\w.]+\.json)")


def loading_problem(source: Any, error: OSError) -> str:
    """Say in a line why something could not be loaded; transformers speaks of huggingface.co whatever the name was.

    Args:
        source: the folder or Hub name.
        error (`OSError`): of `from_pretrained`.

    Returns:
        `str`
    """
    said = " ".join(str(error).split())
    if isinstance(error, HubOutOfReachError):
        return said
    if not Path(str(source)).exists():
        absent = f"there is no such file or folder{nor_on_hub(str(source))}"
        return f"{absent}: {said}" if "gated" in said or "token" in said else absent
    lacking = _LACKING.search(said)
    return f"the folder has no {lacking[1]}" if lacking else said


def new_tokenizer(
    captions: Iterable[str],
    tokenizer: str | Path | PreTrainedTokenizerBase,
    min_count: int,
    longest: int,
    trust_remote_code: bool = False,
    word_rule: WordRule | None = None,
    word_order: str = "code_point",
) -> Any:
    """The tokenizer of a new captioner.

    Args:
        captions (`Iterable[str]`): training captions.
        tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`): `"words"` for one of the captions' words, else a folder
            or Hub name, or the tokenizer itself.
        min_count (`int`): of `"words"`: those seen less often become the unknown word.
        longest (`int`): of `"words"`: longest caption in tokens, start and end included.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it, or that `word_rule` names,
            may run.
        word_rule (`str` or `Callable`, *optional*, defaults to `"spaces"`): of `"words"`: how captions are cut into
            words, see [`build_vocabulary`].
        word_order (`str`, defaults to `"code_point"`): of `"words"`: see [`build_vocabulary`].

    Returns:
        `PreTrainedTokenizerBase`

    Raises:
        ValueError: a name that cannot be loaded; `word_rule` beside a tokenizer that has its own.
    """
    if tokenizer == WORDS:
        rule = _trusted_rule("spaces" if word_rule is None else word_rule, trust_remote_code)
        words = build_vocabulary(captions, min_count, rule, word_order)
        return build_word_tokenizer(words, model_max_length=longest, rule=rule)
    if word_rule is not None:
        raise ValueError(f"word_rule={word_rule!r} is of tokenizer={WORDS!r}; another tokenizer has its own rule.")
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    return _load_tokenizer(tokenizer, trust_remote_code)


def _load_tokenizer(source: str | Path, trust_remote_code: bool) -> Any:
    """A saved tokenizer; of a folder without one transformers makes one that knows special tokens only."""
    try:
        tokenizer = load_named(AutoTokenizer, "tokenizer", source, trust_remote_code)
        if len(tokenizer) > len(set(tokenizer.all_special_ids)):
            return tokenizer
        reason = None
    except ValueError as error:
        if isinstance(error, RemoteCodeError) or not Path(source).exists():
            raise
        reason = error
    raise ValueError(
        f"tokenizer={str(source)!r}: there is no tokenizer in this folder; give --tokenizer (in Python tokenizer=), "
        f"{WORDS!r} for the words of the captions, or a folder or Hub name."
    ) from reason


def _trusted_rule(rule: WordRule, trust_remote_code: bool) -> WordRule:
    """A rule of words, which names a function of a library only where code may run: a recipe could name any."""
    if isinstance(rule, str) and ":" in rule and not trust_remote_code:
        raise RemoteCodeError(
            f"word_rule={rule!r} names a function, which runs only with --trust_remote_code (in Python: give the "
            f"function itself); without code of others there are {', '.join(map(repr, RULES))}."
        )
    return rule


def new_image_processor(
    image_processor: Any, backbone: Any, trust_remote_code: bool, default: Callable[[], Any] = CaptionerImageProcessor
) -> Any:
    """The image processor of a new captioner: its own, that of the backbone's folder, or a default one.

    Args:
        image_processor (`BaseImageProcessor`, *optional*): returned as it is.
        backbone (`str`, `Path`, `PreTrainedModel` or `None`): of the captioner.
        trust_remote_code (`bool`): whether code that comes with the backbone may run.
        default (`Callable`, defaults to [`CaptionerImageProcessor`]): makes one where there is no pretrained backbone.

    Raises:
        ValueError: the backbone is a model, which does not say how its pictures are prepared.
    """
    if image_processor is not None:
        return image_processor
    if isinstance(backbone, PreTrainedModel):
        raise ValueError(f"give image_processor beside a {type(backbone).__name__} as backbone; a folder has its own.")
    if backbone is None:
        return default()
    return load_named(AutoImageProcessor, "backbone", backbone, trust_remote_code, backend="pil")


def _fitting_image_processor(vision_config: Any) -> CaptionerImageProcessor:
    """Pictures as large as a fresh backbone's configuration says, if it does."""
    settings = vision_config.to_dict() if isinstance(vision_config, PreTrainedConfig) else vision_config or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"vision_config must be names and their values, not {settings!r}.")
    side = settings.get("image_size")
    if not isinstance(side, int):
        return CaptionerImageProcessor()
    return CaptionerImageProcessor(size={"height": side, "width": side})


def feature_width(features: int | HasFeatureSize | None) -> int | None:
    """Width of cached features, which may be given as the number itself."""
    return features if features is None or isinstance(features, int) else features.feature_size


def suppress_unknown(model: Any, tokenizer: Any) -> None:
    """Let a model never write the unknown word, which no caption needs; CLIP's and GPT-2's is their end token."""
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        model.generation_config.suppress_tokens = [unknown]


class NewCaptioner:
    """Mixin that gives captioners their `new`.

    Attributes:
        processor_class (`type[CaptionerProcessor]`): of a new captioner's processor.
    """

    processor_class: ClassVar[type[CaptionerProcessor]] = CaptionerProcessor
    config_class: Any
    backbone_reader: Any

    @classmethod
    def new(
        cls,
        captions: Iterable[str],
        backbone: str | Path | PreTrainedModel | None = None,
        features: int | HasFeatureSize | None = None,
        *,
        tokenizer: str | Path | PreTrainedTokenizerBase = WORDS,
        min_count: int = 5,
        word_rule: WordRule | None = None,
        word_order: str = "code_point",
        image_processor: Any = None,
        trust_remote_code: bool = False,
        **config: Any,
    ) -> tuple[Self, Any]:
        """Make a captioner that has learned nothing yet, and its processor.

        Args:
            captions (`Iterable[str]`): training captions, for the vocabulary.
            backbone (`str`, `Path` or `PreTrainedModel`, *optional*): pretrained vision model; folder, Hub name, or the
                model, with `image_processor` then.
            features (`int` or [`FeatureStore`], *optional*): the cached features to learn from, or their width. Without
                a `backbone` the captioner reads features only.
            tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`, defaults to `"words"`): the words of the captions, or
                the folder, Hub name or object of another tokenizer.
            min_count (`int`, defaults to 5): words seen less often become the unknown word.
            word_rule (`str` or `Callable`, *optional*, defaults to `"spaces"`): how captions are cut into words, as
                `"unicode"` for any language; see `build_vocabulary`.
            word_order (`str`, defaults to `"code_point"`): of the words' ids, or `"frequency"`; see `build_vocabulary`.
            image_processor (`BaseImageProcessor`, *optional*): by default that of the backbone.
            trust_remote_code (`bool`, defaults to `False`): whether code that comes with the backbone, or a function
                that `word_rule` names, may run.
            config: fields of the captioner's configuration. `vision_config` is that of a fresh backbone or, with a
                pretrained one, fields of its configuration that are to differ, such as its drop path rate.

        Returns:
            `tuple[PreTrainedModel, CaptionerProcessor]`

        Raises:
            ValueError: nothing to look at; an unknown field; cached features of another width than the backbone's; a
                name that cannot be loaded; a `word_rule` for another tokenizer than `"words"`.

        Example:

        ```python
        >>> from hf_captioners import ExpansionNetV2ForImageCaptioning
        >>> captions = ["a red wave", "a blue wave"]
        >>> sizes = {"d_model": 16, "num_attention_heads": 2, "encoder_expansion_groups": [4], "ffn_dim": 32}
        >>> model, processor = ExpansionNetV2ForImageCaptioning.new(captions, features=8, min_count=1, **sizes)
        >>> model.config.vocab_size, model.config.feature_size, processor.tokenizer.vocab_size
        (8, 8, 8)

        ```
        """
        cls._check_config(config, trust_remote_code)
        fresh = partial(_fitting_image_processor, config.get("vision_config"))
        preprocessor = new_image_processor(image_processor, backbone, trust_remote_code, fresh)
        longest = config.get("max_position_embeddings", cls.config_class.max_position_embeddings)
        words = new_tokenizer(captions, tokenizer, min_count, longest, trust_remote_code, word_rule, word_order)
        processor = cls.processor_class(preprocessor, words)
        settings = {"vocab_size": len(words), **special_token_ids(words), **config}
        model = cls._new_model(backbone, features, settings, trust_remote_code)
        suppress_unknown(model, words)
        return model, processor

    @classmethod
    def _check_config(cls, config: Mapping[str, Any], trust_remote_code: bool) -> None:
        """Refuse unknown fields, and code of others behind a known one."""
        check_fields(cls.config_class, config, f"{cls.__name__}.new:")
        if not trust_remote_code:
            refuse_kernels(config, f"{cls.__name__}.new")

    @classmethod
    def _new_model(cls, backbone: Any, features: Any, settings: dict[str, Any], trust_remote_code: bool) -> Any:
        """A fresh body behind a pretrained backbone, behind cached features or behind a fresh backbone."""
        make: Any = cls
        width = feature_width(features)
        if backbone is not None:
            tower = cls._tower(backbone, settings.pop("vision_config", {}), trust_remote_code)
            model = make.from_backbone(tower, cls.config_class(features_only=True, **settings))
            cls._check_width(model.config, width)
            return model
        if width is not None:
            return make(cls.config_class(features_only=True, feature_size=width, **settings))
        if "vision_config" not in settings:
            raise ValueError(f"{cls.__name__}.new: give backbone or features, or vision_config for a fresh backbone.")
        return make(cls.config_class(**settings))

    @classmethod
    def _check_width(cls, config: Any, width: int | None) -> None:
        """Cached features must be those of the backbone, if both are given."""
        if width not in (None, config.feature_size):
            raise ValueError(
                f"{cls.__name__}.new: features are {width} wide, but the backbone's {config.feature_size}; cache those "
                "of this backbone, or leave the backbone out."
            )

    @classmethod
    def _tower(cls, backbone: Any, changes: Mapping[str, Any], trust_remote_code: bool) -> PreTrainedModel:
        """The pretrained vision model, with other rates where they are given."""
        try:
            with foreign_code(backbone, trust_remote_code):
                tower = cls.backbone_reader.load(backbone, trust_remote_code=trust_remote_code)
        except OSError as error:
            raise ValueError(f"backbone={str(backbone)!r}: {loading_problem(backbone, error)}") from error
        check_fields(tower.config, changes, f"{cls.__name__}.new: vision_config")
        for name, value in changes.items():
            setattr(tower.config, name, value)
        return tower
