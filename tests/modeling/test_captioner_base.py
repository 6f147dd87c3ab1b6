"""A captioner that does not write word by word, with inputs of its own: what the base asks of it and gives it."""

import dataclasses
import zlib

import pytest
import torch
from contracts.captioner import CaptionerContract
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, GenerationMixin
from transformers.configuration_utils import SubConfigSpec
from transformers.feature_extraction_utils import BatchFeature

import hf_captioners
from hf_captioners import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    DiCOConfig,
    DiCOTrainer,
    SCSTConfig,
    SCSTTrainer,
    XEConfig,
    XETrainer,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.families import family_of
from hf_captioners.inference.captioning import caption_rows
from hf_captioners.modeling.captioner_base import CaptionerPreTrainedModel
from hf_captioners.modeling.captioner_layers import ended_before, padding_mask
from hf_captioners.modeling.captioner_log_probs import token_log_probs
from hf_captioners.modeling.captioner_losses import smoothed_divergence
from hf_captioners.modeling.captioner_outputs import CandidateOutput, CaptionerEncoderOutput, CaptionerOutput
from hf_captioners.modeling.configuration_captioner import CaptionerConfig
from hf_captioners.training.reward.candidates import write_candidates

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
        log_probs, entropies = (part.masked_fill(ended, 0.0) for part in token_log_probs(logits, targets))
        return (log_probs, entropies) if return_entropies else log_probs

    def write_candidates(self, encoder_outputs, num_candidates, max_length, seeds, greedy=False, **kwargs):
        memory = encoder_outputs.last_hidden_state.repeat_interleave(num_candidates, dim=0)
        logits = self.scores(memory, len(memory), max_length - 1)  # (B * k, T - 1, V)
        if not greedy:
            draws = [
                torch.Generator().manual_seed(zlib.crc32(f"{name} {k}".encode()))
                for name in seeds
                for k in range(num_candidates)
            ]
            logits = logits - torch.stack(
                [
                    torch.rand(row.shape, generator=draw).log().neg().log()
                    for row, draw in zip(logits, draws, strict=True)
                ]
            )
        words = logits.argmax(-1)
        words = words.masked_fill(ended_before(words, self.config.eos_token_id), self.config.pad_token_id)
        sequences = torch.cat((torch.full_like(words[:, :1], self.config.decoder_start_token_id), words), dim=1)
        log_probs = self.sequence_log_probs(sequences, encoder_outputs)
        return CandidateOutput(sequences=sequences, log_probs=log_probs, scoring_inputs={})

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


# -- captioned, scored and trained like the others; nothing else of the package knows of it ------------------------

WORDS = [f"word{index:02}" for index in range(26)]


class SlotProcessor(CaptionerProcessor):
    """Two columns of rows more: how the photographer felt, and when it was."""

    image_columns = {**CaptionerProcessor.image_columns, "mood": "mood", "hour": "hour"}

    def __call__(self, *args, mood=None, hour=None, **kwargs):
        batch = super().__call__(*args, **kwargs)
        numbers = {name: torch.tensor(values).float() for name, values in (("mood", mood), ("hour", hour)) if values}
        return BatchFeature({**batch, **numbers})


@pytest.fixture
def processor():
    tokenizer = build_word_tokenizer(["EOS", "PAD", "SOS", "UNK", *WORDS], model_max_length=12)
    return SlotProcessor(CaptionerImageProcessor(size={"height": 8, "width": 8}), tokenizer)


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    tokens = special_token_ids(processor.tokenizer)
    return SlotCaptioner(SlotConfig(tie_word_embeddings=False, vocab_size=len(processor.tokenizer), **tokens)).eval()


@pytest.fixture
def rows():
    features = torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(0))
    return [
        {"image_id": index, "image_features": one, "mood": index - 9.0, "hour": 3.0 * index, "captions": [WORDS[index]]}
        for index, one in enumerate(features)
    ]


def test_rows_with_its_inputs_are_captioned(model, processor, rows):
    inputs = {name: torch.tensor([row[name] for row in rows]) for name in ("mood", "hour")}
    features = torch.stack([row["image_features"] for row in rows])
    expected = processor.batch_decode(model.generate(image_features=features, **inputs))
    assert expected != processor.batch_decode(model.generate(image_features=features))
    records = caption_rows(model, processor, rows, batch_size=3)
    assert [record["caption"] for record in records] == expected
    captioner = hf_captioners.pipeline(model=model, processor=processor)
    assert [output[0]["generated_text"] for output in captioner(rows, batch_size=2)] == expected


@pytest.mark.parametrize(
    ("trainer_class", "config_class", "options"),
    [
        (XETrainer, XEConfig, {"eval_with_generation": True, "generation_max_length": 12, "caption_metrics": ["bleu"]}),
        (
            SCSTTrainer,
            SCSTConfig,
            {"num_generations": 3, "baseline": "greedy", "max_completion_length": 11, "beta": 0.1},
        ),
        (DiCOTrainer, DiCOConfig, {"num_generations": 3, "max_completion_length": 11}),
    ],
)
def test_it_is_trained_like_the_others(model, processor, rows, tmp_path, trainer_class, config_class, options):
    def length(completions, **kwargs):
        return [float(len(caption)) for caption in completions]

    shared = {"output_dir": str(tmp_path), "max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True}
    args = config_class(**shared, report_to="none", save_strategy="no", **options)
    given = {} if trainer_class is XETrainer else {"reward_funcs": length}
    run = trainer_class(model, args=args, train_dataset=rows, eval_dataset=rows, processing_class=processor, **given)
    before = model.head.weight.clone()
    run.train()
    assert not torch.equal(model.head.weight, before)
    assert all(torch.isfinite(torch.tensor(value)) for name, value in run.evaluate().items() if "loss" in name)


def test_its_candidates_depend_on_the_names_of_the_pictures_alone(model, processor, rows, tmp_path):
    args = SCSTConfig(output_dir=str(tmp_path), num_generations=3, max_completion_length=11, use_cpu=True)
    family = family_of(model)
    inputs = dict(processor.prepare_rows(rows))
    names = [f"0 1 {row['image_id']}" for row in rows]
    with torch.no_grad():
        together = write_candidates(family, model, family.encode(model, inputs), processor, args, names)
        alone = [
            write_candidates(
                family, model, family.encode(model, dict(processor.prepare_rows([row]))), processor, args, [name]
            )
            for row, name in zip(rows, names, strict=True)
        ]
    assert together.texts == [text for candidates in alone for text in candidates.texts]
    assert len(set(together.texts)) > 4 and together.log_probs.shape == together.mask.shape
