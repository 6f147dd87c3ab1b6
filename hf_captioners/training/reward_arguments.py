"""What the reward training examples read: the captioner to start from, and the rewards, by name."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from typing import Any

from ..metrics.clip_score import ClipScorer
from ..metrics.document_frequency import DocumentFrequencies
from ..metrics.pac_score import PacScorer
from ..rewards import BleuReward, CiderDReward, ClipReward, LengthReward, RepetitionReward
from .scst_trainer import END, default_reward

CLIP_SCORERS = {"clip_s": ClipScorer, "pac_s": PacScorer, "ref_clip_s": ClipScorer, "ref_pac_s": PacScorer}
CLIP_VARIANTS: dict[str, dict[str, Any]] = {"published": {}, "dico": {"prefix": "", "clip_negative": False}}
REWARDS = ("cider_d", "bleu_4", *CLIP_SCORERS, "repetition", "length")


@dataclass
class CaptionerArguments:
    """Options of the reward training examples that say what learns; [`load_captioner`] reads them.

    Attributes:
        model (`str`): captioner to start from.
        model_options (`dict`, *optional*): fields of its configuration that are to differ, such as dropout rates.
        lora_rank (`int`, defaults to 0): rank of adapters; 0 to train the model itself.
        lora_alpha (`float`, *optional*): of the adapters; by default twice the rank.
    """

    model: str = field(metadata={"help": "Captioner to start from; a folder or Hub name."})
    model_options: dict | str | None = field(
        default=None, metadata={"help": "Fields of its configuration that are to differ, as JSON."}
    )
    lora_rank: int = field(default=0, metadata={"help": "Rank of LoRA adapters; 0 to train the model itself."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Of the adapters; by default twice the rank."})

    def __post_init__(self) -> None:
        if isinstance(self.model_options, str):
            self.model_options = json.loads(self.model_options)
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank must not be negative, it is {self.lora_rank}.")


@dataclass
class RewardArguments:
    """Options of the reward training examples that say what is rewarded; [`load_rewards`] reads them.

    Attributes:
        rewards (`list[str]`, defaults to `["cider_d"]`): names of [`REWARDS`], or functions as `module:function`.
        clip_model (`str`, *optional*): CLIP model of `clip_s`, `pac_s` and the like.
        clip_variant (`str`, defaults to `"published"`): of these; `"dico"` for that of DiCO's code, without the prefix
            "A photo depicts " and without clipping at 0.
        document_frequencies (`str`, *optional*): of `cider_d`, saved; by default those of the training captions.
        min_words (`int`, defaults to 0), max_words (`int`, *optional*): of `length`.
    """

    rewards: list[str] = field(
        default_factory=lambda: ["cider_d"],
        metadata={"help": f"Any of {', '.join(REWARDS)}; or your own as module:function. Weights: --reward_weights."},
    )
    clip_model: str | None = field(default=None, metadata={"help": "CLIP model of clip_s and pac_s; a folder or name."})
    clip_variant: str = field(
        default="published", metadata={"help": f"Of these: {' or '.join(CLIP_VARIANTS)}, that of DiCO's code."}
    )
    document_frequencies: str | None = field(
        default=None,
        metadata={"help": f"Saved document frequencies of cider_d, with {END!r} as end; by default the training's."},
    )
    min_words: int = field(default=0, metadata={"help": "Of length: fewer words cost 1 each."})
    max_words: int | None = field(default=None, metadata={"help": "Of length: more words cost 1 each."})

    def __post_init__(self) -> None:
        if self.clip_variant not in CLIP_VARIANTS:
            raise ValueError(f"clip_variant must be {' or '.join(CLIP_VARIANTS)}, not {self.clip_variant!r}.")


def load_captioner(arguments: CaptionerArguments) -> tuple[Any, Any, Any]:
    """The captioner to train.

    Args:
        arguments ([`CaptionerArguments`]): which.

    Returns:
        `tuple`: the model in float32, its processor, and the configuration of adapters or `None`.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options: Any = arguments.model_options or {}
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype=torch.float32, **options)
    adapters = None
    if arguments.lora_rank:
        from peft import LoraConfig

        alpha = 2 * arguments.lora_rank if arguments.lora_alpha is None else arguments.lora_alpha
        adapters = LoraConfig(r=arguments.lora_rank, lora_alpha=alpha)  # type: ignore[arg-type]
    return model, AutoProcessor.from_pretrained(arguments.model), adapters


def load_rewards(arguments: RewardArguments, rows: Any, processor: Any) -> list[Any]:
    """The reward functions.

    Args:
        arguments ([`RewardArguments`]): which.
        rows (`Dataset`): to train on; document frequencies are counted in their captions.
        processor ([`CaptionerProcessor`]): of the captioner; its tokenizer knows the end of a caption.

    Returns:
        `list[Callable]`

    Raises:
        ValueError: an unknown name, or a reward without what it needs.
    """
    return [_load(name, arguments, rows, processor.tokenizer.eos_token_id) for name in arguments.rewards]


def _load(name: str, arguments: RewardArguments, rows: Any, eos_token_id: int) -> Any:
    if ":" in name:
        return _imported(name)
    if name == "cider_d":
        if arguments.document_frequencies is None:
            return default_reward(rows, eos_token_id)
        frequencies = DocumentFrequencies.load(arguments.document_frequencies)
        return CiderDReward(frequencies, eos=END, eos_token_id=eos_token_id)
    if name == "bleu_4":
        return BleuReward()
    if name in CLIP_SCORERS:
        if arguments.clip_model is None:
            raise ValueError(f"--rewards {name} needs --clip_model: the folder or Hub name of a CLIP model.")
        scorer = CLIP_SCORERS[name](arguments.clip_model, **CLIP_VARIANTS[arguments.clip_variant])
        return ClipReward(scorer, use_references=name.startswith("ref_"))
    if name == "repetition":
        return RepetitionReward()
    if name == "length":
        return LengthReward(arguments.min_words, arguments.max_words)
    raise ValueError(f"--rewards {name}: no such reward; expected one of {', '.join(REWARDS)} or module:function.")


def _imported(name: str) -> Any:
    """The function that `module:function` names."""
    module, function = name.split(":", 1)
    try:
        return vars(importlib.import_module(module))[function]
    except ImportError as error:
        raise ValueError(f"--rewards {name}: {error}") from error
    except KeyError as error:
        raise ValueError(f"--rewards {name}: the module {module} has no {function}.") from error
