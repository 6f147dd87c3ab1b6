"""SCD-Net against the numbers of the original code (shared/parity/scdnet).

The checkpoints go through the public conversion and `from_pretrained`. Tolerances are the fixtures' own. Case a is a
first stage, case b a second stage and the cascade of both.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

from hf_captioners.conversion import convert
from hf_captioners.metrics import DocumentFrequencies
from hf_captioners.modeling.diffusion_scdnet import bits_to_ids, corrupt, ids_to_bits, log_snr, signal_and_noise
from hf_captioners.rewards.cider import CiderDReward
from hf_captioners.training.guides import merge_guides
from hf_captioners.training.reward.losses import loss_items, self_critical_loss
from hf_captioners.training.schedules import noam

EXACT, NEAR = 1e-5, 1e-4


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = NEAR) -> None:
    torch.testing.assert_close(got.float(), expected.float(), atol=tolerance, rtol=0)


class Case:
    """A parity case; its networks are converted and loaded when they are asked for."""

    def __init__(self, folder: Path, out_dir: Path) -> None:
        self.folder, self.out_dir = folder, out_dir
        self.settings = json.loads((folder / "config.json").read_text())
        self.reference = self.settings["reference_config"]
        self.io = load_file(folder / "io.safetensors")
        self.is_second = "train.c_tokens_ids" in self.io

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.io[name]

    def converted(self, name: str, **options) -> Path:
        options = {"original_config": self.reference, **options}
        out_dir = self.out_dir / name
        if not out_dir.exists():
            vocabulary = self.folder / "vocabulary.txt"
            convert("scdnet", self.folder / "checkpoint.pth", out_dir, vocabulary=vocabulary, **options)
        return out_dir

    @property
    def raw(self):
        """The raw weights, fresh, in training mode; the fixtures have no dropout."""
        return AutoModelForImageTextToText.from_pretrained(self.converted("raw", ema=False)).train()

    @cached_property
    def ema(self):
        return AutoModelForImageTextToText.from_pretrained(self.converted("ema")).eval()

    @cached_property
    def processor(self):
        return AutoProcessor.from_pretrained(self.converted("ema"))

    def images(self, part: str = "train", sentences: str | None = None) -> dict[str, torch.Tensor]:
        sentences = sentences or part
        inputs = {
            "image_features": self[f"{part}.att_feats"],
            "image_attention_mask": self[f"{part}.att_masks"],
            "retrieved_ids": self[f"{sentences}.r_tokens_ids"],
            "retrieved_mask": self[f"{sentences}.r_tokens_masks"],
        }
        return inputs | ({"previous_ids": self[f"{sentences}.c_tokens_ids"]} if self.is_second else {})

    def chance(self, kind: str) -> dict:
        return {"timesteps": self["train.t"], "noise": self["train.noise"], "self_conditioning": kind == "sc"}

    def check_gradients(self, model, full: str, norms: str) -> None:
        parameters = dict(model.named_parameters())
        assert parameters.keys() == set(self.settings["param_names"])
        got = torch.stack([parameters[name].grad.norm() for name in self.settings["param_names"]])
        close(got, self[norms])
        for name in self.settings["selected_params"]:
            close(parameters[name].grad, self[f"{full}.{name}"])


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request, shared_parity, tmp_path_factory) -> Case:
    return Case(shared_parity / "scdnet" / request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def cascade(shared_parity, tmp_path_factory) -> Case:
    return Case(shared_parity / "scdnet" / "case_b", tmp_path_factory.mktemp("cascade"))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedule(case, schedule):
    ratios = log_snr(case["sched.t"], schedule)
    close(ratios, case[f"sched.{schedule}.log_snr"], EXACT)
    alpha, sigma = signal_and_noise(ratios)
    close(alpha, case[f"sched.{schedule}.alpha"], EXACT)
    close(sigma, case[f"sched.{schedule}.sigma"], EXACT)


def test_bits(case):
    bits = ids_to_bits(case["bits.v10200.ids"], 14, 10200)
    assert torch.equal(bits, case["bits.v10200.bits"])
    assert torch.equal(bits_to_ids(bits), case["bits.v10200.decoded"])
    assert torch.equal(bits_to_ids(case["bits.v10200.raw_bits"]), case["bits.v10200.raw_decoded"])
    assert torch.equal(case.ema.codec.table, case["bits.vocab_table"][0])


def test_corruption(case):
    ratios = log_snr(case["train.t"])
    close(ratios, case["train.log_snr"], EXACT)
    bits = case.ema.codec.encode(case["train.u_tokens_ids"])
    assert torch.equal(bits, case["train.x0_bits"])
    close(corrupt(bits, case["train.noise"], ratios), case["train.x_t"], EXACT)


def test_layers(case):
    model = case.raw
    encoded = model.encode_images(**case.images(), output_hidden_states=True)
    close(encoded.retrieved, case["mid.r_embed"], EXACT)
    real = case["train.att_masks"].bool()
    width = encoded.last_hidden_state.shape[1]
    close(encoded.hidden_states[0][real[:, :width]], case["mid.visual_embed"][real], EXACT)
    close(encoded.last_hidden_state[real[:, :width]], case["mid.visual_enc"][real])
    close(model.token_embed.time_embed(log_snr(case["train.t"])), case["mid.time_embed"])
    output = model(
        encoder_outputs=encoded, labels=case["train.u_tokens_ids"], output_hidden_states=True, **case.chance("nosc")
    )
    bits, semantic, *layers = output.decoder_hidden_states
    close(bits, case["mid.u_embed"], EXACT)
    close(semantic, case["mid.sem"])
    for index, layer in enumerate(layers):
        close(layer, case[f"mid.dec_{index}"])


@pytest.mark.parametrize("kind", ["nosc", "sc"])
def test_training_step(case, kind):
    model, labels = case.raw, case["train.u_tokens_ids"]
    output = model(**case.images(), labels=labels, **case.chance(kind))
    close(output.logits, case[f"train.{kind}.logits"])
    close(model.expected_bits(output.logits), case[f"train.{kind}.x0_pred"])
    ended = (labels == 0).long().cumsum(1) - (labels == 0).long() > 0
    bits, words = model.loss_terms(output.logits, labels.masked_fill(ended, -100))
    close(bits, case[f"train.{kind}.loss_mse"], EXACT)
    close(words, case[f"train.{kind}.loss_ls"], EXACT)
    torch.testing.assert_close(output.loss, bits + words)
    output.loss.backward()
    case.check_gradients(model, f"grad.{kind}", f"grad.{kind}.norms")


def test_three_optimizer_steps(case):
    model, solver, schedule = case.raw, case.reference["SOLVER"], case.reference["LR_SCHEDULER"]
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(case.reference["MODEL"]["EMA_DECAY"])
    )
    averaged.update_parameters(model)  # starts as a copy
    optimizer = torch.optim.Adam(model.parameters(), betas=tuple(solver["BETAS"]), eps=solver["EPS"])
    highest = (schedule["MODEL_SIZE"] * schedule["WARMUP"]) ** -0.5 * schedule["FACTOR"]
    for step in range(3):
        rate = noam(step, lr=highest, warmup_iters=schedule["WARMUP"])
        assert rate == pytest.approx(case["step.lr"][step].item(), rel=1e-5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chance = {"timesteps": case["step.t"][step], "noise": case["step.noise"][step]}
        chance["self_conditioning"] = bool(case["step.self_cond"][step])
        optimizer.zero_grad()
        loss = model(**case.images(), labels=case["train.u_tokens_ids"], **chance).loss
        close(loss, case["step.losses"][step].sum())
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), solver["GRAD_CLIP"])
        optimizer.step()
        averaged.update_parameters(model)
    for name in case.settings["selected_params"]:
        close(model.get_parameter(name), case[f"step.param.{name}"])
        close(averaged.module.get_parameter(name), case[f"step.ema.{name}"])


@pytest.mark.parametrize("kind", ["guided", "free"])
def test_self_critical_step(case, kind):
    model, part = case.raw, f"rl.{kind}"
    sentences = case.images(sentences=part)
    chance = {"timesteps": case[f"{part}.t"], "noise": case[f"{part}.noise"]}
    chance["self_conditioning"] = bool(case[f"{part}.self_cond"])
    guide, words = case[f"{part}.u_tokens_ids"], case[f"{part}.sample_ids"]
    logits = model(**sentences, labels=guide, **chance).logits
    close(logits, case[f"{part}.logits"])
    assert torch.equal(logits.argmax(-1), case[f"{part}.greedy_ids"])
    sequences = torch.nn.functional.pad(words, (1, 0))
    log_probs = model.sequence_log_probs(sequences, **sentences, targets=guide, **chance)
    is_end = (words == 0).long()
    mask = is_end.cumsum(1) - is_end == 0
    close(log_probs[mask], case[f"{part}.sample_logp"][mask])
    gains = case[f"{part}.advantage"]
    loss = self_critical_loss(log_probs, mask, gains, "token") / loss_items(mask, "token")
    close(loss, case[f"{part}.loss"])
    loss.backward()
    case.check_gradients(model, f"{part}.grad", f"{part}.gradnorms")


def variant(case: Case, name: str):
    """A variant's model and its options of `generate`."""
    changes, options = case.settings["variants"][name], {"noise": case[f"sample.{name}.x_T"]}
    names = {"TIMESTEPS": "num_inference_steps", "TIME_DIFFERENCE": "time_difference", "SAMPLE_NOISE": "sample_noise"}
    options |= {ours: changes[theirs] for theirs, ours in names.items() if theirs in changes}
    if options.get("sample_noise"):
        options["step_noise"] = case[f"sample.{name}.step_noise"]
    fields = {"NOISE_SCHEDULE": "noise_schedule", "BIT_SCALE": "bit_scale"}
    fields = {ours: changes[theirs] for theirs, ours in fields.items() if theirs in changes}
    if not fields:
        return case.ema, options
    return AutoModelForImageTextToText.from_pretrained(case.converted("ema"), **fields).eval(), options


@pytest.mark.parametrize("name", ["base", "td", "noisy", "linear", "scale", "one"])
def test_sampling(case, name):
    if name not in case.settings["variants"]:
        pytest.skip("case a only")
    model, options = variant(case, name)
    output = model.generate(**case.images("test"), **options, return_dict_in_generate=True, output_scores=True)
    (stage,) = output.stages
    close(torch.stack(stage.states), case[f"sample.{name}.x_t"])
    close(torch.stack(stage.predictions), case[f"sample.{name}.x0_pred"])
    close(stage.state, case[f"sample.{name}.x_final"])
    assert torch.equal(bits_to_ids(stage.state), case[f"sample.{name}.ids_raw"])
    close(stage.probabilities[0], case[f"sample.{name}.logits_first"].softmax(-1))
    close(stage.probabilities[-1], case[f"sample.{name}.logits_last"].softmax(-1))
    assert case.processor.batch_decode(output.sequences) == case.settings["captions"][name]


def test_online_cascade(cascade):
    reference = cascade.settings["reference_config_cascade"]
    stage1 = cascade.folder / "checkpoint_stage1.pth"
    folder = cascade.converted("cascade", stage1=stage1, original_config=reference)
    model = AutoModel.from_pretrained(folder).eval()
    images = {name: value for name, value in cascade.images("test").items() if name != "previous_ids"}
    noise = [cascade["cascade.s1.x_T"], cascade["cascade.s2.x_T"]]
    output = model.generate(**images, noise=noise, return_dict_in_generate=True, output_scores=True)  # its own settings
    for index, stage in enumerate(output.stages, start=1):
        close(torch.stack(stage.states), cascade[f"cascade.s{index}.x_t"])
        close(stage.state, cascade[f"cascade.s{index}.x_final"])
    close(torch.stack(output.stages[0].predictions), cascade["cascade.s1.x0_pred"])
    fused = torch.stack(output.stages[1].predictions)
    close(fused[:-1], cascade["cascade.s2.self_cond"])
    both = (cascade["cascade.s2.x0_pred_model1"] + cascade["cascade.s2.x0_pred_model2"]) / 2
    close(fused, both)
    words = output.sequences[:, 1:]
    expected = cascade["cascade.s2.ids"][:, : words.shape[1]]
    assert torch.equal(words, expected)
    assert cascade.processor.batch_decode(output.sequences) == cascade.settings["captions"]["cascade"]


def referenced(case: Case) -> dict[str, list[list[int]]]:
    """References of the training images as ids, end included."""
    rows = [[[one for one in row if one >= 0] for row in image] for image in case["cider.gts"].tolist()]
    return dict(zip(case.settings["cider_gts_image_ids"], rows, strict=True))


def rewards(case: Case, ids: torch.Tensor, images: list[str]) -> torch.Tensor:
    references = referenced(case)
    frequencies = DocumentFrequencies.from_references(list(references.values()), token_ids=True, eos=0)
    completions = [row[: row.index(0) + 1] if 0 in row else row for row in ids.tolist()]
    reward = CiderDReward(frequencies, token_ids=True, eos=0)
    return torch.tensor(
        reward([""] * len(ids), completion_ids=completions, captions=[references[one] for one in images])
    )


def test_cider_d_of_ids(case):
    close(rewards(case, case["cider.hyp_ids"], case.settings["cider_hyp_image_ids"]), case["cider.hyp_rewards"])
    for name, ids in (("last", "last_kd"), ("new", "new_pred")):
        got = rewards(case, case[f"merge.{ids}"], case.settings["cider_gts_image_ids"])
        close(got, case[f"merge.reward_{name}"])


def test_update_of_the_guiding_sentences(case):
    images = case.settings["cider_gts_image_ids"]
    last, new = (dict(zip(images, case[f"merge.{name}"].tolist(), strict=True)) for name in ("last_kd", "new_pred"))
    assert list(merge_guides(last, new, referenced(case)).values()) == case["merge.merged"].tolist()


@pytest.mark.parametrize("kind", ["guided", "free"])
def test_advantages_of_a_self_critical_step(case, kind):
    part, images = f"rl.{kind}", case.settings["train_image_ids"]
    copies = len(case[f"{part}.sample_ids"]) // len(images)
    images = [one for one in images for _ in range(copies)]
    sampled, greedy = (rewards(case, case[f"{part}.{name}_ids"], images) for name in ("sample", "greedy"))
    close(sampled, case[f"{part}.reward_sample"])
    close(sampled - greedy, case[f"{part}.advantage"])
    if kind == "guided":
        words = case[f"{part}.sampled_ids_raw"].clone()
        forced = case[f"{part}.replace_inds"] + torch.arange(0, len(words), copies)
        words[forced] = case[f"{part}.fix_tokens_ids"][forced]
        assert torch.equal(words, case[f"{part}.sample_ids"])


def test_candidates_are_drawn_from_the_step_that_scores_them(case):
    model, part = case.ema, "rl.free"
    images = {name: value[:1] for name, value in case.images(sentences=part).items()}
    images["guide_ids"] = case[f"{part}.u_tokens_ids"][:1]
    encoded = model.encode_images(**images)
    options = {"num_candidates": 4, "max_length": 8, "seeds": ["3 0 x"]}
    out = model.write_candidates(encoded, **options)
    assert torch.equal(model.write_candidates(encoded, **options).sequences, out.sequences)
    assert out.sequences.shape == (4, 8)
    assert torch.equal(out.scoring_inputs["targets"], images["guide_ids"].repeat(4, 1))
    scores = model.sequence_log_probs(out.sequences, encoder_outputs=encoded, **out.scoring_inputs)
    assert scores.shape == (4, 7) and torch.isfinite(scores).all()
    greedy = model.write_candidates(encoded, **options, greedy=True)
    best = model.sequence_log_probs(greedy.sequences, encoder_outputs=encoded, **greedy.scoring_inputs)
    assert (best.flatten()[greedy.sequences[:, 1:].flatten() > 0] >= -torch.log(torch.tensor(100.0))).all()
    forced = model.write_candidates(encoded, **options, force_guided=True).sequences
    guide = images["guide_ids"][0, :7]
    assert sum(torch.equal(row[1:], guide) for row in forced) >= 1
