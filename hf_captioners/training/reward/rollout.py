"""A micro-batch as the loss reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .candidates import Candidates
from .functions import Rewards


@dataclass
class Rollout:
    """A micro-batch of B pictures as the loss reads it; k candidates of each picture.

    Attributes:
        image_inputs (`dict[str, Any]`): for the policy's `encode`; features where the backbone does not learn.
        columns (`dict[str, list]`): the rows' other columns.
        candidates ([`Candidates`]): captions.
        rewards (`torch.Tensor` of shape `(B, k)`): weighted sums of the reward functions; 0 where none applies.
        function_rewards ([`Rewards`]): what the functions gave.
        valid (`torch.BoolTensor` of shape `(B, k)`): candidates that take part.
        reference_log_probs (`torch.Tensor` of shape `(B * k, T - 1)`, *optional*): of the reference.
        policy_log_probs (`torch.Tensor` of shape `(B * k, T - 1)`, *optional*): of the policy as it wrote, without
            dropout, where the method needs them.
        greedy_rewards (`torch.Tensor` of shape `(B,)` or `(B, k)`, *optional*): of the greedy captions, one of each
            picture or of each candidate; 0 where none applies.
        advantages (`torch.Tensor` of shape `(B, k)`, *optional*): of self-critical training.
        weights (`torch.Tensor` of shape `(B, k)`, *optional*): of DiCO; 1 for the winner, -gamma for the others.
    """

    image_inputs: dict[str, Any]
    columns: dict[str, list[Any]]
    candidates: Candidates
    rewards: torch.Tensor
    function_rewards: Rewards
    valid: torch.Tensor
    reference_log_probs: torch.Tensor | None = None
    policy_log_probs: torch.Tensor | None = None
    greedy_rewards: torch.Tensor | None = None
    advantages: torch.Tensor | None = None
    weights: torch.Tensor | None = None
