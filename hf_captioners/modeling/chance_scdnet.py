"""Chance of SCD-Net's training steps: functions of seeds, the same on every machine and in every batch."""

from __future__ import annotations

import hashlib

import torch

from .diffusion_scdnet import TRAINING_END


def number_of(name: str, row: int) -> int:
    """Make a seed of the name of a picture and a candidate.

    Args:
        name (`str`): of the picture.
        row (`int`): the candidate.

    Returns:
        `int`: of 56 bits.
    """
    return int.from_bytes(hashlib.blake2b(f"{name} {row}".encode("utf-8", "replace"), digest_size=7).digest(), "big")


def step_of(seed: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Draw a training step.

    Args:
        seed (`int`): what it depends on.
        shape (`tuple[int, ...]`): of the noise.

    Returns:
        `tuple`: the time, the noise, and a number in [0, 1) for the coin of self-conditioning.
    """
    generator = torch.Generator().manual_seed(seed)
    time = torch.rand((), generator=generator) * TRAINING_END
    return time, torch.randn(shape, generator=generator), float(torch.rand((), generator=generator))


def numbers_of(seeds: torch.Tensor, shape: tuple[int, ...], apart: int) -> torch.Tensor:
    """Draw numbers for each of several seeds.

    Args:
        seeds (`torch.LongTensor` of shape `(N,)`): of the rows.
        shape (`tuple[int, ...]`): of the numbers of a row.
        apart (`int`): tells uses of a seed from each other; 0 is `step_of`.

    Returns:
        `torch.FloatTensor` of shape `(N, *shape)`: in [0, 1).
    """
    generators = [torch.Generator().manual_seed(seed + apart) for seed in seeds.tolist()]
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


def drawn_words(probabilities: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """Draw a word at each place, where a number falls in the cumulative probabilities.

    Args:
        probabilities (`torch.FloatTensor` of shape `(N, L, V)`): of the words.
        seeds (`torch.LongTensor` of shape `(N,)`): of each caption, as for `step_of`, whose numbers are others.

    Returns:
        `torch.LongTensor` of shape `(N, L)`
    """
    heights = probabilities.cumsum(-1)
    numbers = numbers_of(seeds, (probabilities.shape[1], 1), apart=1).to(heights.device) * heights[..., -1:]
    return torch.searchsorted(heights, numbers, right=True)[..., 0].clamp(max=probabilities.shape[-1] - 1)
