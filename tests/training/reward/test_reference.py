"""The frozen model that reward training stays close to: copies, adapters, and what follows the family."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import (
    AutoModelForImageTextToText,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from hf_captioners import SaticConfig, SaticForImageCaptioning
from hf_captioners.families import family_of
from hf_captioners.training.reward.reference import ADAPTER, ReferenceModel, SyncReferenceCallback, frozen_copy

peft = pytest.importorskip("peft")


@pytest.fixture()
def model(tiny_captioner_dir):
    model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir)
    model.freeze_backbone("none")
    return model


@pytest.fixture()
def pictures() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))}


@pytest.fixture()
def vision_encoder_decoder() -> VisionEncoderDecoderModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = ViTConfig(image_size=32, patch_size=8, **sizes)
    decoder = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=12)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(config).eval()
    model.generation_config.update(decoder_start_token_id=0, eos_token_id=1, pad_token_id=2)
    return model


@torch.no_grad()
def scores(model, pictures) -> torch.Tensor:
    """Log-probabilities of two captions of each picture."""
    ids = torch.tensor([[0, 5, 6, 7, 8], [0, 9, 8, 1, 2], [0, 4, 4, 5, 1], [0, 11, 12, 13, 14]])
    family = family_of(model)
    training = model.training
    log_probs, _ = family.log_probs(model.eval(), ids, family.encode(model, family.run_backbone(model, pictures)))
    model.train(training)
    return log_probs


def train(model, pictures, steps: int = 2) -> None:
    """Some steps that change everything that learns."""
    learning = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    ids = torch.tensor([[0, 5, 6, 7, 8], [0, 4, 4, 5, 1]])
    family = family_of(model)
    for _ in range(steps):
        optimizer.zero_grad()
        memory = family.encode(model, family.run_backbone(model, pictures))
        family.log_probs(model, ids, memory)[0].sum().backward()
        optimizer.step()


def spoken(reference, model, pictures) -> torch.Tensor:
    with reference.in_use(model) as frozen:
        return scores(frozen, pictures)


def adapted(model, trained: bool = True, **options):
    """The model with adapters in its attention, that differ from no adapters."""
    options = {"r": 2, "target_modules": model.LORA_TARGET_MODULES, **options}
    inside = peft.get_peft_model(model, peft.LoraConfig(**options))
    if trained:
        with torch.no_grad():
            for index, one in enumerate(one for one in inside.parameters() if one.requires_grad):
                one += 0.3 * torch.randn(one.shape, generator=torch.Generator().manual_seed(index))
    return inside


def state(model) -> tuple:
    """State that `in_use` must leave as it was."""
    learning = {name: one.requires_grad for name, one in model.named_parameters() if f".{ADAPTER}" not in name}
    return learning, model.training, [module.training for module in model.modules()]


# -- a model of its own ----------------------------------------------------------------------------------------------


def test_a_copy_shares_the_frozen_backbone_and_nothing_else(model):
    reference = ReferenceModel(model, family_of(model))
    assert reference.model is not model
    assert reference.model.backbone is model.backbone
    assert reference.shares_backbone(model)
    own = {id(one) for one in reference.model.parameters()} - {id(one) for one in model.backbone.parameters()}
    assert own
    assert not own & {id(one) for one in model.parameters()}
    assert any(one.requires_grad for one in model.parameters())
    assert not any(one.requires_grad for one in reference.model.parameters())
    assert not reference.model.training


def test_a_backbone_that_learns_is_copied(model, pictures):
    model.freeze_backbone(r"layers\.1")
    reference = ReferenceModel(model, family_of(model))
    assert reference.model.backbone is not model.backbone
    assert not reference.shares_backbone(model)
    assert any(one.requires_grad for one in model.backbone.parameters())
    before = scores(model, pictures)
    train(model, pictures)
    assert torch.equal(spoken(reference, model, pictures), before)


def test_the_reference_stays_what_the_policy_was(model, pictures):
    before = scores(model, pictures)
    reference = ReferenceModel(model, family_of(model))
    model.train()
    train(model, pictures)
    assert torch.equal(spoken(reference, model, pictures), before)
    assert not torch.allclose(scores(model, pictures), before)
    assert model.training


def test_a_model_that_is_given_is_frozen(model, pictures):
    given = copy.deepcopy(model).train()
    with torch.no_grad():
        given.vocab_linear.bias += torch.arange(len(given.vocab_linear.bias))
    reference = ReferenceModel(model, family_of(model), given)
    assert reference.model is given
    assert not (given.training or any(one.requires_grad for one in given.parameters()))
    assert not reference.shares_backbone(model)
    assert torch.equal(spoken(reference, model, pictures), scores(given, pictures))


def test_the_model_itself_is_refused(model):
    with pytest.raises(ValueError, match="ref_model is the model itself and would learn with it; give a copy, or None"):
        ReferenceModel(model, family_of(model), model)
    inside = adapted(model)
    with pytest.raises(ValueError, match="ref_model is the model itself"):
        ReferenceModel(inside, family_of(inside), inside.get_base_model())


def test_no_gradient_while_the_reference_speaks(model):
    reference = ReferenceModel(model, family_of(model))
    with reference.in_use(model):
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_it_follows_to_a_device(model):
    reference = ReferenceModel(model, family_of(model))
    reference.move_to(torch.device("meta"))
    assert reference.model.vocab_linear.weight.device.type == "meta"
    ReferenceModel(adapted(model, trained=False), family_of(model), fresh_adapters=True).move_to(torch.device("cpu"))


def test_a_vision_encoder_decoder_model(vision_encoder_decoder, pictures):
    model = vision_encoder_decoder
    family = family_of(model)
    family.freeze_backbone(model, "none")
    before = scores(model, pictures)
    reference = ReferenceModel(model, family)
    assert reference.model.encoder is model.encoder
    assert reference.model.decoder is not model.decoder
    tied = reference.model.decoder
    assert tied.lm_head.weight is tied.transformer.wte.weight  # the copy has its own tie
    model.train()
    train(model, pictures)
    assert torch.equal(spoken(reference, model, pictures), before)
    assert not torch.allclose(scores(model, pictures), before)
    family.freeze_backbone(model, "all")
    assert frozen_copy(model, family).encoder is not model.encoder


# -- adapters --------------------------------------------------------------------------------------------------------


def test_fresh_adapters_are_switched_off(model, pictures):
    without = scores(model, pictures)
    inside = adapted(model, trained=False)
    before = scores(inside, pictures)  # they begin as nothing
    torch.testing.assert_close(before, without, atol=1e-5, rtol=0)
    reference = ReferenceModel(inside, family_of(inside), fresh_adapters=True)
    assert reference.model is None
    assert list(inside.peft_config) == ["default"]
    assert reference.shares_backbone(inside)
    inside.train()
    train(inside, pictures)
    assert torch.equal(spoken(reference, inside, pictures), before)
    assert not torch.allclose(scores(inside, pictures), before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["vocab_linear"]},
        {"init_lora_weights": "pissa"},
        {"target_modules": ["embed", "vocab_linear"]},
    ],
    ids=["lora", "dora", "modules_to_save", "pissa", "embedding"],
)
def test_adapters_that_have_learned_are_copied(model, pictures, options):
    inside = adapted(model, **options)
    before, learning = scores(inside, pictures), state(inside)
    reference = ReferenceModel(inside, family_of(inside))
    assert reference.model is None
    assert reference.adapter == ADAPTER
    assert inside.active_adapter == "default"
    assert torch.equal(scores(inside, pictures), before)  # the family is what it was
    assert state(inside)[0] == learning[0]
    assert not any(one.requires_grad for name, one in inside.named_parameters() if f".{ADAPTER}" in name)
    inside.train()
    train(inside, pictures)
    assert torch.equal(spoken(reference, inside, pictures), before)
    assert not torch.allclose(scores(inside, pictures), before)


def test_adapters_of_another_kind_are_copied(model, pictures):
    inside = peft.get_peft_model(model, peft.IA3Config(target_modules=["vocab_linear"], feedforward_modules=[]))
    with torch.no_grad():
        for one in inside.parameters():
            if one.requires_grad:
                one.mul_(1.5)
    before = scores(inside, pictures)
    reference = ReferenceModel(inside, family_of(inside))
    train(inside, pictures)
    assert torch.equal(spoken(reference, inside, pictures), before)
    assert not torch.allclose(scores(inside, pictures), before)


def test_a_second_training_copies_the_adapter_anew(model, pictures):
    inside = adapted(model)
    ReferenceModel(inside, family_of(inside))
    train(inside, pictures)
    between = scores(inside, pictures)
    reference = ReferenceModel(inside, family_of(inside))
    train(inside, pictures)
    assert torch.equal(spoken(reference, inside, pictures), between)


def test_an_adapter_with_the_copys_name_is_refused(model):
    inside = peft.get_peft_model(model, peft.LoraConfig(target_modules=model.LORA_TARGET_MODULES), adapter_name=ADAPTER)
    with pytest.raises(ValueError, match="the adapter that learns is called 'reference'"):
        ReferenceModel(inside, family_of(inside))


def test_a_given_model_goes_before_adapters(model, pictures):
    given = copy.deepcopy(model)
    inside = adapted(model)
    reference = ReferenceModel(inside, family_of(inside), given)
    assert (reference.model, reference.adapter) == (given, None)
    assert list(inside.peft_config) == ["default"]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_everything_is_as_before_when_the_reference_has_spoken(model, pictures, fresh, training, fails):
    """Also when the block is left by an exception, and with a part of the adapter that does not learn."""
    inside = adapted(model)
    frozen = next(name for name, one in inside.named_parameters() if one.requires_grad)
    inside.get_parameter(frozen).requires_grad_(False)
    reference = ReferenceModel(inside, family_of(inside), fresh_adapters=fresh)
    inside.train(training)
    before, own = state(inside), scores(inside, pictures)
    outputs = []
    try:
        with reference.in_use(inside) as frozen:
            assert not frozen.training
            outputs.append(scores(frozen, pictures))
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert torch.equal(outputs[0], own) == (not fresh)
    assert state(inside) == before
    assert inside.active_adapter == "default"
    assert torch.equal(scores(inside, pictures), own)


# -- a reference that follows ----------------------------------------------------------------------------------------


def sync(callback, model, step: int, steps: int = 4, alpha: float = 0.6) -> None:
    args = SimpleNamespace(ref_model_sync_steps=steps, ref_model_mixup_alpha=alpha)
    callback.on_step_end(args, SimpleNamespace(global_step=step), None, model=model)


def values(model) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def test_the_reference_becomes_a_mixture(model, pictures):
    reference = ReferenceModel(model, family_of(model)).model
    train(model, pictures)
    old, new = values(reference), values(model)
    callback = SyncReferenceCallback(reference)
    for step in (1, 2, 3, 5):
        sync(callback, model, step)
    assert all(torch.equal(one, old[name]) for name, one in reference.named_parameters())
    sync(callback, model, 4)
    assert any(not torch.equal(old[name], new[name]) for name in old)
    for name, one in reference.named_parameters():
        torch.testing.assert_close(one, 0.6 * new[name] + 0.4 * old[name])
    for name, one in model.named_parameters():
        assert torch.equal(one, new[name])
    assert not any(one.requires_grad for one in reference.parameters())


def test_the_mixture_is_trls(model, pictures):
    trl = pytest.importorskip("trl")
    reference = ReferenceModel(model, family_of(model)).model
    theirs = copy.deepcopy(reference)
    Accelerator(cpu=True)  # TRL asks its state
    train(model, pictures)
    trl.SyncRefModelCallback.sync_target_model(model, theirs, 0.25)
    sync(SyncReferenceCallback(reference), model, 4, alpha=0.25)
    for one, other in zip(reference.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_shared_is_left_alone(model, pictures):
    """To the last bit, also where 0.6 a + 0.4 a is not a."""
    reference = ReferenceModel(model, family_of(model)).model
    before = values(model.backbone)
    train(model, pictures)
    sync(SyncReferenceCallback(reference), model, 4)
    assert reference.backbone is model.backbone
    assert all(torch.equal(one, before[name]) for name, one in model.backbone.named_parameters())


def test_all_of_the_policy(model, pictures):
    reference = ReferenceModel(model, family_of(model)).model
    train(model, pictures)
    sync(SyncReferenceCallback(reference), model, 8, alpha=1.0)
    torch.testing.assert_close(scores(reference, pictures), scores(model, pictures))


def test_statistics_of_batch_norms_follow_too():
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
    sizes = {"d_model": 16, "ffn_dim": 16, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}
    config = SaticConfig(vocab_size=20, feature_size=8, feature_batch_norm=2, group_size=2, **sizes, **ids)
    model = SaticForImageCaptioning(config)
    reference = frozen_copy(model, family_of(model))
    norms = [[one for one in each.modules() if isinstance(one, torch.nn.BatchNorm1d)] for each in (model, reference)]
    assert len(norms[0]) == 2
    for norm in norms[0]:
        norm.running_mean.fill_(5.0)
        norm.running_var.fill_(6.0)
        norm.num_batches_tracked.fill_(7)
    sync(SyncReferenceCallback(reference), model, 4)
    for norm in norms[1]:
        torch.testing.assert_close(norm.running_mean, torch.full_like(norm.running_mean, 0.6 * 5.0))
        torch.testing.assert_close(norm.running_var, torch.full_like(norm.running_var, 0.6 * 6.0 + 0.4))
        assert norm.num_batches_tracked == 7


def test_a_policy_in_distributed_data_parallel(tmp_path, model, pictures):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        reference = ReferenceModel(model, family_of(model)).model
        train(model, pictures)
        old, new = values(reference), values(model)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        sync(SyncReferenceCallback(reference), wrapped, 4)
    finally:
        torch.distributed.destroy_process_group()
    name = "vocab_linear.weight"
    torch.testing.assert_close(reference.vocab_linear.weight, 0.6 * new[name] + 0.4 * old[name])
