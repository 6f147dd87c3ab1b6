"""What the reward training examples read: the captioner to start from, and the rewards, by name."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...data.rows import FeatureDataset
from ...metrics.cider.document_frequency import DocumentFrequencies
from ...metrics.clip.clip_score import ClipScorer
from ...metrics.clip.pac_score import PacScorer
from ...metrics.tokens import tokenizer_name
from ...modeling.captioner_foreign import load_processor
from ...modeling.captioner_trust import foreign_code, load_pretrained
from ...rewards import BleuReward, CiderDReward, ClipReward, LengthReward, RepetitionReward
from ...rewards.cider import END, default_reward
from ..common import TrustArguments

CLIP_SCORERS = {"clip_s": ClipScorer, "pac_s": PacScorer, "ref_clip_s": ClipScorer, "ref_pac_s": PacScorer}
CLIP_VARIANTS = {
    "published": "the metric",
    "dico": "without prefix and without clipping at 0, as in DiCO's code",
    "dico_ids": "the same of the captioner's token ids and prepared pictures, as DiCO's code has it exactly",
}
REWARDS = ("cider_d", "bleu_4", *CLIP_SCORERS, "repetition", "length")


# fields of every configuration that say what it is, not how the captioner works
_NO_OPTIONS = {"architectures", "dtype", "transformers_version"}


@dataclass
class CaptionerArguments(TrustArguments):
    """Options of the reward training examples that say what learns; [`load_captioner`] reads them.

    Attributes:
        model (`str`): captioner to start from.
        model_options (`dict`, *optional*): fields of its configuration that are to differ, such as dropout rates.
        lora_rank (`int`, defaults to 0): rank of new adapters; 0 to train the model itself, or the adapters it has.
        lora_alpha (`float`, *optional*): of the adapters; by default twice the rank.
        lora_target_modules (`list[str]`, *optional*): layers that get adapters; by default those that the captioner
            names. A `VisionEncoderDecoderModel` names none.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the model, or with the CLIP model
            of a reward, may run.
    """

    model: str = field(metadata={"help": "Captioner to start from, or adapters of one; a folder or Hub name."})
    model_options: dict | str | None = field(
        default=None, metadata={"help": "Fields of its configuration that are to differ, as JSON."}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Rank of new LoRA adapters; 0 to train the model itself, or the adapters it has."}
    )
    lora_alpha: float | None = field(default=None, metadata={"help": "Of the adapters; by default twice the rank."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers that get adapters; by default the captioner's own choice."}
    )

    def __post_init__(self) -> None:
        if isinstance(self.model_options, str):
            self.model_options = json.loads(self.model_options)
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, it is {self.lora_rank}.")
        for name, value in (("lora_alpha", self.lora_alpha), ("lora_target_modules", self.lora_target_modules)):
            if value is not None and not self.lora_rank:
                raise ValueError(f"{name}={value} is of new adapters; give lora_rank too.")


@dataclass
class RewardArguments:
    """Options of the reward training examples that say what is rewarded; [`load_rewards`] reads them.

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


@contextmanager
def naming_option(option: str, value: Any) -> Iterator[None]:
    """Say which option named what cannot be found or read.

    Args:
        option (`str`): its name, without dashes.
        value: what it says.

    Raises:
        ValueError: in the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        absent = (
            "" if Path(str(value)).exists() else "there is no such file or folder, nor can it be had from the Hub: "
        )
        raise ValueError(f"--{option} {value}: {absent}{' '.join(str(error).split())}") from error


def load_captioner(arguments: CaptionerArguments) -> tuple[Any, Any, Any]:
    """The captioner to train.

    A folder of adapters, as training with `lora_rank` leaves it, is opened as the model that they belong to with these
    adapters, which go on learning.

    Args:
        arguments ([`CaptionerArguments`]): which.

    Returns:
        `tuple`: the model in float32, its processor, and the configuration of new adapters or `None`.

    Raises:
        ValueError: there is no such captioner; a `lora_rank` for one that has adapters; a `VisionEncoderDecoderModel`
            whose tokenizer or generation settings say too little.
    """
    from transformers.utils import find_adapter_config_file

    name = arguments.model
    with naming_option("model", name):
        has_adapters = find_adapter_config_file(name) is not None
    if has_adapters:
        return (*_load_adapters(arguments), None)
    with naming_option("model", name):
        model = _load_model(name, arguments)
        processor = _processor_of(model, name, arguments)
    adapters = None
    if arguments.lora_rank:
        from peft import LoraConfig

        alpha = 2 * arguments.lora_rank if arguments.lora_alpha is None else arguments.lora_alpha
        targets = arguments.lora_target_modules
        adapters = LoraConfig(r=arguments.lora_rank, lora_alpha=alpha, target_modules=targets)  # type: ignore[arg-type]
    return model, processor, adapters


def _load_adapters(arguments: CaptionerArguments) -> tuple[Any, Any]:
    """The model that saved adapters belong to with these, ready to learn, and the processor."""
    from peft import PeftConfig, PeftModel
    from transformers.utils import cached_file, find_adapter_config_file

    name = arguments.model
    if arguments.lora_rank:
        raise ValueError(
            f"--lora_rank {arguments.lora_rank}: --model {name} has adapters already, and these go on learning; leave "
            "--lora_rank away, or merge them into their model first."
        )
    with foreign_code(name, arguments.trust_remote_code):
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
    if base is None:
        raise ValueError(f"--model {name}: its adapter_config.json has no base_model_name_or_path, to find its model.")
    with naming_option(f"model {name}: the adapters belong to", base):
        if find_adapter_config_file(base) is not None:
            raise ValueError(f"--model {name}: the adapters belong to {base}, which is adapters itself; merge those.")
        model = _load_model(base, arguments)
    with naming_option("model", name):
        adapted = PeftModel.from_pretrained(model, name, is_trainable=True)
    try:
        source = name if cached_file(name, "processor_config.json") else base
    except OSError:  # adapters alone
        source = base
    with naming_option("model", source):
        return adapted, _processor_of(model, source, arguments)


def _load_model(name: str, arguments: CaptionerArguments) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    options, trust = _mapping_of(arguments.model_options), arguments.trust_remote_code
    if options:
        _check_options(load_pretrained(AutoConfig, name, trust), options)
    return load_pretrained(AutoModelForImageTextToText, name, trust, dtype=torch.float32, **options)


def _mapping_of(options: Any) -> dict[str, Any]:
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"--model_options {options!r}: expected fields of the configuration and their values.")
    return options or {}


def _check_options(config: Any, options: dict[str, Any]) -> None:
    """Refuse what is no field of the configuration: `from_pretrained` would take it as an argument of its own."""
    known = {one.name for one in fields(config)} - _NO_OPTIONS
    for name in options:
        if name not in known:
            near = get_close_matches(str(name), sorted(known), 3)
            advice = f"do you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(sorted(known))}."
            raise ValueError(f"--model_options {name}: no field of {type(config).__name__}; {advice}")


def _processor_of(model: Any, name: str, arguments: CaptionerArguments) -> Any:
    try:
        return load_processor(model, name, arguments.trust_remote_code)
    except ValueError as error:
        raise ValueError(f"--model {error}") from error


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
        ours, theirs = (_normalisation(one) for one in (processor.image_processor, scorer.image_processor))
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
        return vars(importlib.import_module(module))[function]
    except ImportError as error:
        raise ValueError(f"--rewards {name}: {error}") from error
    except KeyError as error:
        raise ValueError(f"--rewards {name}: the module {module} has no {function}.") from error
