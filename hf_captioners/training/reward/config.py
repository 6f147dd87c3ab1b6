"""Options that self-critical training and DiCO share."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

from ..arguments import CaptionerTrainingArguments
from .candidates import STRATEGIES

# options of generate, and where they are set instead of in generation_kwargs
SET_ELSEWHERE = {
    "max_length": "max_completion_length",
    "max_new_tokens": "max_completion_length",
    "num_return_sequences": "num_generations",
    "do_sample": "candidate_strategy",
    "eos_token_id": "eos_token_id of the model's generation_config",
    "pad_token_id": "pad_token_id of the model's generation_config",
}
FOREIGN_CODE = ("custom_generate", "trust_remote_code")
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
# what generate would do behind the choice of the next token, except with beams
TOO_LATE = ("num_beams", *OF_SAMPLING, "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass
class RewardTrainingConfig(CaptionerTrainingArguments):
    r"""Options that [`SCSTConfig`] and [`DiCOConfig`] share. Names are TRL's where TRL has the option.

    A batch is a batch of pictures: TRL's trainers count completions, here `per_device_train_batch_size` pictures have
    `num_generations` captions each.

    Parameters:
        > Parameters that control generation

        num_generations (`int`, defaults to 5):
            Candidates of a picture.
        candidate_strategy (`str`, defaults to `"beam"`):
            `"beam"`, the n-best list of as many beams; `"sample"`; or `"diverse_beam"`, beams in groups of one that
            avoid each other's words. SCD-Net has no beams and draws its candidates with the first two alike.
        max_completion_length (`int`, defaults to 29):
            Longest candidate in tokens behind the start token, end token included.
        temperature (`float`, defaults to 1.0), top_p (`float`, defaults to 1.0), top_k (`int`, defaults to 0), min_p
            (`float`, *optional*), repetition_penalty (`float`, defaults to 1.0): of `"sample"`, as in `generate`; the
            last one of `"diverse_beam"` too. The loss looks at the model's own distribution, at temperature 1.
        diversity_penalty (`float`, defaults to 0.5):
            Of `"diverse_beam"`: taken from a word's log-probability for each earlier candidate that has it there.
        generation_kwargs (`dict`, *optional*):
            Further options of `generate`, such as `length_penalty`; on the command line as JSON.
        generate_with_dropout (`bool`, defaults to `False`):
            Write the candidates with dropout, as the original of DiCO does by accident.
        mask_truncated_completions (`bool`, defaults to `False`):
            Candidates without end token teach nothing.
        deduplicate_candidates (`bool`, defaults to `False`):
            Of candidates with the same text only the first takes part.

        > Parameters that control the rewards

        reward_weights (`list[float]`, *optional*):
            A weight for each reward function; 1 by default.
        beta (`float`):
            Strength of the tie to the reference model; see the subclass.

        > Parameters that control the model

        disable_dropout (`bool`, defaults to `False`):
            Learn in evaluation mode.
        cache_image_features (`bool`, defaults to `False`):
            Keep in memory what the frozen backbone has made of each picture; nothing where rows have features. Writing
            the features to disk first, with `hf-captioners features`, also spares opening the pictures.
        sync_ref_model (`bool`, defaults to `False`), ref_model_mixup_alpha (`float`, defaults to 0.6),
            ref_model_sync_steps (`int`, defaults to 512): let the reference follow the policy (arXiv 2404.09656).

        > Parameters that control logging

        log_completions (`bool`, defaults to `False`):
            Print a table of completions and their rewards at every log, and keep all of them as JSON lines in the
            output folder.
        num_completions_to_print (`int`, *optional*):
            Rows of that table; by default 8.
        collapse_patience (`int`, defaults to 5):
            Stop with a diagnosis after so many logs in which the reward has collapsed; 0 to go on all the same.
    """

    logging_steps: float = field(default=10, metadata={"help": "Log every that many optimizer steps."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Pictures, not captions, on a device."})
    num_generations: int = field(default=5, metadata={"help": "Candidates of a picture."})
    candidate_strategy: str = field(default="beam", metadata={"help": "'beam', 'sample' or 'diverse_beam'."})
    max_completion_length: int = field(
        default=29, metadata={"help": "Longest candidate in tokens, without the start token."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Of 'sample'."})
    top_p: float = field(default=1.0, metadata={"help": "Of 'sample': smallest set of words with this probability."})
    top_k: int = field(default=0, metadata={"help": "Of 'sample': that many words; 0 for all."})
    min_p: float | None = field(
        default=None, metadata={"help": "Of 'sample': words with at least that share of the best one's probability."}
    )
    repetition_penalty: float = field(default=1.0, metadata={"help": "Of 'sample': above 1 against repetition."})
    diversity_penalty: float = field(default=0.5, metadata={"help": "Of 'diverse_beam'."})
    generation_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Further options of generate, as JSON."}
    )
    generate_with_dropout: bool = field(default=False, metadata={"help": "Write the candidates with dropout."})
    mask_truncated_completions: bool = field(
        default=False, metadata={"help": "Candidates without end token teach nothing."}
    )
    deduplicate_candidates: bool = field(default=False, metadata={"help": "Drop candidates that repeat another one."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "A weight for each reward function."})
    beta: float = field(default=0.0, metadata={"help": "Strength of the tie to the reference model."})
    disable_dropout: bool = field(default=False, metadata={"help": "Learn in evaluation mode."})
    cache_image_features: bool = field(
        default=False, metadata={"help": "Keep what the frozen backbone made of each picture in memory."}
    )
    sync_ref_model: bool = field(default=False, metadata={"help": "Let the reference follow the policy."})
    ref_model_mixup_alpha: float = field(default=0.6, metadata={"help": "Share of the policy in a new reference."})
    ref_model_sync_steps: int = field(default=512, metadata={"help": "Optimizer steps between two syncs."})
    log_completions: bool = field(default=False, metadata={"help": "Print and keep completions and their rewards."})
    num_completions_to_print: int | None = field(default=None, metadata={"help": "Rows of the printed table."})
    collapse_patience: int = field(
        default=5, metadata={"help": "Stop after so many logs with a collapsed reward; 0 to go on all the same."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("num_generations", "max_completion_length", "ref_model_sync_steps")
        if self.candidate_strategy not in STRATEGIES:
            known = ", ".join(STRATEGIES)
            raise ValueError(f"candidate_strategy must be one of {known}, not {self.candidate_strategy!r}.")
        for name in ("temperature", "repetition_penalty"):
            if not 0 < vars(self)[name] < math.inf:
                raise ValueError(f"{name} must be above 0, not {vars(self)[name]}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be in [0, 1] or not given, not {self.min_p}.")
        if not 0 < self.ref_model_mixup_alpha <= 1:
            raise ValueError(f"ref_model_mixup_alpha must be in (0, 1], not {self.ref_model_mixup_alpha}.")
        for name in ("beta", "top_k", "collapse_patience", "diversity_penalty"):
            if vars(self)[name] < 0:
                raise ValueError(f"{name} must not be negative, it is {vars(self)[name]}.")
            if not math.isfinite(vars(self)[name]):
                raise ValueError(f"{name} must be finite, not {vars(self)[name]}.")
        if (self.num_completions_to_print or 0) < 0:
            raise ValueError(f"num_completions_to_print must not be negative, it is {self.num_completions_to_print}.")
        if self.cache_image_features and self.train_backbone != "none":
            raise ValueError(
                f"cache_image_features=True keeps what the backbone sees, but train_backbone={self.train_backbone!r} "
                "changes it."
            )
        self._refuse_unread()
        self._check_generation_kwargs()

    def _refuse_unread(self) -> None:
        """Refuse options that others switch off, and those of cross-entropy."""
        strategy = f"with candidate_strategy={self.candidate_strategy!r}"
        if self.candidate_strategy != "sample":
            self.refuse_unread(strategy, "temperature", "top_p", "top_k", "min_p")
        if self.candidate_strategy == "beam":
            self.refuse_unread(f"{strategy} (generation_kwargs may have it)", "repetition_penalty")
        if self.candidate_strategy != "diverse_beam":
            self.refuse_unread(strategy, "diversity_penalty")
        if not self.sync_ref_model:
            self.refuse_unread("without sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps")
        if not self.log_completions:
            self.refuse_unread("without log_completions", "num_completions_to_print")
        self.refuse_unread("on rewards", "label_smoothing_factor", "average_tokens_across_devices")

    def _check_generation_kwargs(self) -> None:
        """Read what the command line gave; refuse what would break the candidates, or be without effect."""
        if isinstance(self.generation_kwargs, str):
            try:
                self.generation_kwargs = json.loads(self.generation_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(f"generation_kwargs={self.generation_kwargs!r} is not JSON: {error}.") from error
        options = {} if self.generation_kwargs is None else self.generation_kwargs
        if not isinstance(options, dict):
            raise ValueError(f"generation_kwargs must be options by name, not {options!r}.")
        for name in options:
            if name in SET_ELSEWHERE:
                raise ValueError(f"generation_kwargs must not have {name}: set {SET_ELSEWHERE[name]}.")
            if name in FOREIGN_CODE:
                raise ValueError(f"generation_kwargs must not have {name}: the candidates come from no foreign code.")
            if name in TOO_LATE and self.candidate_strategy != "beam":
                instead = f"set {name} itself" if name in OF_SAMPLING else "leave it out"
                raise ValueError(
                    f"generation_kwargs: {name} has no effect with candidate_strategy={self.candidate_strategy!r}; "
                    f"{instead}."
                )
        if options.get("num_beams", self.num_generations) < self.num_generations:
            raise ValueError(
                f"generation_kwargs: num_beams={options['num_beams']} beams do not give "
                f"num_generations={self.num_generations} candidates."
            )
