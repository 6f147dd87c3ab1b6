"""Options of training that say what is rewarded, and the rewards that they name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, fields
from typing import Any

from ...data.rows import FeatureDataset
from ...metrics.cider.document_frequency import DocumentFrequencies
from ...metrics.clip.clip_score import ClipScorer
from ...metrics.clip.pac_score import PacScorer
from ...metrics.tokens import tokenizer_name
from ...rewards import BleuReward, CiderDReward, ClipReward, LengthReward, RepetitionReward
from ...rewards.cider import END, default_reward
from .captioner_arguments import naming_option

CLIP_SCORERS = {"clip_s": ClipScorer, "pac_s": PacScorer, "ref_clip_s": ClipScorer, "ref_pac_s": PacScorer}
CLIP_VARIANTS = {
    "published": "the metric",
    "dico": "without prefix and without clipping at 0, as in DiCO's code",
    "dico_ids": "the same of the captioner's token ids and prepared pictures, as DiCO's code has it exactly",
}
REWARDS = ("cider_d", "bleu_4", *CLIP_SCORERS, "repetition", "length")
READERS: dict[str, tuple[str, ...]] = {  # by option, the rewards that read it
    "clip_model": tuple(CLIP_SCORERS),
    "clip_variant": tuple(CLIP_SCORERS),
    "document_frequencies": ("cider_d",),
    "min_words": ("length",),
    "max_words": ("length",),
    "reward_tokenizer": ("cider_d", "bleu_4", "repetition", "length"),
}


@dataclass
class RewardArguments:
    """Options of the rewards; [`load_rewards`] reads it.

    Attributes:
        rewards (`list[str]`, defaults to `["cider_d"]`): names of [`REWARDS`], or functions as `module:function`.
        clip_model (`str`, *optional*): CLIP model of `clip_s`, `pac_s` and the like.
        clip_variant (`str`, defaults to `"published"`): of these; `"dico"` without the prefix "A photo depicts " and
            without clipping at 0; `"dico_ids"` also of the captioner's token ids and, unless features are cached, of
            its prepared pictures: the reward of DiCO's code, for captioners with CLIP's vocabulary.
        document_frequencies (`str`, *optional*): of `cider_d`, saved; by default those of the training captions.
        min_words (`int`, defaults to 0), max_words (`int`, *optional*): of `length`.
        reward_tokenizer (`str`, defaults to `"ptb"`): what cuts captions into words for `cider_d`, `bleu_4`,
            `repetition` and `length`, see [`~hf_captioners.metrics.tokenize`].

    Raises:
        ValueError: an unknown variant or tokenizer, or an option that none of the rewards reads.
    """

    rewards: list[str] = field(
        default_factory=lambda: ["cider_d"],
        metadata={"help": f"Any of {', '.join(REWARDS)}; or your own as module:function. Weights: --reward_weights."},
    )
    clip_model: str | None = field(default=None, metadata={"help": "CLIP model of clip_s and pac_s; a folder or name."})
    clip_variant: str = field(
        default="published",
        metadata={"help": f"Of these: {'; '.join(f'{name}: {what}' for name, what in CLIP_VARIANTS.items())}."},
    )
    document_frequencies: str | None = field(
        default=None,
        metadata={"help": f"Saved document frequencies of cider_d, with {END!r} as end; by default the training's."},
    )
    min_words: int = field(default=0, metadata={"help": "Of length: fewer words cost 1 each."})
    max_words: int | None = field(default=None, metadata={"help": "Of length: more words cost 1 each."})
    reward_tokenizer: str = field(
        default="ptb",
        metadata={"help": "What cuts captions into words: ptb, unicode (any language), or module:function."},
    )

    def __post_init__(self) -> None:
        if self.clip_variant not in CLIP_VARIANTS:
            raise ValueError(f"clip_variant must be {' or '.join(CLIP_VARIANTS)}, not {self.clip_variant!r}.")
        tokenizer_name(self.reward_tokenizer)  # refuses an unknown one
        usual = {option.name: option.default for option in fields(self)}
        for name, readers in READERS.items():
            value = vars(self)[name]
            if value != usual[name] and not {*readers} & {*self.rewards}:
                raise ValueError(
                    f"--{name} {value} has no effect: it is read by {', '.join(readers)}, and --rewards has "
                    f"{', '.join(self.rewards)}; leave it out."
                )


def load_rewards(arguments: RewardArguments, rows: Any, processor: Any, trust_remote_code: bool = False) -> list[Any]:
    """The reward functions.

    Args:
        arguments ([`RewardArguments`]): which.
        rows (`Dataset`): to train on; document frequencies are counted in their captions.
        processor ([`CaptionerProcessor`]): of the captioner; its tokenizer knows the end of a caption.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with `clip_model` may run.

    Returns:
        `list[Callable]`

    Raises:
        ValueError: an unknown name, or a reward without what it needs.
    """
    return [_load(name, arguments, rows, processor, trust_remote_code) for name in arguments.rewards]


def _load(name: str, arguments: RewardArguments, rows: Any, processor: Any, trust: bool) -> Any:
    eos_token_id, words = processor.tokenizer.eos_token_id, arguments.reward_tokenizer
    if ":" in name:
        return _imported(name)
    if name == "cider_d":
        if arguments.document_frequencies is None:
            return default_reward(rows, eos_token_id, words)
        with naming_option("document_frequencies", arguments.document_frequencies):
            frequencies = DocumentFrequencies.load(arguments.document_frequencies)
        try:
            frequencies.check_tokenizer(words)
        except ValueError as error:
            raise ValueError(
                f"--document_frequencies {arguments.document_frequencies}: {error} (--reward_tokenizer)"
            ) from error
        return CiderDReward(frequencies, eos=END, eos_token_id=eos_token_id, tokenizer=words)
    if name == "bleu_4":
        return BleuReward(tokenizer=words)
    if name in CLIP_SCORERS:
        return _clip_reward(name, arguments, rows, processor, trust)
    if name == "repetition":
        return RepetitionReward(tokenizer=words)
    if name == "length":
        return LengthReward(arguments.min_words, arguments.max_words, tokenizer=words)
    raise ValueError(f"--rewards {name}: no such reward; expected one of {', '.join(REWARDS)} or module:function.")


def _clip_reward(name: str, arguments: RewardArguments, rows: Any, processor: Any, trust: bool) -> ClipReward:
    if arguments.clip_model is None:
        raise ValueError(f"--rewards {name} needs --clip_model: the folder or Hub name of a CLIP model.")
    tokenizer = processor.tokenizer
    options: dict[str, Any] = {"trust_remote_code": trust}
    if arguments.clip_variant != "published":
        options |= {"prefix": "", "clip_negative": False}
    if arguments.clip_variant == "dico_ids" and tokenizer.pad_token_id != tokenizer.eos_token_id:
        options["pad_token_id"] = tokenizer.pad_token_id
    with naming_option("clip_model", arguments.clip_model):
        scorer = CLIP_SCORERS[name](arguments.clip_model, **options)
    choice: dict[str, Any] = {"use_references": name.startswith("ref_")}
    if arguments.clip_variant == "dico_ids":
        prepared = not isinstance(rows, FeatureDataset)  # a batch of cached features has no pixel_values
        _check_shares_inputs(scorer, processor, prepared)
        choice |= {"use_ids": True, "use_pixel_values": prepared}
    return ClipReward(scorer, **choice)


def _check_shares_inputs(scorer: ClipScorer, processor: Any, prepared: bool) -> None:
    """Token ids, and prepared pictures, must mean the same to captioner and CLIP model."""
    advice = "--clip_variant dico scores texts and pictures instead"
    vocabulary = processor.tokenizer.get_vocab()
    own = {word: index for word, index in vocabulary.items() if index != processor.tokenizer.pad_token_id}
    text: Any = scorer.model.config.text_config
    if scorer.tokenizer is None:
        same = sorted(own.values()) == list(range(text.vocab_size))
    else:
        same = own.items() <= scorer.tokenizer.get_vocab().items()
    if not same:
        raise ValueError(f"--clip_variant dico_ids: the captioner's vocabulary is not that of --clip_model; {advice}.")
    if prepared and scorer.image_processor is not None:
        ours, theirs = map(_normalisation, (processor.image_processor, scorer.image_processor))
        if ours != theirs:
            raise ValueError(
                f"--clip_variant dico_ids: the captioner's pictures have mean and deviation {ours}, those of "
                f"--clip_model {theirs}; {advice}."
            )


def _normalisation(image_processor: Any) -> list[list[float]]:
    settings = image_processor.to_dict()
    return [[float(value) for value in settings[name]] for name in ("image_mean", "image_std")]


def _imported(name: str) -> Any:
    """The function that `module:function` names."""
    module, function = name.split(":", 1)
    try:
        function_object = vars(importlib.import_module(module))[function]
    except ImportError as error:
        raise ValueError(f"--rewards {name}: {error}") from error
    except KeyError as error:
        raise ValueError(f"--rewards {name}: the module {module} has no {function}.") from error
    if isinstance(function_object, type) or not callable(function_object):
        raise ValueError(f"--rewards {name}: {function} is no function; name one, or an object that can be called.")
    return function_object
