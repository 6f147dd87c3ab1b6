"""Whole optimizer steps of `DiCOTrainer` against the numbers of the original code (shared/parity/dico).

Policy, reference and evaluator are converted from the original folders. A step sees the pictures all at once, or one
after the other. Tolerances are the fixtures' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from contracts.reward_policies import quickly
from parity.test_dico import VALUES, Case, check_gradients, close
from tokenizers import Tokenizer, models
from transformers import AutoModel, PreTrainedTokenizerFast, TrainerCallback

from hf_captioners import CaptionerImageProcessor, CaptionerProcessor, DiCOConfig, DiCOTrainer
from hf_captioners.conversion import convert
from hf_captioners.metrics import ClipScorer, PacScorer
from hf_captioners.rewards import ClipReward

REWARDS = 1e-5  # 300 times the difference of two stands in the exponent of gamma


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    with quickly():
        yield


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request: pytest.FixtureRequest, shared_parity: Path, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(shared_parity / "dico" / request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def pac_score(case: Case) -> ClipReward:
    """The reward of the original: its PAC-S, of token ids, on the captioner's own pictures."""
    convert("pac_score", case.folder / "pacs.pth", case.out_dir / "pacs")
    scorer = PacScorer(case.out_dir / "pacs", prefix="", clip_negative=False, pad_token_id=case.pad)
    return ClipReward(scorer, use_ids=True, use_pixel_values=True)


class Step(DiCOTrainer):
    """One optimizer step with all pictures of a case and without dropout, after which the weights are what they were.

    Args:
        case (`Case`): policy, reference and pictures.
        reward (`Callable`): the reward function.
        folder (`Path`): where a run may write.
        at_once (`int`): pictures of a micro-batch.
        k (`int`): candidates of a picture.
        gradients (`str`, *optional*): name of the fixture's gradients, which the step's are to equal.
        candidates (`torch.Tensor` of shape `(B, k, L)`, *optional*): instead of what the policy writes.
        options: of the configuration.
    """

    def __init__(
        self,
        case: Case,
        reward: Any,
        folder: Path,
        at_once: int,
        k: int,
        gradients: str | None = None,
        candidates: torch.Tensor | None = None,
        **options: Any,
    ) -> None:
        pixel_values = case["pixel_values"]
        settings: dict[str, Any] = {
            "num_generations": k,
            "max_completion_length": case.settings["generation_max_length"] - 1,
            "beta": case.settings["dico_beta"],
            "tau": case.settings["dico_tau"],
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": len(pixel_values) // at_once,
            "optim": "sgd",
            "learning_rate": 0.0,
        }
        usual = {"disable_dropout": True, "max_grad_norm": 0.0, "max_steps": 1, "logging_steps": 1}
        quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}

        def collate(rows: Sequence[dict[str, int]]) -> dict[str, Any]:
            ids = [row["image_id"] for row in rows]
            return {"pixel_values": pixel_values[ids], "columns": {"image_id": ids}}

        checks = [] if gradients is None else [CheckGradients(case, gradients)]
        super().__init__(
            case.policy,
            case.reference,
            reward,
            DiCOConfig(output_dir=str(folder), **{**settings, **usual, **quiet, **options}),
            [{"image_id": index} for index in range(len(pixel_values))],
            processing_class=processor_of(case),
            data_collator=collate,
            callbacks=list(checks),
        )
        self.candidates = candidates
        self.seen: dict[int, dict[str, torch.Tensor]] = {}  # by picture
        self.train()
        assert all(one.steps == 1 for one in checks)

    def roll_out(self, batch: dict[str, Any]) -> Any:
        if self.candidates is None:
            return super().roll_out(batch)
        ids = self.candidates[batch["columns"]["image_id"]].flatten(0, 1)
        with patch.object(self.model, "generate", lambda **options: ids):
            return super().roll_out(batch)

    def loss_sum(self, log_probs: torch.Tensor, rollout: Any, metrics: Any) -> torch.Tensor:
        loss = super().loss_sum(log_probs, rollout, metrics)
        known = {
            "ids": rollout.candidates.sequences,
            "mask": rollout.candidates.mask,
            "policy": log_probs.detach(),
            "reference": rollout.reference_log_probs,
            "rewards": rollout.rewards.flatten(),
            "weight": rollout.weights.flatten(),
        }
        for name, values in known.items():
            pictures = values.unflatten(0, (-1, rollout.candidates.k))
            for image_id, picture in zip(rollout.columns["image_id"], pictures, strict=True):
                self.seen.setdefault(image_id, {})[name] = picture
        return loss

    def all(self, name: str, like: torch.Tensor, pad: int = 0) -> torch.Tensor:
        """Values of all pictures, in the shape of the fixture's tensor."""
        parts = [self.seen[image_id][name] for image_id in sorted(self.seen)]
        if like.ndim == 3:
            parts = [torch.nn.functional.pad(one, (0, like.shape[2] - one.shape[1]), value=pad) for one in parts]
        return torch.stack(parts)

    @property
    def logged(self) -> dict[str, float]:
        return self.state.log_history[0]


class CheckGradients(TrainerCallback):
    """Compare the gradients of `Case.policy` when they are complete."""

    def __init__(self, case: Case, kind: str) -> None:
        self.case, self.kind, self.steps = case, kind, 0

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        check_gradients(self.case, self.kind)
        self.steps += 1


def processor_of(case: Case) -> CaptionerProcessor:
    """A word for each of the case's synthetic tokens."""
    words = {f"w{index}": index for index in range(case.settings["vocab_size"])}
    special = {f"{name}_token": f"w{case.settings[f'{name}_token_id']}" for name in ("bos", "eos", "pad")}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return CaptionerProcessor(CaptionerImageProcessor(), PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special))


def of_image(rewards: torch.Tensor) -> Any:
    """A reward function that gives `rewards` (B, k)."""

    def given(image_id: Sequence[int], **columns: Any) -> list[float]:
        return [rewards[image, row % rewards.shape[1]].item() for row, image in enumerate(image_id)]

    return given


def gammas(step: Step, chosen: torch.Tensor) -> torch.Tensor:
    """The losers' weights in the order of the candidates, (B, k - 1)."""
    return -step.all("weight", chosen)[~chosen].view(len(chosen), -1)


def check(step: Step, case: Case, kind: str, ids: torch.Tensor) -> None:
    """Numbers of the fixture for a step with candidates `ids`."""
    chosen = case[f"{kind}_chosen_mask"]
    assert torch.equal(step.all("weight", chosen) == 1, chosen)
    close(gammas(step, chosen), case[f"{kind}_gamma"])
    close(step.all("mask", ids[..., 1:]), (ids[..., 1:] != case.pad).bool())
    for mine, original in (("policy", "policy"), ("reference", "ref")):
        close(step.all(mine, ids[..., 1:]).sum(-1), case[f"{kind}_{original}_logps"])
    assert step.logged["loss"] == pytest.approx(case[f"{kind}_loss"].item(), abs=VALUES)
    for name in ("chosen", "rejected"):
        assert step.logged[f"rewards/{name}"] == pytest.approx(case[f"{kind}_{name}_reward"].item(), abs=VALUES)


@pytest.mark.parametrize("at_once", [True, False])
def test_whole_step(case, pac_score, tmp_path, at_once):
    """Beam search, PAC-S, winner and losers, loss, gradients."""
    size = len(case["pixel_values"]) if at_once else 1
    step = Step(case, pac_score, tmp_path, size, case.settings["n_candidates"], gradients="step")
    ids = case["step_ids"]
    assert torch.equal(step.all("ids", ids, case.pad), ids)
    close(step.all("rewards", case["step_rewards"]), case["step_rewards"], REWARDS)
    check(step, case, "step", ids)


@pytest.mark.parametrize("at_once", [True, False])
def test_given_candidates(case, tmp_path, at_once):
    """With a caption that is cut off, a duplicate, and padding in the middle."""
    size, ids = len(case["pixel_values"]) if at_once else 1, case["cand_ids"]
    step = Step(case, of_image(case["cand_rewards"]), tmp_path, size, ids.shape[1], "cand", candidates=ids)
    check(step, case, "cand", ids)
    close(step.all("policy", case["cand_mask"]), case["cand_policy_token_logps"])
    winner, rest = case["cand_chosen_mask"], case["cand_gamma"]
    assert step.logged["logps/chosen"] == pytest.approx(case["cand_policy_logps"][winner].mean().item(), abs=VALUES)
    losers = case["cand_policy_logps"][~winner].view(rest.shape)
    assert step.logged["logps/rejected"] == pytest.approx((rest * losers).sum(1).mean().item(), abs=VALUES)


def test_equal_rewards(case, tmp_path):
    """The first candidate wins against all others alike, and there is something to learn."""
    ids, chosen = case["cand_ids"], case["tie_chosen_mask"]
    step = Step(case, of_image(torch.ones(ids.shape[:2])), tmp_path, len(ids), ids.shape[1], candidates=ids)
    assert torch.equal(step.all("weight", chosen) == 1, chosen)
    close(gammas(step, chosen), case["tie_gamma"])
    assert step.logged["loss"] == pytest.approx(case["tie_loss"].item(), abs=VALUES)


def test_rewards_of_given_candidates(case, pac_score, tmp_path):
    """Also of captions without end token, which PAC-S all pools at the start, and with padding in the middle."""
    ids, clip = case["score_ids"], AutoModel.from_pretrained(case.folder / "clips")
    clip_score = ClipScorer(clip, prefix="", clip_negative=False, pad_token_id=case.pad)
    rewards = {"pacs": pac_score, "clips": ClipReward(clip_score, use_ids=True, use_pixel_values=True)}
    for name, reward in rewards.items():
        step = Step(case, reward, tmp_path, len(ids), ids.shape[1], candidates=ids)
        close(step.all("rewards", case[name]), case[name], REWARDS)
