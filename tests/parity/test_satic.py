"""SATIC against the numbers of the original code (tests/fixtures/parity/satic).

The checkpoints go through the public conversion and `from_pretrained`; they are the original's, but for the computed
table of positions, which was left out to keep them small. Tolerances are the fixtures' own.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from hf_captioners.conversion import convert
from hf_captioners.training.reward.losses import advantages, loss_items, self_critical_loss
from hf_captioners.training.schedules import noam

CASES = Path(__file__).resolve().parents[1] / "fixtures" / "parity" / "satic"
LOG_PROBS = 2e-5
LOSS = 1e-5


class Case:
    """A parity case, converted and loaded."""

    def __init__(self, folder: Path, out_dir: Path) -> None:
        self.folder, self.out_dir = folder, out_dir
        self.settings = json.loads((folder / "config.json").read_text())
        self.opt = self.settings["opt"]
        self.io = load_file(folder / "io.safetensors")
        heads = self.settings["num_heads"]
        convert("satic", folder / "model.pth", out_dir, infos=folder / "infos.pkl", num_heads=heads)

    @cached_property
    def model(self):
        return AutoModelForImageTextToText.from_pretrained(self.out_dir).eval()

    @property
    def features(self) -> dict[str, torch.Tensor]:
        return {"image_features": self["in.att_feats"], "image_attention_mask": self["in.att_masks"].long()}

    @property
    def labels(self) -> torch.Tensor:
        return self["in.labels"][:, 1:].masked_fill(self["in.masks"][:, 1:] == 0, -100)

    @property
    def longest(self) -> int:
        return self.opt["max_length"]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.io[name]

    def generate(self, **options):
        options = {"return_dict_in_generate": True, "output_scores": True, **options}
        return self.model.generate(**self.features, **options)

    def words(self, sequences: torch.Tensor) -> torch.Tensor:
        """Without the start token, as wide as in the fixtures."""
        return torch.nn.functional.pad(sequences[:, 1:], (0, self.longest + 1 - sequences.shape[1]))

    def advantages(self, baseline: str) -> torch.Tensor:
        sampled, greedy = (self[f"nsc.cider_{kind}"].view(-1, 5) for kind in ("sampled", "greedy"))
        return advantages(sampled, baseline, greedy[:, 0])

    def check_grad_norms(self, expected: torch.Tensor) -> None:
        parameters = dict(self.model.named_parameters())
        assert list(parameters) == self.settings["parameter_order_of_grad_norms"]
        for (name, parameter), norm in zip(parameters.items(), expected.tolist(), strict=True):
            if not name.endswith("linears.1.bias"):  # keys: their true gradient is 0
                assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5), name


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request, tmp_path_factory) -> Case:
    return Case(CASES / request.param, tmp_path_factory.mktemp(request.param) / "out")


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected.to(got.dtype), atol=tolerance, rtol=0)


@torch.no_grad()
def test_encoder(case):
    encoded = case.model.encode_images(**case.features, output_hidden_states=True)
    real = case["in.att_masks"].bool()
    close(encoded.hidden_states[0], case["enc.att_embed"], LOG_PROBS)
    assert not encoded.hidden_states[0][~real].any()
    close(encoded.last_hidden_state[real], case["enc.memory"][real], LOG_PROBS)
    length = int(real[0].sum())
    alone = case.model.encode_images(image_features=case["in.att_feats"][:1, :length]).last_hidden_state
    close(alone, case["enc.memory_row0_unpadded"], LOG_PROBS)


@torch.no_grad()
def test_teacher_forcing(case):
    output = case.model(**case.features, labels=case.labels)
    close(output.logits.log_softmax(-1), case["xe.logprobs"], LOG_PROBS)
    close(output.loss, case["xe.loss"], LOSS)
    smoothed = case.model(**case.features, labels=case.labels, smoothing=0.1)
    close(smoothed.loss, case["xe.loss_smooth0.1"], LOSS)


@torch.no_grad()
def test_narrower_labels_give_the_same_log_probs(case):
    """The original always runs as many words as its label file is wide; a batch here is as wide as its captions."""
    lengths = (case.labels != -100).sum(1)
    short = lengths <= 10
    assert short.sum() > 3
    rows = case.features["image_features"].repeat_interleave(5, 0)[short]
    masks = case.features["image_attention_mask"].repeat_interleave(5, 0)[short]
    labels = case.labels[short][:, :10]
    got = case.model(image_features=rows, image_attention_mask=masks, labels=labels).logits.log_softmax(-1)
    close(got[labels != -100], case["xe.logprobs"][short][:, :10][labels != -100], LOG_PROBS)


def test_gradients(case):
    case.model.zero_grad()
    case.model(**case.features, labels=case.labels).loss.backward()
    case.check_grad_norms(case["xe.grad_norms"])
    parameters = dict(case.model.named_parameters())
    whole = [name for name in case.io if name.startswith("xe.grad.")]
    assert len(whole) >= 5
    for name in whole:
        close(parameters[name.removeprefix("xe.grad.")].grad, case[name], LOSS)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(case, use_cache):
    calls: list[int] = []
    hook = case.model.model.decoder.norm.register_forward_hook(lambda *_: calls.append(1))
    out = case.generate(reference_quirks=True, use_cache=use_cache)
    hook.remove()
    assert torch.equal(case.words(out.sequences), case["greedy.seq"])
    log_probs, ids = torch.stack(out.scores, dim=1).max(-1)
    count = ids.shape[1]
    close(torch.stack(out.scores, dim=1), case["greedy.step_logprobs"][:, :count], LOG_PROBS)
    assert torch.equal(ids, case["greedy.raw_ids"])
    close(log_probs, case["greedy.logprobs"][:, :count], LOG_PROBS)
    if use_cache:  # the original's last call is thrown away when a caption never ended
        wasted = case["greedy.step_logprobs"].shape[1] > count
        assert len(calls) == case["greedy.decoder_calls"].item() - wasted


def test_a_caption_ends_at_its_end(case):
    """By default; what the original wrote behind the end token in the same group is gone, the text is the same."""
    ids = case.words(case.generate().sequences)
    whole = case.opt["K"] * (case.longest // case.opt["K"])
    for row, original in zip(ids[:, :whole], case["greedy.seq"][:, :whole], strict=True):
        length = [*original.tolist(), 0].index(0)
        assert row[:length].tolist() == original[:length].tolist()
        assert not row[length:].any()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_beam_search(case, beams, use_cache):
    """The original's beam search over one beam is greedy decoding that avoids the unknown word."""
    out = case.generate(num_beams=beams, num_return_sequences=beams, suppress_unk=True, use_cache=use_cache)
    shape = (-1, beams, case.longest)
    assert torch.equal(case.words(out.sequences).view(shape), case[f"beam{beams}.all_seq"])
    assert torch.equal(case.words(out.sequences).view(shape)[:, 0], case[f"beam{beams}.seq"])
    sources = out.beam_indices if beams > 1 else None
    log_probs = case.model.compute_transition_scores(out.sequences, out.scores, sources)
    log_probs = case.words(torch.nn.functional.pad(log_probs, (1, 0))).view(shape)
    expected = case[f"beam{beams}.all_logprobs"]
    ended = case[f"beam{beams}.all_seq"].eq(0).cumsum(-1) > 1  # one beam of ours is scored on behind the end
    close(log_probs.masked_fill(ended, 0.0), expected, LOG_PROBS)
    if beams > 1:
        close(out.sequences_scores.view(-1, beams), case[f"beam{beams}.all_p"], LOG_PROBS)


@pytest.mark.parametrize("penalty", ["wu_0.7", "avg_1.0"])
def test_length_penalties(case, penalty):
    out = case.generate(num_beams=3, num_return_sequences=3, length_penalty=penalty)
    best = case.words(out.sequences).view(-1, 3, case.longest)[:, 0]
    assert torch.equal(best, case[f"beam3_{penalty}.seq"])
    close(out.sequences_scores.view(-1, 3), case[f"beam3_{penalty}.all_p"], LOG_PROBS)
    if penalty.startswith("avg"):  # in transformers' notation
        assert torch.equal(case.words(case.generate(num_beams=3, length_penalty=1.0).sequences), best)


def sampled_log_probs(case: Case) -> torch.Tensor:
    """Scores of the original's loop for its samples, in one parallel pass: of all draws, the zeroed ones too."""
    seq, size = case["nsc.gen_seq"], case.opt["K"]
    whole = size * (case.longest // size)
    start = seq.new_zeros(len(seq), 1)
    ids = torch.cat((start, seq[:, : whole - 1]), dim=1)
    logits = case.model(**case.features, decoder_input_ids=ids).logits
    log_probs = logits.log_softmax(-1).gather(-1, case["nsc.gen_raw_ids"][:, :whole, None])[..., 0]
    ended = (seq[:, :whole].view(len(seq), -1, size) == 0).any(-1).cumsum(1) > 0  # (R, groups)
    run = torch.cat((torch.ones(1, dtype=torch.bool), ~ended.all(0)[:-1]))  # until all rows have ended
    log_probs = log_probs * run.repeat_interleave(size)
    return torch.nn.functional.pad(log_probs, (0, case.longest - whole))


def originals_loss(case: Case, log_probs: torch.Tensor, baseline: str) -> torch.Tensor:
    """With the original's mask, which lets the words behind an end token in the middle of a group in again."""
    mask = torch.nn.functional.pad(case["nsc.gen_seq"][:, :-1] != 0, (1, 0), value=True)
    gains = case.advantages(baseline).float().flatten()
    return self_critical_loss(log_probs, mask, gains, "token") / loss_items(mask, "token")


def test_self_critical_losses_and_gradients(case):
    case.model.zero_grad()
    log_probs = sampled_log_probs(case)
    close(log_probs.detach(), case["nsc.gen_logprobs"], LOG_PROBS)
    close(originals_loss(case, log_probs.detach(), "greedy"), case["sc.loss"], LOSS)
    loss = originals_loss(case, log_probs, "leave_one_out")
    close(loss.detach(), case["nsc.loss"], LOSS)
    loss.backward()
    case.check_grad_norms(case["nsc.grad_norms"])


@pytest.mark.parametrize(("baseline", "name"), [("leave_one_out", "nsc.rewards"), ("greedy", "sc.rewards")])
def test_advantages(case, baseline, name):
    every_word = case[name].double()
    close(case.advantages(baseline).flatten()[:, None].expand_as(every_word), every_word, 1e-6)


def test_log_probs_of_samples_stop_at_the_end_token(case):
    seq = case["nsc.gen_seq"]
    whole = case.opt["K"] * (case.longest // case.opt["K"])
    sequences = torch.nn.functional.pad(seq[:, :whole], (1, 0))
    got = case.model.sequence_log_probs(sequences, **case.features)
    inside = (seq[:, :whole] == 0).cumsum(1) - (seq[:, :whole] == 0).long() == 0
    close(got.detach(), case["nsc.gen_logprobs"][:, :whole] * inside, LOG_PROBS)


def test_noam_schedule_and_optimizer(case):
    model = AutoModelForImageTextToText.from_pretrained(case.out_dir).eval()  # without dropout, as the fixture
    warmup = case.settings["noam_warmup_used_in_noam_tensors"]
    peak = (model.config.d_model * warmup) ** -0.5
    rates = [noam(step, lr=peak, warmup_iters=warmup) for step in range(4)]
    np.testing.assert_allclose(rates, case["noam.rates"].numpy(), rtol=1e-12)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9)
    for rate, expected in zip(rates, case["noam.losses"], strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = model(**case.features, labels=case.labels).loss
        close(loss.detach(), expected, LOSS)
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), case.opt["grad_clip"])
        optimizer.step()
