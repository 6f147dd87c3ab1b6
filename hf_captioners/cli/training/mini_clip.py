"""Training of a small CLIP that a command line describes: its options, its parts, and the recall that it reaches."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    BaseImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    MobileNetV2Model,
    PreTrainedTokenizerBase,
    TrainingArguments,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    set_seed,
)

from ...data.files import system_errors, write_whole
from ...data.rows import training_captions
from ...metrics.clip.clip_score import PREFIX, ClipScorer
from ...metrics.clip.retrieval import clip_recall
from ...modeling.captioner_trust import load_pretrained
from ...modeling.tokenization_words import SPECIAL_TOKENS, build_vocabulary, build_word_tokenizer
from ...training.clip_pairs import LastLayers, MappedImages, PairCollator, layers_of
from ...training.clip_trainer import KS, ContrastiveTrainer
from ...training.data_arguments import DataArguments, has_splits, load_rows
from ..common import TrustArguments, exit_with_usage_errors, mistakes
from .options import read_options

_UNREAD = ("features", "labels", "distilled", "sentences", "streaming")  # of DataArguments


@dataclass(kw_only=True)
class MiniClipArguments(DataArguments, TrustArguments):
    """Pictures and captions to learn from, and the sizes of the model."""

    backbone: str = field(metadata={"help": "Pretrained MobileNetV2, a folder or Hub name."})
    test_split: str | None = field(
        default=None,
        metadata={
            "help": "Split that recall is reported on, or a file with the names of its pictures. By default test, and "
            "the pictures to evaluate on where --annotations has no splits."
        },
    )
    whole_image: bool = field(
        default=False, metadata={"help": "Squash pictures to the size of the backbone instead of cropping them."}
    )
    views: int = field(default=4, metadata={"help": "Views of each training picture: itself and random crops."})
    smallest_crop: float = field(default=0.6, metadata={"help": "Least share of the picture in a crop."})
    vision_layers: int = field(default=0, metadata={"help": "Last layers of the backbone that learn; 0 for none."})
    vision_learning_rate: float = field(default=3e-4, metadata={"help": "Their learning rate."})
    vision_dropout: float = field(default=0.2, metadata={"help": "Dropout of the pooled output, in training."})
    text_width: int = field(default=256, metadata={"help": "Width of the text tower."})
    text_layers: int = field(default=1, metadata={"help": "Its layers."})
    text_heads: int = field(default=4, metadata={"help": "Its attention heads."})
    text_ffn: int = field(default=512, metadata={"help": "Width of its feed-forward layers."})
    text_positions: int = field(default=40, metadata={"help": "Longest caption in words, start and end included."})
    projection_dim: int = field(default=256, metadata={"help": "Width of the features that are compared."})
    min_count: int = field(default=2, metadata={"help": "Words seen less often become the unknown word."})
    word_dropout: float = field(default=0.2, metadata={"help": "Share of words that become the unknown word."})
    prefix_rate: float = field(
        default=0.5, metadata={"help": "Share of captions after 'A photo depicts ', which CLIP-S puts before them."}
    )


def word_tokenizer(captions: list[str], options: MiniClipArguments) -> PreTrainedTokenizerBase:
    """A tokenizer with the words of the captions and of the prefix.

    The special tokens come last: an end token with the id 2 would make transformers' CLIP pool as it did when its
    configurations had a wrong id, at the highest id of a caption.
    """
    words = build_vocabulary([*captions, *[PREFIX] * options.min_count], options.min_count)
    special = list(SPECIAL_TOKENS.values())
    words = [word for word in words if word not in special]
    return build_word_tokenizer([*words, *special], model_max_length=options.text_positions)


def new_model(
    backbone: MobileNetV2Model, tokenizer: PreTrainedTokenizerBase, options: MiniClipArguments
) -> VisionTextDualEncoderModel:
    """The backbone and a fresh text tower, with fresh projections."""
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.text_width,
        intermediate_size=options.text_ffn,
        num_hidden_layers=options.text_layers,
        num_attention_heads=options.text_heads,
        max_position_embeddings=options.text_positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    backbone.config.name_or_path = ""  # a folder of this machine says nothing elsewhere
    backbone.config.hidden_size = backbone.conv_1x1.convolution.out_channels  # the dual encoder asks for it
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        backbone.config, text_config, projection_dim=options.projection_dim
    )
    return VisionTextDualEncoderModel(config, vision_model=backbone, text_model=CLIPTextModel(text_config))


def optimizer_of(
    model: VisionTextDualEncoderModel, options: MiniClipArguments, args: TrainingArguments
) -> torch.optim.Optimizer:
    """AdamW: the pretrained layers at their own rate, no decay for biases, norms and the temperature."""
    fresh = [parameter for name, parameter in model.named_parameters() if not name.startswith("vision_model.")]
    groups: list[dict[str, Any]] = [
        {"params": list(model.vision_model.parameters()), "lr": options.vision_learning_rate},
        {"params": [parameter for parameter in fresh if parameter.dim() > 1]},
        {"params": [parameter for parameter in fresh if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (args.adam_beta1, args.adam_beta2)
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=betas, weight_decay=args.weight_decay)


def load_towers(options: MiniClipArguments) -> tuple[MobileNetV2Model, BaseImageProcessor]:
    """The backbone and what prepares its pictures."""
    backbone = load_pretrained(AutoModel, options.backbone, options.trust_remote_code).eval()
    if not isinstance(backbone, MobileNetV2Model):
        raise SystemExit(f"--backbone {options.backbone}: a {type(backbone).__name__}; expected a MobileNetV2Model.")
    number = len(layers_of(backbone))
    if not 0 <= options.vision_layers <= number:
        raise ValueError(f"--vision_layers {options.vision_layers}: expected 0 to {number}.")
    settings: dict[str, Any] = {"backend": "pil"}
    if options.whole_image:
        size = backbone.config.image_size
        settings |= {"size": {"height": size, "width": size}, "do_center_crop": False}
    return backbone, load_pretrained(AutoImageProcessor, options.backbone, options.trust_remote_code, **settings)


def _splits(options: MiniClipArguments) -> tuple[Any, Any, Any]:
    """Rows to learn from, those that say which epoch is the best, and those that recall is reported on."""
    for name in _UNREAD:
        if vars(options)[name]:
            raise ValueError(f"--{name}: a small CLIP learns from pictures and their own captions; leave it out.")
    train, evaluation = load_rows(options)
    if evaluation is None:
        raise ValueError("nothing says which pictures to evaluate on; give --eval_split or --eval_annotations.")
    if options.test_split is None and not has_splits(options):
        return train, evaluation, evaluation
    test, _ = load_rows(replace(options, train_split=options.test_split or "test", check_images=False))
    return train, evaluation, test


def _train(options: MiniClipArguments, args: TrainingArguments) -> Any:
    """Train, and write the model, the tokenizer and the image processor; returns the rows to measure recall on."""
    with mistakes(ValueError, OSError):
        *splits, test = _splits(options)
        tokenizer = word_tokenizer(training_captions(splits[0]), options)
        backbone, image_processor = load_towers(options)
    set_seed(args.seed)
    model = new_model(backbone, tokenizer, options)
    images = [
        MappedImages(rows, backbone, image_processor, options.vision_layers, views, options.smallest_crop)
        for rows, views in zip(splits, (options.views, 1), strict=True)
    ]
    model.vision_model = LastLayers(backbone, options.vision_layers, options.vision_dropout)
    trainer = ContrastiveTrainer(
        model,
        args,
        PairCollator(tokenizer, options.word_dropout, options.prefix_rate),
        train_dataset=images[0],
        eval_dataset=images[1],
        processing_class=tokenizer,
        optimizers=(optimizer_of(model, options, args), None),
    )
    with mistakes(ValueError, OSError), system_errors(str(args.output_dir)):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        trainer.save_state()
    model.vision_model = backbone  # whole again, with the layers that have learnt
    if trainer.is_world_process_zero():
        for part in (model, tokenizer, image_processor):
            part.save_pretrained(str(args.output_dir))
    return test


def measure(rows: Any, folder: str) -> dict[str, dict[str, float]]:
    """Recall of pictures and captions with the saved model, from the picture files, as captions are and with
    the prefix of CLIP-S."""
    scorer = ClipScorer(folder, prefix="", show_progress=True)
    features = scorer.image_features(list(rows["image"]), rows["image_id"])
    result = {}
    for name, prefix in (("plain", ""), ("with_prefix", PREFIX)):
        scorer.prefix = prefix
        corpus = clip_recall(features, list(rows["captions"]), scorer=scorer, ks=KS, image_ids=rows["image_id"]).corpus
        result[name] = {key: round(value, 4) for key, value in corpus.items()}
    return result


def train_mini_clip(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    prog = Path(sys.argv[0]).name
    with exit_with_usage_errors(prog), contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
        options, args = read_options([MiniClipArguments, TrainingArguments], argv, prog)
        args.remove_unused_columns = False  # the collator chooses
        rows = _train(options, args)
    if args.process_index == 0:
        text = json.dumps(measure(rows, args.output_dir), indent=2)
        write_whole(Path(args.output_dir) / "retrieval.json", lambda path: path.write_text(text + "\n"))
        print(text)
