"""Chance of SCD-Net: of training steps, functions of seeds, the same on every machine and in every batch; and the noise
that its captions are written from."""

from __future__ import annotations

import hashlib
from typing import Any

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


class SamplerNoise:
    """The noise of a call of `generate`: that of its options, or drawn once for all pictures, or for each of them.

    Args:
        options (`dict[str, Any]`): `noise`, `step_noise`, `generator` and `seed` of the call.
        shape (`tuple[int, ...]`): (L, n), of the noise of a caption.
        images (`int`), copies (`int`): how many pictures, and captions of each.
        do_sample (`bool`): whether torch's global generator draws, where no other is named.
    """

    def __init__(
        self, options: dict[str, Any], shape: tuple[int, ...], images: int, copies: int, do_sample: bool
    ) -> None:
        self.start_noise, self.step_noise = options["noise"], options["step_noise"]
        self.shape, self.images, self.copies = tuple(shape), images, copies
        self.shared = options["generator"] is None and not do_sample
        self.generator = options["generator"]
        if self.shared:
            self.generator = torch.Generator().manual_seed(options["seed"] or 0)

    def of_stage(
        self, stage: int, steps: int, noisy: bool, device: torch.device
    ) -> tuple[torch.Tensor, list[torch.Tensor] | None]:
        """Draw what a sampler starts from and adds.

        Args:
            stage (`int`): of a cascade, from 0; -1 for a model of one stage.
            steps (`int`): of the sampler.
            noisy (`bool`): whether noise is added in each step.
            device (`torch.device`): where it is needed.

        Returns:
            `tuple[torch.Tensor, list[torch.Tensor] | None]`: noise at the start `(N, L, n)`; that of each step.

        Raises:
            ValueError: noise of another shape.
        """
        start = self._of_option("noise", self.start_noise, stage, ())
        start = self._draw() if start is None else start
        added: Any = self._of_option("step_noise", self.step_noise, stage, (steps,))
        if added is None and noisy:
            added = [self._draw() for _ in range(steps)]
        return start.to(device), None if added is None else [noise.to(device) for noise in added]

    def _of_option(self, name: str, value: Any, stage: int, in_front: tuple[int, ...]) -> torch.Tensor | None:
        if value is None:
            return None
        value = value if isinstance(value, torch.Tensor) else value[stage]
        expected = (*in_front, self.images * self.copies, *self.shape)
        if value.shape != expected:
            raise ValueError(f"{name} must be {expected}, not {tuple(value.shape)}.")
        return value.float()

    def _draw(self) -> torch.Tensor:
        """(N, L, n); captions of a picture stand side by side."""
        images = 1 if self.shared else self.images
        device = "cpu" if self.generator is None else self.generator.device
        drawn = torch.randn((images, self.copies, *self.shape), generator=self.generator, device=device)
        return drawn.expand(self.images, *drawn.shape[1:]).flatten(0, 1)


def of_stage(value: Any, stage: int) -> Any:
    """The value of an option for a stage, where a list has one for each stage of a cascade."""
    return value[stage] if isinstance(value, list | tuple) else value
