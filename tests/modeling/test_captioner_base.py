"""A captioner that does not write word by word, with inputs of its own: what the base asks of it and gives it."""

import dataclasses

import pytest
import torch
from contracts.captioner import CaptionerContract
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, GenerationMixin
from transformers.configuration_utils import SubConfigSpec

from hf_captioners.modeling.captioner_base import CaptionerPreTrainedModel
from hf_captioners.modeling.captioner_layers import ended_before, padding_mask, token_entropies, token_log_probs
from hf_captioners.modeling.captioner_losses import smoothed_divergence
from hf_captioners.modeling.captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from hf_captioners.modeling.configuration_captioner import CaptionerConfig

VIT = {"model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 12, "num_hidden_layers": 1}
VIT |= {"num_attention_heads": 2, "intermediate_size": 12, "hidden_dropout_prob": 0.0}


@strict
class SlotConfig(CaptionerConfig):
    model_type = "slots"
    sub_configs_defaults = {"vision_config": SubConfigSpec(AutoConfig, model_type="vit", optional=True)}
    default_backbone = VIT

    vocab_size: int = 30
    hidden_size: int = 16
    max_position_embeddings: int = 12
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    unk_token_id: int | None = 3


class SlotCaptioner(CaptionerPreTrainedModel, GenerationMixin):
    """All words at once, from the mean of the features, two numbers about the picture, and the place."""

    image_inputs = (*CaptionerPreTrainedModel.image_inputs, "mood", "hour")
    loss_inputs = ("smoothing",)
    input_embeddings, output_embeddings = "words", "head"
    LORA_TARGET_MODULES = r"project"
    config: SlotConfig

    def __init__(self, config: SlotConfig) -> None:
        super().__init__(config)
        self.backbone = self.new_backbone()
        self.project = nn.Linear(config.feature_size, config.hidden_size)
        self.places = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def default_decoding(self):
        return {"max_length": self.config.max_position_embeddings}

    def encode(self, features, mask, mood=None, hour=None):
        hidden = self.project(features.to(self.dtype))  # (B, L, d)
        real = torch.ones_like(hidden[..., :1]) if mask is None else mask[..., None].to(hidden.dtype)
        memory = (hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)  # (B, 1, d)
        for number in (mood, hour):
            memory = memory if number is None else memory + number[:, None, None]
        return CaptionerEncoderOutput(last_hidden_state=memory, image_attention_mask=padding_mask(mask))

    def scores(self, memory, captions, length):
        if captions % len(memory):
            raise ValueError(f"{captions} captions cannot be shared out among {len(memory)} pictures evenly.")
        hidden = memory.repeat_interleave(captions // len(memory), dim=0) + self.places.weight[:length]  # (N, T, d)
        return self.head(hidden.tanh())

    def score_captions(
        self, encoder_outputs, labels, *, num_items_in_batch=None, smoothing=0.0, logits_to_keep=0, **options
    ):
        if labels is None:
            raise ValueError("give labels.")
        logits = self.scores(encoder_outputs.last_hidden_state, *labels.shape)[:, -logits_to_keep:]
        loss = smoothed_divergence(logits, labels, smoothing, num_items_in_batch)
        return CaptionerOutput(loss=loss, logits=logits)

    def sequence_log_probs(self, sequences, encoder_outputs=None, return_entropies=False, **images):
        encoder_outputs = self._encoded(encoder_outputs, images)
        targets = sequences[:, 1:]
        logits = self.scores(encoder_outputs.last_hidden_state, *targets.shape)
        ended = ended_before(targets, self.config.eos_token_id)
        log_probs = token_log_probs(logits, targets).masked_fill(ended, 0.0)
        return (log_probs, token_entropies(logits).masked_fill(ended, 0.0)) if return_entropies else log_probs

    def write_captions(self, encoder_outputs, generation_config=None, **kwargs):
        config, rest = self._prepare_generation_config(generation_config, **kwargs)
        self._validate_model_kwargs(rest)
        self._check_longest(config)
        memory = encoder_outputs.last_hidden_state.repeat_interleave(config.num_return_sequences, dim=0)
        logits = self.scores(memory, len(memory), config.max_length - 1)
        words = torch.distributions.Categorical(logits=logits).sample() if config.do_sample else logits.argmax(-1)
        words = words.masked_fill(ended_before(words, config.eos_token_id), config.pad_token_id)
        ids = torch.cat((torch.full_like(words[:, :1], config.decoder_start_token_id), words), dim=1)
        return CaptionerOutputWithSequences(sequences=ids) if config.return_dict_in_generate else ids


@dataclasses.dataclass
class CaptionerOutputWithSequences(CaptionerOutput):
    sequences: torch.Tensor | None = None


@pytest.fixture(scope="module", autouse=True)
def _register():
    AutoConfig.register("slots", SlotConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForImageTextToText):
        auto_class.register(SlotConfig, SlotCaptioner, exist_ok=True)


def slot_captioner() -> SlotCaptioner:
    torch.manual_seed(0)
    return SlotCaptioner(SlotConfig(tie_word_embeddings=False)).eval()


class TestContract(CaptionerContract):
    @pytest.fixture()
    def model(self):
        return slot_captioner()

    def test_every_parameter_learns(self, model, pixels, labels):
        model.train()
        model(pixel_values=pixels, labels=labels).loss.backward()
        body = {name for name, one in model.named_parameters() if "backbone" not in name}
        learning = {name for name in body if model.get_parameter(name).grad is not None}
        assert body - learning == {"words.weight"}

    test_shipped_code_runs_where_the_package_is_missing = None  # this file is no file of the package
    test_sdpa_and_eager_agree = None  # there is no attention
    test_half_precision_is_the_same_however_it_is_loaded = None  # there is no processor
    test_half_precision_is_the_same_in_the_verbs = None


def test_inputs_of_its_own_reach_the_encoder_by_all_ways():
    model = slot_captioner()
    features, numbers = torch.randn(2, 4, 12), {"mood": torch.tensor([0.5, -2.0]), "hour": torch.tensor([1.0, 0.0])}
    encoded = model.encode_images(image_features=features, **numbers)
    plain = model.encode_images(image_features=features).last_hidden_state
    torch.testing.assert_close(
        encoded.last_hidden_state - plain, torch.tensor([1.5, -2.0])[:, None, None].expand(2, 1, 16)
    )
    labels = torch.tensor([[4, 2], [5, 2]])
    expected = model(encoder_outputs=encoded, labels=labels)
    got = model(image_features=features, labels=labels, **numbers, smoothing=0.1)
    torch.testing.assert_close(got.logits, expected.logits)
    assert got.loss != expected.loss
    assert torch.equal(model.generate(image_features=features, **numbers), model.generate(encoder_outputs=encoded))
    sequences = torch.tensor([[1, 4, 2], [1, 5, 2]])
    log_probs = model.sequence_log_probs(sequences, image_features=features, **numbers)
    torch.testing.assert_close(log_probs, model.sequence_log_probs(sequences, encoder_outputs=encoded))
    with pytest.raises(ValueError, match="give mood, hour to encode_images"):
        model.generate(encoder_outputs=encoded, hour=numbers["hour"], mood=numbers["mood"])


def test_outputs_are_tuples_on_request():
    model = slot_captioner()
    inputs = {"image_features": torch.randn(2, 4, 12), "labels": torch.tensor([[4, 2], [5, 2]])}
    loss, logits, memory = model(**inputs, return_dict=False)
    assert loss.shape == () and logits.shape == (2, 2, 30) and memory.shape == (2, 1, 16)
