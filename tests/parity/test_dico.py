"""The DiCO captioner against the numbers of the original code (shared/parity/dico).

The checkpoints go through the public conversion and `from_pretrained`. Tolerances are the fixtures' own.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from hf_captioners.conversion import convert
from hf_captioners.conversion.dico import DEAD, original_name

VALUES = 1e-4
GRADIENTS = 1e-3  # relative


class Case:
    """A parity case; policy and reference converted and loaded when they are needed."""

    def __init__(self, folder: Path, out_dir: Path) -> None:
        self.folder, self.out_dir = folder, out_dir
        self.settings = json.loads((folder / "config.json").read_text())
        self.io = load_file(folder / "io.safetensors")
        self.eos, self.pad = self.settings["eos_token_id"], self.settings["pad_token_id"]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.io[name]

    def convert(self, which: str) -> Any:
        convert("dico", self.folder / which, self.out_dir / which)
        return AutoModel.from_pretrained(self.out_dir / which).eval()

    @cached_property
    def policy(self) -> Any:
        return self.convert("policy")

    @cached_property
    def reference(self) -> Any:
        return self.convert("reference")

    @property
    def masked_labels(self) -> torch.Tensor:
        return self["labels"].masked_fill(self["labels"] == self.pad, -100)

    def token_log_probs(self, model: Any, ids: torch.Tensor, inputs: torch.Tensor | None = None) -> torch.Tensor:
        """Of captions (B, K, L), (B, K, L - 1); 0 where the target is padding, anywhere, as the loss wants it."""
        targets = ids[..., 1:]
        rows = (ids if inputs is None else inputs).flatten(0, 1)[:, :-1]
        logits = model(pixel_values=self["pixel_values"], decoder_input_ids=rows).logits
        log_probs = logits.log_softmax(-1).unflatten(0, ids.shape[:2]).gather(-1, targets[..., None]).squeeze(-1)
        return log_probs * (targets != self.pad)


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request, shared_parity, tmp_path_factory) -> Case:
    return Case(shared_parity / "dico" / request.param, tmp_path_factory.mktemp(request.param))


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = VALUES) -> None:
    torch.testing.assert_close(got.detach(), expected.to(got.dtype), atol=tolerance, rtol=0)


def test_sizes_are_the_configurations(case):
    config, settings = case.policy.config, case.settings
    assert (config.d_model, config.decoder_ffn_dim) == (settings["n_embd"], settings["n_inner"])
    assert config.encoder_layers == config.decoder_layers == settings["n_layer"]
    assert config.encoder_attention_heads == config.decoder_attention_heads == settings["n_head"]
    assert config.encoder_ffn_dim == settings["bert"]["intermediate_size"]
    assert config.max_image_tokens == settings["bert"]["max_position_embeddings"]
    assert config.max_position_embeddings == settings["n_positions"]
    assert (config.vocab_size, config.feature_size) == (settings["vocab_size"], settings["vision"]["hidden_size"])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        assert getattr(config, name) == settings[name]


def test_vision(case):
    features = case.policy.extract_image_features(case["pixel_values"])
    close(features, case["vision_last_hidden_state"])
    projection = case.policy.vis_enc_to_enc_proj
    assert (projection is not None) == case.settings["has_vis_enc_to_enc_proj"] == ("vision_projected" in case.io)
    if projection is not None:
        close(projection(features), case["vision_projected"])


@pytest.mark.parametrize("name", ["pixel_values", "image_features"])
def test_encoder(case, name):
    pictures = {"pixel_values": case["pixel_values"], "image_features": case["vision_last_hidden_state"]}
    encoded = case.policy.encode_images(**{name: pictures[name]}, output_hidden_states=True)
    close(encoded.hidden_states[0], case["encoder_embedding_output"])
    close(encoded.last_hidden_state, case["encoder_last_hidden_state"])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits(case, attention):
    for model, name in ((case.policy, "tf_logits"), (case.reference, "tf_logits_reference")):
        model.set_attn_implementation(attention)
        assert torch.equal(model.shift_labels(case.masked_labels), case["tf_decoder_input_ids"])
        close(model(pixel_values=case["pixel_values"], labels=case.masked_labels).logits, case[name])
        model.set_attn_implementation("sdpa")


def test_cross_entropy(case):
    for labels in (case["labels"], case.masked_labels):
        output = case.policy(pixel_values=case["pixel_values"], labels=labels)
        close(output.loss, case["xe_loss_ignore_pad"])
        counted = case.policy(pixel_values=case["pixel_values"], labels=labels, pad_in_loss=True)
        close(counted.loss, case["xe_loss"])
    only_starts = torch.full_like(case["labels"], case.settings["bos_token_id"])
    released = case.policy(
        pixel_values=case["pixel_values"], decoder_input_ids=only_starts, labels=case["labels"], pad_in_loss=True
    )
    close(released.loss, case["xe_loss_released_3d_labels"])


def test_gradients_of_cross_entropy(case):
    model = case.policy
    model.freeze_backbone()
    model.zero_grad()
    model(pixel_values=case["pixel_values"], labels=case["labels"], pad_in_loss=True).loss.backward()
    check_gradients(case, "xe")


def check_gradients(case: Case, kind: str) -> None:
    ours = {original_name(name): one for name, one in case.policy.named_parameters() if one.requires_grad}
    names = case.settings["trainable_parameter_names"]
    assert set(names) - set(ours) == {name for name in names if DEAD.fullmatch(name)}
    assert set(ours) <= set(names)
    for name, expected in zip(names, case[f"{kind}_grad_norms"].tolist(), strict=True):
        norm = ours[name].grad.norm().item() if name in ours else 0.0
        assert norm == pytest.approx(expected, rel=GRADIENTS, abs=1e-6), name
    groups = {"all": "", "decoder": "decoder.", "encoder": "encoder.encoder.", "proj": "encoder.vis_enc_to_enc_proj."}
    for group, prefix in groups.items():
        gradients = [one.grad.norm() for name, one in ours.items() if name.startswith(prefix)]
        norm = torch.stack(gradients).norm().item() if gradients else 0.0
        if f"{kind}_grad_norm_{group}" in case.io:
            assert norm == pytest.approx(case[f"{kind}_grad_norm_{group}"].item(), rel=GRADIENTS), group
    for short, name in {
        "ln_f_weight": "decoder.transformer.ln_f.weight",
        "wte_weight": "decoder.transformer.wte.weight",
        "crossattn_q0_bias": "decoder.transformer.h.0.crossattention.q_attn.bias",
        "enc_emb_ln_bias": "encoder.encoder.embeddings.LayerNorm.bias",
    }.items():
        expected = case[f"{kind}_grad_{short}"]
        close(ours[name].grad, expected, GRADIENTS * expected.abs().max().item())


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(case, use_cache):
    out = case.policy.generate(
        pixel_values=case["pixel_values"],
        num_beams=1,
        max_length=case.settings["generation_max_length"],
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert torch.equal(out.sequences, case["greedy_ids"])
    log_probs = case.policy.sequence_log_probs(out.sequences, pixel_values=case["pixel_values"])
    close(log_probs.sum(-1), case["greedy_logp"])
    steps = case.policy.compute_transition_scores(out.sequences, out.logits, normalize_logits=True)
    ended = (out.sequences[:, 1:] == case.eos).cumsum(1) - (out.sequences[:, 1:] == case.eos).long()
    close(steps.masked_fill(ended > 0, 0.0).sum(-1), case["greedy_logp"])


def beam_names(case: Case) -> list[str]:
    return sorted(name.removesuffix("_ids") for name in case.io if name.startswith("beam") and name.endswith("_ids"))


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"decoding": "paper"}], ids=str)
def test_n_best_lists(case, options):
    assert len(beam_names(case)) >= 2
    for name in beam_names(case):
        expected = case[f"{name}_ids"]
        pictures, beams, longest = expected.shape
        out = case.policy.generate(
            pixel_values=case["pixel_values"],
            num_beams=beams,
            num_return_sequences=beams,
            max_length=longest,
            return_dict_in_generate=True,
            **options,
        )
        ids = torch.nn.functional.pad(out.sequences, (0, longest - out.sequences.shape[1]), value=case.pad)
        assert torch.equal(ids, expected.flatten(0, 1)), name
        close(out.sequences_scores.view(pictures, beams), case[f"{name}_scores"])


def test_log_probs_of_n_best_lists(case):
    for model, name in ((case.policy, "policy"), (case.reference, "ref")):
        close(case.token_log_probs(model, case["beam5_ids"]).sum(-1), case[f"beam5_{name}_logps"])
    ids = case["beam5_ids"]
    per_token = case.policy.sequence_log_probs(ids.flatten(0, 1), pixel_values=case["pixel_values"])
    real = (ids[..., 1:] != case.pad).flatten(0, 1)  # a padding token may be written before the end, and counts there
    close((per_token * real).sum(-1).view(ids.shape[:2]), case["beam5_policy_logps"])


def test_log_probs_of_given_candidates(case):
    """With a caption that is cut off, a duplicate, and padding in the middle."""
    ids = case["cand_ids"]
    policy = case.token_log_probs(case.policy, ids)
    assert torch.equal(ids[..., 1:] != case.pad, case["cand_mask"])
    close(policy, case["cand_policy_token_logps"])
    close(policy.sum(-1), case["cand_policy_logps"])
    close(case.token_log_probs(case.reference, ids).sum(-1), case["cand_ref_logps"])
    # the original writes padding over the end tokens of the decoder's input, which nothing that counts can see
    close(case.token_log_probs(case.policy, ids, case["cand_decoder_input_ids"]), policy)


def test_gradients_of_given_candidates(case):
    """The loss written out once more from the specification (section 5.1), for its gradients through the captioner."""
    model, ids, beta, tau = case.policy, case["cand_ids"], case.settings["dico_beta"], case.settings["dico_tau"]
    model.freeze_backbone()
    model.zero_grad()
    ratios = case.token_log_probs(model, ids).sum(-1) - case["cand_ref_logps"]
    winner = case["cand_rewards"].argmax(1, keepdim=True)
    losers = torch.ones_like(ratios, dtype=torch.bool).scatter(1, winner, False)
    gamma = (-tau * case["cand_rewards"][losers].view(len(ids), -1)).softmax(-1)
    margin = ratios.gather(1, winner)[:, 0] - (gamma * ratios[losers].view(len(ids), -1)).sum(1)
    loss = -torch.nn.functional.logsigmoid(beta * margin).mean()
    close(loss, case["cand_loss"])
    loss.backward()
    check_gradients(case, "cand")
