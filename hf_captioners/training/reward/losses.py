"""The losses of reward training, as functions of log-probabilities and rewards.

B pictures have k candidates each. Everything here is in the type of its arguments, float32 or float64, and only the
policy's log-probabilities carry a gradient. Integer rewards are taken as float32. Shapes must be those that are
documented: none is broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BASELINES = ("greedy", "mean", "leave_one_out")
NORMALIZATIONS = ("caption", "none", "token")


def advantages(
    rewards: torch.Tensor, baseline: str, greedy: torch.Tensor | None = None, valid: torch.Tensor | None = None
) -> torch.Tensor:
    """Advantages: how much better than expected each candidate is.

    Args:
        rewards (`torch.Tensor` of shape `(B, k)`): of the candidates.
        baseline (`str`): what is expected of a candidate: `"greedy"`, the reward of the picture's greedy caption
            (Rennie et al., 2017); `"mean"`, the mean of the picture's candidates; `"leave_one_out"`, the mean of its
            other candidates (Luo, 2020, and RLOO).
        greedy (`torch.Tensor` of shape `(B,)` or `(B, k)`, *optional*): rewards of the greedy captions, one of each
            picture or of each candidate, for `"greedy"`.
        valid (`torch.BoolTensor` of shape `(B, k)`, *optional*): candidates that take part; by default all.

    Returns:
        `torch.Tensor` of shape `(B, k)`: 0 for candidates that do not take part, and where there is nothing to compare
        with.

    Raises:
        ValueError: another baseline; `"greedy"` without greedy rewards; other shapes. Rewards that are not finite are
            no error: the advantages of their picture are not either, and a training says so in its logs.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.training.reward.losses import advantages
    >>> advantages(torch.tensor([[1.0, 2.0, 6.0]]), "leave_one_out")
    tensor([[-3.0000, -1.5000,  4.5000]])

    ```
    """
    rewards, valid = _checked_rewards(rewards, valid)
    if greedy is not None and greedy.shape != rewards.shape:
        _check_shape("greedy", greedy, "rewards", rewards, rewards.shape[:1])
        greedy = greedy[:, None]
    if baseline != "greedy":  # relative to the best, or equal rewards would differ from their mean by its rounding
        rewards = rewards - rewards.masked_fill(~valid, -torch.inf).amax(dim=1, keepdim=True).clamp(
            min=torch.finfo(rewards.dtype).min
        )
    kept = rewards.masked_fill(~valid, 0.0)
    total, number = kept.sum(dim=1, keepdim=True), valid.sum(dim=1, keepdim=True)
    if baseline == "greedy":
        if greedy is None:
            raise ValueError("baseline='greedy' needs the rewards of the greedy captions.")
        gain = kept - greedy
    elif baseline == "mean":
        gain = kept - total / number.clamp(min=1)
    elif baseline == "leave_one_out":
        gain = torch.where(number > 1, kept - (total - kept) / (number - 1).clamp(min=1), 0.0)
    else:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, not {baseline!r}.")
    return gain.masked_fill(~valid, 0.0)


def self_critical_loss(
    log_probs: torch.Tensor, mask: torch.Tensor, advantages: torch.Tensor, normalization: str = "caption"
) -> torch.Tensor:
    """REINFORCE with a baseline, summed over candidates or tokens; divide by their number.

    Args:
        log_probs (`torch.Tensor` of shape `(N, T)`): of the tokens of N candidates.
        mask (`torch.Tensor` of shape `(N, T)`): 1 or `True` for tokens that count; what the others hold is not looked
            at.
        advantages (`torch.Tensor` of shape `(N,)`): of the candidates; no gradient flows into them.
        normalization (`str`, defaults to `"caption"`): `"caption"`, each caption's mean over its own tokens; `"none"`,
            the sum over its tokens, as in ExpansionNet v2; `"token"`, also the sum, but counted in tokens, as in SATIC:
            see [`loss_items`].

    Returns:
        `torch.Tensor` of shape `()`: - sum of A log p.

    Raises:
        ValueError: another normalization; other shapes.
    """
    _check_normalization(normalization)
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs must have the shape (N, T), not {tuple(log_probs.shape)}.")
    _check_shape("mask", mask, "log_probs", log_probs, log_probs.shape)
    _check_shape("advantages", advantages, "log_probs", log_probs, log_probs.shape[:1])
    scores = log_probs.masked_fill(mask == 0, 0.0).sum(dim=1)
    if normalization == "caption":
        scores = scores / mask.sum(dim=1).clamp(min=1)
    return -(advantages.detach().to(scores.dtype) * scores).sum()


def loss_items(mask: torch.Tensor, normalization: str) -> torch.Tensor:
    """Divisor of the sum in [`self_critical_loss`]: the number of tokens or of candidates, shape `()`."""
    _check_normalization(normalization)
    return mask.sum() if normalization == "token" else torch.tensor(len(mask), device=mask.device)


def _check_normalization(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, not {normalization!r}.")


def _check_shape(
    name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor, expected: tuple[int, ...]
) -> None:
    if tensor.shape != expected:
        shapes = f"{tuple(tensor.shape)}, but {other_name} has {tuple(other.shape)}"
        raise ValueError(f"{name} has the shape {shapes}; expected {tuple(expected)}.")


def _checked_rewards(rewards: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards as floating-point numbers and who takes part, both (B, k)."""
    if rewards.ndim != 2:
        raise ValueError(f"rewards must have the shape (B, k), not {tuple(rewards.shape)}.")
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    _check_shape("valid", valid, "rewards", rewards, rewards.shape)
    if valid.dtype != torch.bool:
        raise ValueError(f"valid must be of torch.bool, not {valid.dtype}.")
    return rewards if rewards.is_floating_point() else rewards.float(), valid


@dataclass
class DiCOLoss:
    """Result of [`dico_loss`]; B pictures, k candidates.

    Attributes:
        per_image (`torch.Tensor` of shape `(B,)`): loss, with gradient; 0 for a picture without a loser.
        winners (`torch.BoolTensor` of shape `(B, k)`): the candidate with the best reward.
        gammas (`torch.Tensor` of shape `(B, k)`): weights of the losers, which sum to 1; 0 for the winner.
        chosen_rewards, rejected_rewards (`torch.Tensor` of shape `(B,)`): implicit rewards, beta times the log-ratio of
            the winner, and of the losers with their weights.
        is_pair (`torch.BoolTensor` of shape `(B,)`): whether the picture has a winner and a loser.
    """

    per_image: torch.Tensor
    winners: torch.Tensor
    gammas: torch.Tensor
    chosen_rewards: torch.Tensor
    rejected_rewards: torch.Tensor
    is_pair: torch.Tensor


def dico_loss(
    policy_log_probs: torch.Tensor,
    reference_log_probs: torch.Tensor,
    rewards: torch.Tensor,
    beta: float,
    reward_temperature: float,
    valid: torch.Tensor | None = None,
) -> DiCOLoss:
    """Direct CLIP-based optimisation (Moratelli et al., 2024): the best candidate against a mix of the others.

    With rho the log-ratio of policy and reference, w the winner and gamma the softmax of the reward gaps R_w - R_i over
    the losers, divided by the temperature: -log sigmoid(beta (rho_w - sum_i gamma_i rho_i)). With k = 2 this is the
    sigmoid loss of DPO.

    Args:
        policy_log_probs (`torch.Tensor` of shape `(B, k)`): of whole candidates, with gradient.
        reference_log_probs (`torch.Tensor` of shape `(B, k)`): of the frozen reference model.
        rewards (`torch.Tensor` of shape `(B, k)`): the first one of equal best rewards wins.
        beta (`float`): scale of the implicit reward.
        reward_temperature (`float`): of the softmax, above 0; the paper's code multiplies the gaps by 300, so 1 / 300.
        valid (`torch.BoolTensor` of shape `(B, k)`, *optional*): candidates that take part; by default all.

    Returns:
        [`DiCOLoss`]

    Raises:
        ValueError: other shapes; a reward of a candidate that takes part is not finite; a temperature that is not
            above 0.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.training.reward.losses import dico_loss
    >>> policy, reference = torch.tensor([[-4.0, -5.0, -6.0]]), torch.tensor([[-5.0, -5.0, -5.0]])
    >>> out = dico_loss(policy, reference, torch.tensor([[0.9, 0.5, 0.5]]), beta=0.2, reward_temperature=0.1)
    >>> out.gammas, round(float(out.per_image[0]), 4)
    (tensor([[0.0000, 0.5000, 0.5000]]), 0.5544)

    ```
    """
    rewards, valid = _checked_rewards(rewards.detach(), valid)
    _check_shape("policy_log_probs", policy_log_probs, "rewards", rewards, rewards.shape)
    _check_shape("reference_log_probs", reference_log_probs, "rewards", rewards, rewards.shape)
    if not reward_temperature > 0:
        raise ValueError(f"reward_temperature must be above 0, not {reward_temperature}.")
    lost = valid & ~rewards.isfinite()
    if lost.any():
        row, column = lost.nonzero()[0].tolist()
        number = float(rewards[row, column])
        raise ValueError(f"rewards[{row}, {column}] is {number}; expected a finite number, or valid=False there.")
    best = rewards.masked_fill(~valid, -torch.inf).argmax(dim=1, keepdim=True)
    winners = torch.zeros_like(valid).scatter(1, best, True)
    losers = valid & ~winners
    is_pair = losers.any(dim=1) & valid.any(dim=1)
    gaps = (rewards.gather(1, best) - rewards) / reward_temperature
    gammas = gaps.masked_fill(~losers, -torch.inf).softmax(dim=1).masked_fill(~losers, 0.0)  # NaN where all are masked
    ratios = policy_log_probs - reference_log_probs.detach()
    chosen = beta * ratios.gather(1, best).squeeze(1)
    rejected = beta * (gammas.to(ratios.dtype) * ratios).sum(dim=1)
    per_image = -torch.nn.functional.logsigmoid(chosen - rejected)
    return DiCOLoss(
        per_image=per_image.masked_fill(~is_pair, 0.0),
        winners=winners & is_pair[:, None],
        gammas=gammas,
        chosen_rewards=chosen.detach(),
        rejected_rewards=rejected.detach(),
        is_pair=is_pair,
    )
