"""Train ExpansionNet v2 with cross-entropy, on pictures or on cached features.

    accelerate launch examples/train_expansionnet_v2.py --config examples/recipes/expansionnet_v2/own_pictures.yaml

Every option of the YAML file can be given on the command line too, where it wins. `--help` lists them. The options
that are not below are those of `XEConfig` and of transformers' `TrainingArguments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor

from hf_captioners import (
    CaptionerImageProcessor,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    ExpansionNetV2Processor,
    FeatureStore,
    XEConfig,
    XETrainer,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.cli.common import TrustArguments
from hf_captioners.cli.training.data_arguments import DataArguments, load_rows
from hf_captioners.cli.training.script import read_command_line, short_errors, train
from hf_captioners.data.rows import training_captions
from hf_captioners.modeling.captioner_trust import foreign_code, load_pretrained

DROPOUTS = ("encoder", "decoder", "encoder_input", "decoder_input", "other")


@dataclass
class ScriptArguments(TrustArguments):
    """What to start from, and the sizes of a new captioner."""

    model: str | None = field(default=None, metadata={"help": "Captioner to continue from, a folder or Hub name."})
    backbone: str | None = field(
        default=None, metadata={"help": "Pretrained vision model for a new captioner, a folder or Hub name."}
    )
    min_count: int = field(default=5, metadata={"help": "Words seen less often become the unknown word."})
    d_model: int = field(default=512, metadata={"help": "Width of a new captioner."})
    encoder_layers: int = field(default=3, metadata={"help": "Encoder layers of a new captioner."})
    decoder_layers: int = field(default=3, metadata={"help": "Decoder layers of a new captioner."})
    num_attention_heads: int = field(default=8, metadata={"help": "Heads of a new captioner."})
    ffn_dim: int = field(default=2048, metadata={"help": "Feed-forward width of a new captioner."})
    encoder_expansion_groups: list[int] = field(
        default_factory=lambda: [32, 64, 128, 256, 512], metadata={"help": "Static expansion of a new captioner."}
    )
    decoder_expansion_size: int = field(default=16, metadata={"help": "Dynamic expansion of a new captioner."})
    max_position_embeddings: int = field(
        default=74, metadata={"help": "Longest caption of a new captioner, in tokens."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "All five dropout rates (the paper: 0.3, later 0.1)."}
    )
    drop_path_rate: float | None = field(default=None, metadata={"help": "Stochastic depth of a Swin backbone."})


def new_captioner(script: ScriptArguments, features: str | None, captions: list[str]) -> tuple[Any, Any]:
    """A captioner with a fresh body, and its processor."""
    vocabulary = build_vocabulary(captions, script.min_count)
    tokenizer = build_word_tokenizer(vocabulary, model_max_length=script.max_position_embeddings)
    sizes = (
        "d_model",
        "encoder_layers",
        "decoder_layers",
        "num_attention_heads",
        "ffn_dim",
        "encoder_expansion_groups",
    )
    options = {name: getattr(script, name) for name in (*sizes, "decoder_expansion_size", "max_position_embeddings")}
    options.update(special_token_ids(tokenizer), vocab_size=len(vocabulary))
    if script.backbone is not None:
        config = ExpansionNetV2Config(features_only=True, **options)  # the backbone brings its own sizes
        trust = script.trust_remote_code
        with foreign_code(script.backbone, trust):
            model = ExpansionNetV2ForImageCaptioning.from_backbone(script.backbone, config, trust_remote_code=trust)
        image_processor = load_pretrained(AutoImageProcessor, script.backbone, trust)
    else:
        if features is not None:
            options.update(features_only=True, feature_size=FeatureStore(features).feature_size)
        model = ExpansionNetV2ForImageCaptioning(ExpansionNetV2Config(**options))
        image_processor = CaptionerImageProcessor()
    model.generation_config.suppress_tokens = [tokenizer.unk_token_id]  # a caption needs no unknown word
    return model, ExpansionNetV2Processor(image_processor, tokenizer)


def start_from(script: ScriptArguments, features: str | None, captions: list[str]) -> tuple[Any, Any]:
    """The captioner to train, with the dropout rates of this phase, and its processor."""
    if script.model is None:
        model, processor = new_captioner(script, features, captions)
    else:
        processor = load_pretrained(AutoProcessor, script.model, script.trust_remote_code)
        model = load_pretrained(ExpansionNetV2ForImageCaptioning, script.model, script.trust_remote_code)
    rates = {} if script.dropout is None else {f"{name}_dropout": script.dropout for name in DROPOUTS}
    if rates or script.drop_path_rate is not None:
        settings = {**model.config.to_dict(), **rates}
        if script.drop_path_rate is not None:
            if model.backbone is None:
                raise SystemExit("--drop_path_rate is for a backbone, which this captioner has not.")
            settings["vision_config"]["drop_path_rate"] = script.drop_path_rate
        fresh = ExpansionNetV2ForImageCaptioning(ExpansionNetV2Config(**settings))
        fresh.load_state_dict(model.state_dict())
        fresh.generation_config = model.generation_config
        model = fresh
    return model, processor


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    data, script, args = read_command_line(argv, DataArguments, ScriptArguments, XEConfig)
    with short_errors():
        rows, evaluation = load_rows(data)
        model, processor = start_from(script, data.features, training_captions(rows))
        trainer = XETrainer(model, args, rows, evaluation, processing_class=processor)
    train(trainer)


if __name__ == "__main__":
    main()
