"""Every family by every method, whole and with adapters: the loss falls, and only what should learn is changed."""

from __future__ import annotations

import pytest
import torch
from contracts.reward_policies import arbitrary, changed, quickly, reward_trainer, tiny_rows, weights
from contracts.tiny_families import KINDS, tiny_images, tiny_model
from peft import LoraConfig

from hf_captioners import DiCOConfig, SCSTConfig, XEConfig, XETrainer
from hf_captioners.families import family_of, without_adapters

ALIKE = {"instructblip", "idefics3", "smolvlm", "qwen2_5_vl"}  # they learn by the code of others
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in sorted(KINDS)]


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"), 4)


def trainer_of(method, name, folder, rows, **options):
    """Two steps on a fixed batch of four images."""
    kind = KINDS[name]
    options = {"max_grad_norm": 0.0, "learning_rate": 5e-3, "processing_class": kind.processor(), **options}
    model = options.pop("model", None) or tiny_model(name)
    if method == "xe":
        extra = {key: options.pop(key) for key in ("processing_class", "peft_config") if key in options}
        usual = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "max_steps": 2}
        usual |= {"logging_steps": 1, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
        args = XEConfig(output_dir=str(folder), **{**usual, "max_unknown_words": 1.0, **options})
        return XETrainer(model, args, rows, **extra)
    config = DiCOConfig if method == "dico" else SCSTConfig
    own = {"candidate_strategy": "beam"} if method == "dico" else {"candidate_strategy": "sample"}
    return reward_trainer(config, folder, rows, model=model, **{**own, "max_completion_length": 5, **options})


def fixed_loss(run, rows):
    """Cross-entropy of the rows' captions, in evaluation mode."""
    model = without_adapters(run.model)
    batch = run.family.training_batch(run.processing_class, rows, [row["captions"][0] for row in rows])
    with torch.no_grad():
        return float(run.family.caption_loss(model.eval(), batch, None, None))


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["xe", "scst", "dico"])
@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name, method, adapters, tmp_path, rows):
    torch.manual_seed(0)
    options = {}
    if adapters:
        options["peft_config"] = LoraConfig(r=2, target_modules=KINDS[name].lora, init_lora_weights=False)
    if method == "xe":
        rows = [{**row, "captions": row["captions"][:1]} for row in rows]
    run = trainer_of(method, name, tmp_path, rows, **options)
    before, loss = weights(run.model), fixed_loss(run, rows)
    family, base = run.family, without_adapters(run.model)
    frozen = {id(one) for one in family.backbone(base).parameters()} if not adapters else set()
    run.train()
    if method == "xe":
        assert fixed_loss(run, rows) < loss
    assert [entry["grad_norm"] > 0 for entry in run.state.log_history if "loss" in entry] == [True, True]
    moved, parameters = changed(before, run.model), dict(run.model.named_parameters(remove_duplicate=False))
    if adapters:
        assert moved and all("lora_" in one for one in moved)
    else:
        learns = {one for one, value in parameters.items() if id(value) not in frozen and value.requires_grad}
        assert moved & parameters.keys() <= learns
        assert len(moved) > 0.6 * len(learns)


@pytest.mark.parametrize("name", NAMES)
def test_dico_of_two_candidates_is_dpo(name, tmp_path, rows):
    """Rafailov et al. (2023), equation 7."""
    beta = 0.5
    reference = tiny_model(name, seed=1)
    run = trainer_of(
        "dico", name, tmp_path, rows, ref_model=reference, num_generations=2, beta=beta, max_steps=1,
        mask_truncated_completions=True,
    )  # fmt: skip
    written, roll_out = [], run.roll_out
    run.roll_out = lambda batch: written.append(roll_out(batch)) or written[-1]
    model = tiny_model(name)
    run.train()
    rollout = written[0]
    policy, ref = (
        run.family.log_probs(
            one, rollout.candidates.sequences, run.family.encode(one, run.family.run_backbone(one, pixels))
        )[0].masked_fill(~rollout.candidates.mask, 0).sum(1).view(-1, 2)
        for one, pixels in ((model, batch_inputs(run, rollout)), (reference, batch_inputs(run, rollout)))
    )  # fmt: skip
    rewards = torch.tensor(arbitrary(rollout.candidates.ids)).view(-1, 2)
    losses = []
    for row in range(len(rewards)):
        if not bool(rollout.valid[row].all()):
            losses.append(torch.zeros(()))
            continue
        best = int(rewards[row].argmax())
        margin = (policy[row, best] - ref[row, best]) - (policy[row, 1 - best] - ref[row, 1 - best])
        losses.append(-torch.nn.functional.logsigmoid(beta * margin))
    expected = torch.stack(losses).mean()
    assert run.state.log_history[0]["loss"] == pytest.approx(float(expected), abs=1e-5)


def batch_inputs(run, rollout):
    """The images of a rollout, prepared anew."""
    images = [{"image": image} for image in rollout.columns["image"]]
    return dict(run.family.prepare_rows(run.processing_class, images))


def test_accumulation_is_a_larger_batch(tmp_path, rows):
    runs = []
    for size, steps in ((4, 1), (1, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        options |= {"optim": "sgd", "learning_rate": 0.1}
        run = trainer_of("xe", "blip", tmp_path / str(size), rows, **options)
        run.train()
        runs.append(weights(run.model))
    moved = max(float((runs[0][name] - tiny_model("blip").state_dict()[name]).abs().max()) for name in runs[0])
    apart = max(float((runs[0][name] - runs[1][name]).abs().max()) for name in runs[0])
    assert moved > 1e-4 and apart < 1e-2 * moved


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_activations_changes_nothing(name, tmp_path, rows):
    """With adapters, whose gradients have to come through layers that do not learn."""
    learned, rows = [], [{**row, "captions": row["captions"][:1]} for row in rows]
    for checkpointing in (False, True):
        torch.manual_seed(0)
        adapters = LoraConfig(r=2, target_modules=KINDS[name].lora, init_lora_weights=False)
        options = {"peft_config": adapters, "gradient_checkpointing": checkpointing, "optim": "sgd"}
        run = trainer_of("xe", name, tmp_path / str(checkpointing), rows, max_steps=1, **options)
        run.train()
        learned.append({one: value for one, value in weights(run.model).items() if "lora_" in one})
    for one, value in learned[0].items():
        torch.testing.assert_close(learned[1][one], value, msg=one)


def test_checkpointing_activations_while_candidates_are_written(tmp_path, rows):
    losses = []
    for checkpointing in (False, True):
        run = trainer_of("scst", "git", tmp_path, rows, gradient_checkpointing=checkpointing, max_steps=2)
        run.train()
        losses.append([entry["loss"] for entry in run.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_prompt_is_kept_out_of_captions_and_loss(rows):
    model, kind = tiny_model("blip"), KINDS["blip"]
    family, processor = family_of(model, prompt="photo of"), kind.processor()
    plain = family_of(model)
    images = [{"image": row["image"]} for row in rows]
    batch = family.training_batch(processor, images, ["a red star"] * 4)
    assert torch.equal(batch["labels"], plain.training_batch(processor, images, ["a red star"] * 4)["labels"])
    whole = plain.training_batch(processor, images, ["photo of a red star"] * 4)
    tokens = torch.full((4, 1), family.tokens.start_token_id)
    sequences = torch.cat([tokens, whole["labels"]], dim=1)
    encoded = plain.encode(model, plain.image_inputs(model, whole))
    expected = plain.log_probs(model, sequences, encoded)[0][:, 2:]
    own = family.encode(model, family.image_inputs(model, batch))
    got = family.log_probs(model, torch.cat([tokens, batch["labels"]], dim=1), own)[0]
    torch.testing.assert_close(got, expected)
    written = family.generate(model, own, max_length=6)
    assert written.shape[1] <= 6
    assert not any(text.startswith("photo of") for text in family.decode(processor, written))


def test_adapters_that_peft_has_no_layers_for(tmp_path, rows):
    with pytest.raises(ValueError, match=r"peft knows no layers of a blip for adapters; name some of .*query"):
        trainer_of("xe", "blip", tmp_path, rows, peft_config=LoraConfig(r=2))


def test_features_of_any_number_are_not_kept(tmp_path, rows):
    with pytest.raises(ValueError, match="the features of a LlavaForConditionalGeneration differ in number"):
        trainer_of("scst", "llava", tmp_path, rows, cache_image_features=True)


def test_patches_of_the_first_images(rows):
    """Qwen's patches of all images are one after the other."""
    model, processor = tiny_model("qwen2_5_vl"), KINDS["qwen2_5_vl"].processor()
    family = family_of(model)
    images = [{"image": image} for image in tiny_images(3)]
    batch = {**family.training_batch(processor, images, ["a star"] * 6), "columns": {"image_id": [0, 1, 2]}}
    first = family.first_images(batch, 2, 3)
    alone = family.training_batch(processor, images[:2], ["a star"] * 4)
    assert torch.equal(first["pixel_values"], alone["pixel_values"])
    assert torch.equal(first["image_grid_thw"], alone["image_grid_thw"])
    assert first["labels"].shape[0] == 4 and first["columns"] == {"image_id": [0, 1]}
