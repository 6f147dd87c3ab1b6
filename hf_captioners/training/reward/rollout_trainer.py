"""Rollouts of a trainer: the candidates of a batch of pictures, their rewards, and what the reference says of them.

Nothing here has a gradient but `_log_probs`, where its caller wants one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from functools import partial
from typing import Any

import torch

from ...data.opened_images import OpenedImages
from ..trainer import CaptionerTrainer
from .candidates import Candidates, write_candidates
from .config import RewardTrainingConfig
from .forward_pass import mode
from .functions import RewardFunctions, Rewards
from .reference import ReferenceModel
from .rollout import Rollout

logger = logging.getLogger(__name__)


class RolloutTrainer(CaptionerTrainer):
    """Writing and rewarding of [`RewardTrainer`], which says what is learned from it.

    Attributes:
        reward_functions ([`RewardFunctions`]): what scores the candidates.
        reference ([`ReferenceModel`], *optional*): the model to stay close to.
    """

    args: RewardTrainingConfig
    reward_functions: RewardFunctions
    reference: ReferenceModel | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._has_warned = False
        self._features: dict[bytes, torch.Tensor] = {}  # a picture's digest -> what the backbone made of it

    @torch.no_grad()
    def roll_out(self, batch: dict[str, Any]) -> Rollout:
        """Let the model write candidates for a batch of pictures, and reward them.

        Args:
            batch (`dict[str, Any]`): of the collator.

        Returns:
            [`Rollout`]
        """
        model = self.accelerator.unwrap_model(self.model)
        batch = self._prepare_inputs(batch)
        columns = batch["columns"]
        pixels = self.family.image_inputs(model, batch)
        with self.accelerator.autocast():
            image_inputs = self._run_backbone(model, pixels)
            candidates, greedy = self._write(model, image_inputs, columns)
        rewards = self._reward(candidates, batch)
        valid = ~rewards.total.isnan()  # no reward function applies
        if self.args.mask_truncated_completions:
            valid &= candidates.finished
        if self.args.deduplicate_candidates:
            valid &= candidates.firsts.flatten()
        rollout = Rollout(
            image_inputs=image_inputs,
            columns=columns,
            candidates=candidates,
            rewards=rewards.total.nan_to_num(0.0).view(-1, candidates.k),
            function_rewards=rewards,
            valid=valid.view(-1, candidates.k),
            reference_log_probs=self._reference_log_probs(model, pixels, image_inputs, candidates),
        )
        if greedy is not None:
            total = self._reward(greedy, batch).total
            rollout.greedy_rewards = total.nan_to_num(0.0).view(-1, greedy.k) if greedy.k > 1 else total.nan_to_num(0.0)
            rollout.valid &= ~total.isnan().view(-1, greedy.k)
        if not self._has_warned and not bool(rollout.valid.any()):
            self._has_warned = True
            names = ", ".join(self.reward_functions.names)
            logger.warning(
                "none of %d candidates of a batch counts (rewards: %s): nothing is learned from it; said once, "
                "completions/valid_ratio has the share of those that count",
                rollout.valid.numel(),
                names,
            )
        return rollout

    def _run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        """Image inputs as they are encoded, from the cache where it is switched on."""
        if not self.args.cache_image_features or "pixel_values" not in image_inputs:
            return self.family.run_backbone(model, image_inputs)
        pixels = image_inputs["pixel_values"]
        content = pixels.cpu().flatten(1).view(torch.uint8).numpy()  # an image_id may be another picture's elsewhere
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in content]
        new = {key: row for row, key in enumerate(keys) if key not in self._features}
        for key, row in new.items():  # alone: its last bit depends on how many others are run with it
            self._features[key] = self._features_of(model, pixels[row : row + 1])
        features = torch.stack([self._features[key] for key in keys]).to(pixels.device)
        others = {name: value for name, value in image_inputs.items() if name != "pixel_values"}
        return {"image_features": features, **others}

    def _features_of(self, model: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Features of one image (1, 3, height, width), in the computer's memory."""
        return self.family.run_backbone(model, {"pixel_values": pixels})["image_features"][0].cpu()

    def _write(
        self, model: Any, image_inputs: dict[str, Any], columns: dict[str, list[Any]]
    ) -> tuple[Candidates, Candidates | None]:
        """Candidates and, where the method compares with them, greedy captions."""
        step = self.state.global_step if self.model.training else "eval"
        names = [f"{self.args.seed} {step} {name}" for name in self._names(columns)]
        dropout = self.args.generate_with_dropout and self.model.training
        with mode(model, training=dropout, seed=" ".join([f"{self.args.seed} {step}", *names])):
            encoder_outputs = self.family.encode(model, image_inputs)
            write = partial(
                write_candidates, self.family, model, encoder_outputs, self.processing_class, self.args, names
            )
            candidates = write()
            if not self.needs_greedy():
                return candidates, None
            return candidates, write(greedy=True) if candidates.greedy is None else candidates.greedy

    def _names(self, columns: dict[str, list[Any]]) -> list[Any]:
        """Names that tell the pictures of a batch apart, so that chance does not depend on where they stand."""
        for name in ("image_id", "captions"):
            if name in columns:
                return columns[name]
        if self.args.candidate_strategy == "sample":
            raise ValueError(f"rows need an image_id to draw captions by; these have only {sorted(columns)}.")
        return []

    def needs_greedy(self) -> bool:
        """Tell whether the method looks at greedy captions."""
        return False

    def _reward(self, captions: Candidates, batch: dict[str, Any]) -> Rewards:
        """Rewards of captions, on their device."""
        result = self._call_rewards(captions.texts, captions.ids, captions.k, batch)
        return dataclasses.replace(result, total=result.total.to(captions.sequences.device))

    def _call_rewards(self, texts: list[str], ids: list[list[int]], k: int, batch: dict[str, Any]) -> Rewards:
        """Rewards of k captions of each picture of a batch."""
        columns: dict[str, Any] = {
            name: [value for value in values for _ in range(k)] for name, values in batch["columns"].items()
        }
        if len(batch.get("pixel_values", ())) * k == len(texts):  # a row per image
            columns["pixel_values"] = [image for image in batch["pixel_values"] for _ in range(k)]
        return self.reward_functions(texts, ids, trainer_state=self.state, **self._with_images(columns))

    def _with_images(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns with `images`, which are open to who looks at them, as is `image` where we have closed it."""
        if "image" not in columns:
            return columns
        images = OpenedImages(columns["image"], self.processing_class.image_processor)
        closed = any(isinstance(image, dict) for image in columns["image"])
        return {"images": images, **columns, **({"image": images} if closed else {})}

    def _reference_log_probs(
        self, model: Any, pixels: dict[str, Any], image_inputs: dict[str, Any], candidates: Candidates
    ) -> torch.Tensor | None:
        """Log-probabilities of the reference, which runs its own backbone if that is another one."""
        if self.reference is None:
            return None
        with self.reference.in_use(model) as reference:
            if not self.reference.shares_backbone(model):
                image_inputs = self.family.run_backbone(reference, pixels)
            return self._log_probs(reference, image_inputs, candidates)[0]

    def _log_probs(
        self, model: Any, image_inputs: dict[str, Any], candidates: Candidates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self.accelerator.autocast():
            encoder_outputs = self.family.encode(model, image_inputs)
            log_probs, entropies = self.family.log_probs(
                model, candidates.sequences, encoder_outputs, **candidates.scoring_inputs
            )
        return log_probs.masked_fill(~candidates.mask, 0.0), entropies.masked_fill(~candidates.mask, 0.0)
