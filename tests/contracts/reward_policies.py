"""Parts of the tests of reward training: a tiny model of every kind, by `model_type`, and trainers for them."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import GenerationConfig, GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

from hf_captioners import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    ClipGpt2Config,
    ClipGpt2ForImageCaptioning,
    ClipGpt2Processor,
    DicoCaptionerConfig,
    DiCOConfig,
    DicoForImageCaptioning,
    DicoProcessor,
    DiCOTrainer,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    ExpansionNetV2Processor,
    SaticConfig,
    SaticForImageCaptioning,
    SaticProcessor,
    ScdnetConfig,
    ScdnetForImageCaptioning,
    ScdnetProcessor,
    SCSTConfig,
    SCSTTrainer,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)

WORDS = ["a", "red", "circle", "above", "blue", "square", "two", "small", "green", "stars", "large", "star", "left"]
SIDE = 16  # pixels
LONGEST = 12  # tokens
BACKBONE = {
    "model_type": "vit",
    "image_size": SIDE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.3,  # pictures look different
}
TOKENIZER = build_word_tokenizer(build_vocabulary([" ".join(WORDS)], min_count=1), model_max_length=LONGEST)
IDS = {"vocab_size": len(TOKENIZER), **special_token_ids(TOKENIZER)}


def vision(dropout: float) -> dict[str, Any]:
    return {**BACKBONE, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}


def expansionnet_v2(dropout: float) -> ExpansionNetV2ForImageCaptioning:
    parts = ("encoder", "decoder", "encoder_input", "decoder_input", "other")
    config = ExpansionNetV2Config(
        d_model=16, encoder_layers=1, decoder_layers=1, num_attention_heads=2, ffn_dim=16, encoder_expansion_groups=[4],
        decoder_expansion_size=4, max_position_embeddings=LONGEST, vision_config=vision(dropout), label_smoothing=0.0,
        **{f"{part}_dropout": dropout for part in parts}, **IDS,
    )  # fmt: skip
    model = ExpansionNetV2ForImageCaptioning(config)
    model.vocab_linear.weight.data.mul_(3.0)
    return model


def satic(dropout: float) -> SaticForImageCaptioning:
    config = SaticConfig(
        group_size=2, d_model=16, encoder_layers=1, decoder_layers=1, num_attention_heads=2, ffn_dim=16,
        max_position_embeddings=LONGEST, feature_dropout=dropout, dropout=dropout, vision_config=vision(dropout), **IDS,
    )  # fmt: skip
    model = SaticForImageCaptioning(config)
    model.model.generator.proj.weight.data.mul_(2.0)
    return model


def gpt2(dropout: float) -> dict[str, Any]:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": LONGEST + 4, "initializer_range": 0.3}
    return {**sizes, "attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}


def clip_gpt2(dropout: float) -> ClipGpt2ForImageCaptioning:
    config = ClipGpt2Config(
        vision_config=vision(dropout), feature_size=16, prefix_length=2, max_position_embeddings=LONGEST,
        text_config={**gpt2(dropout), "vocab_size": len(TOKENIZER)}, **special_token_ids(TOKENIZER),
    )  # fmt: skip
    return ClipGpt2ForImageCaptioning(config)


def dico(dropout: float) -> DicoForImageCaptioning:
    parts = ("encoder", "encoder_attention", "decoder_input", "decoder", "decoder_attention")
    config = DicoCaptionerConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_image_tokens=8, max_position_embeddings=LONGEST,
        vision_config=vision(dropout), initializer_range=0.3, **{f"{part}_dropout": dropout for part in parts}, **IDS,
    )  # fmt: skip
    return DicoForImageCaptioning(config)


def scdnet(dropout: float) -> ScdnetForImageCaptioning:
    config = ScdnetConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, visual_layers=1, semantic_layers=1,
        decoder_layers=1, time_frequencies=4, caption_positions=LONGEST, retrieved_positions=LONGEST,
        max_position_embeddings=LONGEST, visual_dropout=dropout, dropout=dropout, attention_dropout=dropout,
        retrieval="none", vision_config=vision(dropout), **IDS,
    )  # fmt: skip
    model = ScdnetForImageCaptioning(config)
    model.predictor.logits.weight.data.mul_(3.0)
    model.generation_config.num_inference_steps = 3
    return model


def vision_encoder_decoder(dropout: float) -> VisionEncoderDecoderModel:
    ids = special_token_ids(TOKENIZER)
    decoder = GPT2Config(**gpt2(dropout), vocab_size=len(TOKENIZER), add_cross_attention=True, **ids)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**vision(dropout)), decoder)
    config.decoder_start_token_id, config.pad_token_id = ids["bos_token_id"], ids["pad_token_id"]
    model = VisionEncoderDecoderModel(config)
    model.generation_config = GenerationConfig(
        max_length=LONGEST, pad_token_id=ids["pad_token_id"], eos_token_id=ids["eos_token_id"],
        bos_token_id=ids["bos_token_id"], decoder_start_token_id=ids["bos_token_id"],
    )  # fmt: skip
    return model


MAKERS: dict[str, Callable[[float], Any]] = {
    "clip_gpt2": clip_gpt2,
    "dico": dico,
    "expansionnet_v2": expansionnet_v2,
    "satic": satic,
    "scdnet": scdnet,
    "vision-encoder-decoder": vision_encoder_decoder,
}
PROCESSORS: dict[str, type[CaptionerProcessor]] = {
    "clip_gpt2": ClipGpt2Processor,
    "dico": DicoProcessor,
    "expansionnet_v2": ExpansionNetV2Processor,
    "satic": SaticProcessor,
    "scdnet": ScdnetProcessor,
    "vision-encoder-decoder": CaptionerProcessor,
}
LORA_TARGETS = {"vision-encoder-decoder": r"decoder\..*\.(c_attn|q_attn)"}  # the captioners know their own


def tiny_policy(kind: str, dropout: float = 0.0, seed: int = 0) -> Any:
    """A model of a few thousand parameters, the same one every time."""
    torch.manual_seed(seed)
    return MAKERS[kind](dropout).eval()


def tiny_processor(kind: str) -> CaptionerProcessor:
    """The processor of `tiny_policy(kind)`."""
    return PROCESSORS[kind](CaptionerImageProcessor(size={"height": SIDE, "width": SIDE}), TOKENIZER)


def tiny_rows(folder: Path, number: int = 8) -> list[dict[str, Any]]:
    """Pictures on disk that differ, each with three captions."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    rows = []
    for index in range(number):
        path = folder / f"{index}.png"
        Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((SIDE, SIDE)).save(path)
        captions = [" ".join(rng.choices(WORDS, k=rng.randint(2, 7))) for _ in range(3)]
        rows.append({"image_id": index, "image": str(path), "captions": captions})
    return rows


def arbitrary(completion_ids: Sequence[Sequence[int]], **kwargs: Any) -> list[float]:
    """A reward without sense, which differs for most candidates. Padding among the words is not looked at."""
    words = [[token for token in ids if token != TOKENIZER.pad_token_id] for ids in completion_ids]
    return [sum(place * token for place, token in enumerate(ids, start=1)) % 11 / 5 for ids in words]


def reward_trainer(
    config: type[SCSTConfig] | type[DiCOConfig],
    folder: Path,
    rows: Any,
    *,
    kind: str = "satic",
    model: Any = None,
    reward: Any = arbitrary,
    evaluation: Any = None,
    **options: Any,
) -> Any:
    """A trainer of three candidates of at most seven tokens; `options` are the trainer's and its configuration's."""
    known = ("ref_model", "peft_config", "callbacks", "compute_caption_metrics", "data_collator", "processing_class")
    extra = {name: options.pop(name) for name in known if name in options}
    usual = {
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "seed": 1,
        "per_device_train_batch_size": 4, "num_generations": 3, "max_completion_length": 7, "max_steps": 2,
        "learning_rate": 1e-2, "logging_steps": 1, "lr_scheduler_type": "constant", "collapse_patience": 0,
        "generation_max_length": 8,
    }  # fmt: skip
    args = config(output_dir=str(folder), **{**usual, **options})
    model = tiny_policy(kind) if model is None else model
    trainer_class = DiCOTrainer if config is DiCOConfig else SCSTTrainer
    extra.setdefault("processing_class", tiny_processor(kind))
    return trainer_class(model, reward_funcs=reward, args=args, train_dataset=rows, eval_dataset=evaluation, **extra)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: Any) -> set[str]:
    """Names of the weights that differ, to the last bit, from what they were."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor], share: float = 1e-4
) -> None:
    """Equal but for rounding, and moved much farther than that from where both started."""
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert moved > 1e-3
    assert apart < share * moved, (apart, moved)


@contextmanager
def quickly() -> Iterator[None]:
    """One thread, which is quicker on models of this size and exact; and the garbage that each `train` collects is not
    looked for among the objects of the libraries."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
