"""ExpansionNet v2 against the numbers of the original code (tests/fixtures/parity/expansionnet_v2).

The checkpoints go through the public conversion and `from_pretrained`. Tolerances are the fixtures' own.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from hf_captioners import CaptionerEnsemble, CaptionerImageProcessor, build_vocabulary, build_word_tokenizer
from hf_captioners.conversion import convert
from hf_captioners.training.reward.losses import advantages, loss_items, self_critical_loss
from hf_captioners.training.schedules import SCHEDULES, RectifiedAdam

FEATURES = 2e-5
LOGITS = 2e-4
LOSS = 1e-5
SCORES = 2e-5


class Case:
    """One of the two model classes of a parity case, converted and loaded."""

    def __init__(self, folder: Path, kind: str, out_dir: Path) -> None:
        self.settings = json.loads((folder / "config.json").read_text())
        self.kind, self.prefix, self.out_dir = kind, {"e2e": "e2e", "features": "feat"}[kind], out_dir
        self.folder = folder
        self.io = load_file(folder / "io.safetensors")

    def convert(self, checkpoint: str, name: str) -> Path:
        convert(
            "expansionnet_v2",
            self.folder / checkpoint,
            self.out_dir / name,
            original_config=self.settings[self.kind]["args"],
            vocabulary=self.settings["vocab"],
            special=self.settings["special"],
        )
        return self.out_dir / name

    @cached_property
    def model(self):
        return AutoModel.from_pretrained(self.convert(self.settings[self.kind]["checkpoint"], "first")).eval()

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        if self.kind == "e2e":
            return {"pixel_values": self.io["e2e.images"]}
        features = self.io["feat.features"]
        return {"image_features": features, "image_attention_mask": self.real(features.shape[1]).long()}

    def real(self, length: int) -> torch.Tensor:
        return torch.arange(length) < (length - self.io[f"{self.prefix}.enc_num_pads"])[:, None]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.io[f"{self.prefix}.{name}"]

    @property
    def labels(self) -> torch.Tensor:
        targets = self["captions"][:, 1:]
        return targets.masked_fill(targets == self.settings["special"]["PAD"], -100)

    def original_gradients(self, kind: str) -> dict[str, torch.Tensor]:
        start = f"{self.prefix}.{kind}.grad."
        return {name.removeprefix(start): value for name, value in self.io.items() if name.startswith(start)}


@pytest.fixture(scope="module", params=["e2e", "features"])
def case(request, parity_case, tmp_path_factory) -> Case:
    return Case(parity_case, request.param, tmp_path_factory.mktemp(f"{parity_case.name}_{request.param}"))


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected.to(got.dtype), atol=tolerance, rtol=0)


def test_backbone(case):
    if case.kind == "features":
        pytest.skip("a features-only checkpoint has no backbone")
    close(case.model.extract_image_features(case.io["e2e.images"]).detach(), case["backbone_features"], FEATURES)


def test_encoder(case):
    encoded = case.model.encode_images(**case.inputs, output_hidden_states=True)
    real = case.real(encoded.last_hidden_state.shape[1])
    close(encoded.last_hidden_state[real].detach(), case["enc_output"][real], FEATURES)
    for got, expected in zip(encoded.hidden_states[1:], case["enc_layers"], strict=True):
        close(got[real].detach(), expected[real], FEATURES)


def test_decoder_and_logits(case):
    output = case.model(**case.inputs, labels=case.labels, output_hidden_states=True)
    valid = case["valid"].bool()
    for got, expected in zip(output.decoder_hidden_states[1:], case["dec_layers"], strict=True):
        close(got[valid].detach(), expected[valid], LOGITS)
    close(output.logits[valid].detach(), case["logits"][valid], LOGITS)
    close(output.logits.log_softmax(-1)[valid].detach(), case["logprobs"][valid], LOGITS)


def test_cross_entropy_and_its_gradients(case):
    targets = int((case.labels != -100).sum())
    for items, name, tolerance in (
        (None, "loss", LOSS),
        (1, "loss_sum", LOGITS),
        (targets + len(case.labels), "val_loss", LOSS),
    ):
        loss = case.model(**case.inputs, labels=case.labels, num_items_in_batch=items).loss
        close(loss.detach(), case[f"xe.{name}"][0], tolerance)
    case.model.zero_grad()
    case.model(**case.inputs, labels=case.labels).loss.backward()
    check_gradients(case, "xe")
    norm = torch.stack([p.grad.double().norm() for p in case.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(case["xe.grad_norm"].item(), rel=1e-4)


def check_gradients(case: Case, kind: str) -> None:
    """Gradients by the original's names; its fused qkv and its backbone's names are tested by the conversion."""
    ours = {name: p.grad for name, p in case.model.named_parameters() if p.grad is not None}
    expected = case.original_gradients(kind)
    compared = 0
    for name, gradient in expected.items():
        if name in ours:
            close(ours[name], gradient, 1e-3 * gradient.abs().max().item())
            compared += 1
    assert compared == sum(not name.startswith("swin_transf.") for name in expected) > 0


def test_self_critical_loss_and_its_gradients(case):
    ids = case["scst.sample_ids"]
    sequences = ids.flatten(0, 1).masked_fill(ids.flatten(0, 1) < 0, case.settings["special"]["PAD"])
    inputs = case.inputs if case.kind == "e2e" else {"image_features": case["scst.features"]}
    case.model.zero_grad()
    log_probs = case.model.sequence_log_probs(sequences, **inputs)
    inside = torch.arange(1, ids.shape[-1]) < case["scst.sample_lengths"].flatten()[:, None]
    log_probs = log_probs * inside
    close(log_probs.detach(), case["scst.sample_logprobs"].flatten(0, 1)[:, 1:], LOGITS)
    gains = advantages(case["scst.rewards"], "leave_one_out")
    close(case["scst.rewards"] - gains, case["scst.reward_base"], 1e-12)
    loss = self_critical_loss(log_probs.double(), inside, gains.flatten(), "none") / loss_items(inside, "none")
    close(loss.detach(), case["scst.loss"][0], LOSS)
    loss.backward()
    check_gradients(case, "scst")


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["beam3", "beam5", "beam3_full"])
def test_beam_search(case, name, use_cache):
    check_search(case.model, case, f"{case.prefix}.{name}", use_cache=use_cache)


def check_search(model, case: Case, name: str, **options) -> None:
    expected_ids, lengths = case.io[f"{name}.ids"], case.io[f"{name}.lengths"]
    images, beams = lengths.shape
    longest = model.config.max_position_embeddings if name.endswith("full") else 12
    out = model.generate(
        **case.inputs,
        num_beams=beams,
        num_return_sequences=beams,
        max_length=longest,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    close(out.sequences_scores.view(images, beams), case.io[f"{name}.scores"], SCORES)
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    log_probs = case.io[f"{name}.logprobs"].flatten(0, 1)
    for row, (ids, length) in enumerate(zip(expected_ids.flatten(0, 1), lengths.flatten().tolist(), strict=True)):
        assert out.sequences[row, :length].tolist() == ids[:length].tolist()
        assert (out.sequences[row, length:] == case.settings["special"]["PAD"]).all()
        close(steps[row, : length - 1], log_probs[row, 1:length], LOGITS)


def test_greedy(case):
    out = case.model.generate(
        **case.inputs, num_beams=1, max_length=12, return_dict_in_generate=True, output_logits=True
    )
    log_probs = case.model.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)
    for row, length in enumerate(case["greedy.lengths"].flatten().tolist()):
        assert out.sequences[row, :length].tolist() == case["greedy.ids"][row, 0, :length].tolist()
        close(log_probs[row, : length - 1], case["greedy.logprobs"][row, 0, 1:length], LOGITS)
        score = log_probs[row, : length - 1].sum() / length
        close(score, case["greedy.scores"][row, 0], SCORES)


def test_roll_out_that_never_stops(case):
    ids = case["rollout.ids"]
    out = case.model.generate(**case.inputs, num_beams=1, max_length=ids.shape[1], eos_token_id=-1)
    assert torch.equal(out, ids)


@pytest.mark.parametrize("name", ["beam3", "beam5"])
def test_ensemble(parity_case, tmp_path, name):
    case = Case(parity_case, "features", tmp_path)
    second = AutoModel.from_pretrained(case.convert("checkpoint_features_2.pth", "second"))
    check_search(CaptionerEnsemble([case.model, second]), case, f"ens.{name}")


def test_schedules(parity_case):
    settings = json.loads((parity_case / "config.json").read_text())["schedules"]
    io = load_file(parity_case / "io.safetensors")
    for one in settings:
        schedule = SCHEDULES[one["sched_type"]]
        names = ["lr", "warmup_iters", "anneal_every_epoch"]
        names += ["min_lr", "anneal_coeff"] if one["sched_type"] == "custom_warmup_anneal" else []
        options = {name: one[name] for name in names}
        got = [
            schedule(step, batches_per_epoch=one["num_batches"], **options)
            for step in io[f"sched.{one['name']}.step"].tolist()
        ]
        np.testing.assert_allclose(got, io[f"sched.{one['name']}.lr"].numpy(), rtol=1e-12)


def test_optimizer(parity_case):
    io = load_file(parity_case / "io.safetensors")
    parameter = torch.nn.Parameter(io["radam.params"][0].clone())
    optimizer = RectifiedAdam([parameter])
    for gradient, lr, expected in zip(io["radam.grads"], io["radam.lr"], io["radam.params"][1:], strict=True):
        optimizer.param_groups[0]["lr"] = lr.item()
        parameter.grad = gradient.clone()
        optimizer.step()
        close(parameter.detach(), expected, 1e-6)


def test_preprocessing(parity_case):
    io = load_file(parity_case / "io.safetensors")
    side = json.loads((parity_case / "config.json").read_text())["preprocess"]["size"]
    picture = Image.fromarray(io["prep.image_uint8"].numpy())
    processor = CaptionerImageProcessor(size={"height": side, "width": side})
    close(processor(picture, return_tensors="pt").pixel_values, io["prep.pixel_values"], 1e-6)
    grey = CaptionerImageProcessor(size={"height": side, "width": side}, black_non_rgb=True)
    black = grey(picture.convert("L"), return_tensors="pt").pixel_values
    close(black, io["prep.gray_pixel_values_reference_bug"].expand_as(black), 1e-6)


def test_vocabulary_and_tokens(parity_case):
    text = json.loads((parity_case / "text.json").read_text())
    images = text["karpathy_json"]["images"]
    training = [s["raw"] for image in images if image["split"] in ("train", "restval") for s in image["sentences"]]
    vocabulary = build_vocabulary(training, text["dict_min_occurrences"])
    assert vocabulary == text["idx2word"]
    tokenizer = build_word_tokenizer(vocabulary, model_max_length=text["model_max_seq_len"])
    for one in text["tokenization"]:
        assert tokenizer(one["raw"]).input_ids == one["ids"], one["raw"]
    assert max(len(tokenizer(caption).input_ids) for caption in training) == text["max_caption_len"]


def test_captions_for_display(case):
    text = json.loads((case.folder / "text.json").read_text())
    folder = case.convert(case.settings[case.kind]["checkpoint"], "display")
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer = build_word_tokenizer(text["idx2word"])
    for one in text["descriptions"]:
        assert processor.batch_decode([one["ids"]], sentences=True) == [one["text"]]
