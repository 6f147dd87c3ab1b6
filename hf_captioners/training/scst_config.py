"""Options of self-critical training."""

from __future__ import annotations

from dataclasses import dataclass, field

from .reward.config import RewardTrainingConfig
from .reward.losses import BASELINES


@dataclass
class SCSTConfig(RewardTrainingConfig):
    r"""Options of [`SCSTTrainer`], beside those of [`RewardTrainingConfig`].

    TRL's `num_iterations` is missing: the loss has no importance ratio that would make up for older candidates.

    Parameters:
        baseline (`str`, defaults to `"greedy"`):
            What a candidate's reward is compared with: `"greedy"`, that of the greedy caption (Rennie et al., 2017);
            `"mean"` of the picture's candidates, usual with beams (Cornia et al., 2020); `"leave_one_out"`, the mean of
            the other candidates (Luo, 2020: "new self-critical").
        length_normalize (`bool`, defaults to `True`):
            Divide a caption's log-probability by its tokens.
        normalize_tokens (`bool`, defaults to `False`):
            Instead, divide the loss of the whole optimizer step by all its tokens, as SATIC does. Neither of the two:
            the plain sum of a caption's log-probabilities, as in ExpansionNet v2.
        normalize_advantages (`bool`, defaults to `False`):
            Divide the advantages by their standard deviation over the optimizer step; not in evaluation, whose loss
            does not depend on its batches.
        beta (`float`, defaults to 0.0):
            Subtract from the reward `beta` times the log-ratio of policy and reference, as RLOO does. With 0 there is
            no reference, and no `kl` in the log.
        learning_rate (`float`, defaults to 5e-6)
    """

    learning_rate: float = field(default=5e-6, metadata={"help": "Rate of the optimizer."})
    baseline: str = field(default="greedy", metadata={"help": "'greedy', 'mean' or 'leave_one_out'."})
    length_normalize: bool = field(default=True, metadata={"help": "Divide log-probabilities by their tokens."})
    normalize_tokens: bool = field(default=False, metadata={"help": "Divide by all tokens of a step, as SATIC does."})
    normalize_advantages: bool = field(default=False, metadata={"help": "Divide advantages by their deviation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, not {self.baseline!r}.")
        if self.baseline != "greedy" and self.num_generations < 2:
            raise ValueError(f"baseline={self.baseline!r} compares candidates, but num_generations=1.")

    @property
    def normalization(self) -> str:
        """Divisor of the loss; see [`self_critical_loss`]."""
        if self.normalize_tokens:
            return "token"
        return "caption" if self.length_normalize else "none"
