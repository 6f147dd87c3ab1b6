"""Train SATIC with cross-entropy, on pictures, on cached features or on region features: the teacher, then the student.

    accelerate launch examples/train_satic.py --config examples/recipes/satic/1_teacher.yaml
    hf-captioners caption --model runs/satic_teacher --annotations dataset.json --split train --features features \\
        --num-beams 5 --num-return-sequences 5 > teacher_captions.jsonl
    accelerate launch examples/train_satic.py --config examples/recipes/satic/2_student.yaml

Every option of the YAML file can be given on the command line too, where it wins. `--help` lists them. The options
that are not below are those of `DataArguments`, `XEConfig` and of transformers' `TrainingArguments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor

from hf_captioners import (
    CaptionerImageProcessor,
    FeatureStore,
    SaticConfig,
    SaticForImageCaptioning,
    SaticProcessor,
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


@dataclass
class ScriptArguments(TrustArguments):
    """What to start from, and the sizes of a new captioner."""

    model: str | None = field(
        default=None, metadata={"help": "Captioner to start from, such as the teacher; a folder or Hub name."}
    )
    group_size: int = field(default=1, metadata={"help": "Words per step, K; 1 is the autoregressive teacher."})
    backbone: str | None = field(
        default=None, metadata={"help": "Pretrained vision model for a new captioner, a folder or Hub name."}
    )
    min_count: int = field(default=6, metadata={"help": "Words seen less often become the unknown word."})
    d_model: int = field(default=512, metadata={"help": "Width of a new captioner."})
    encoder_layers: int = field(default=6, metadata={"help": "Encoder layers of a new captioner."})
    decoder_layers: int = field(default=6, metadata={"help": "Decoder layers of a new captioner."})
    num_attention_heads: int = field(default=8, metadata={"help": "Heads of a new captioner."})
    ffn_dim: int = field(default=2048, metadata={"help": "Feed-forward width of a new captioner."})
    max_position_embeddings: int = field(default=64, metadata={"help": "Longest caption in tokens."})
    dropout: float | None = field(default=None, metadata={"help": "Dropout of the transformer (the paper: 0.1)."})
    feature_dropout: float | None = field(default=None, metadata={"help": "Dropout on the features (the paper: 0.5)."})


def rates(script: ScriptArguments) -> dict[str, float]:
    """The dropout rates that were given."""
    given = {"dropout": script.dropout, "feature_dropout": script.feature_dropout}
    return {name: value for name, value in given.items() if value is not None}


def new_captioner(script: ScriptArguments, features: str | None, captions: list[str]) -> tuple[Any, Any]:
    """A captioner with a fresh body, and its processor."""
    vocabulary = build_vocabulary(captions, script.min_count)
    tokenizer = build_word_tokenizer(vocabulary, model_max_length=script.max_position_embeddings)
    names = ("group_size", "d_model", "encoder_layers", "decoder_layers", "num_attention_heads", "ffn_dim")
    options: dict[str, Any] = {name: getattr(script, name) for name in (*names, "max_position_embeddings")}
    options.update(special_token_ids(tokenizer), vocab_size=len(vocabulary), **rates(script))
    if script.backbone is not None:
        trust = script.trust_remote_code
        with foreign_code(script.backbone, trust):
            model = SaticForImageCaptioning.from_backbone(
                script.backbone, SaticConfig(**options), trust_remote_code=trust
            )
        image_processor = load_pretrained(AutoImageProcessor, script.backbone, trust)
    else:
        if features is not None:
            options.update(feature_size=FeatureStore(features).feature_size)
        model = SaticForImageCaptioning(SaticConfig(**options))
        image_processor = CaptionerImageProcessor()
    model.generation_config.suppress_tokens = [tokenizer.unk_token_id]  # a caption needs no unknown word
    return model, SaticProcessor(image_processor, tokenizer)


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    data, script, args = read_command_line(argv, DataArguments, ScriptArguments, XEConfig)
    with short_errors():
        rows, evaluation = load_rows(data)
        if script.model is None:
            model, processor = new_captioner(script, data.features, training_captions(rows))
        else:
            options: dict[str, Any] = {"group_size": script.group_size, **rates(script)}
            processor = load_pretrained(AutoProcessor, script.model, script.trust_remote_code)
            model = load_pretrained(SaticForImageCaptioning, script.model, script.trust_remote_code, **options)
        trainer = XETrainer(model, args, rows, evaluation, processing_class=processor)
    train(trainer)


if __name__ == "__main__":
    main()
