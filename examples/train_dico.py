"""Train the DiCO captioner, on pictures or on cached features: with cross-entropy, then with a CLIP model's judgement.

    accelerate launch --num_processes 2 examples/train_dico.py xe --config examples/recipes/dico/1_xe.yaml
    accelerate launch --num_processes 2 examples/train_dico.py dico --config examples/recipes/dico/2_dico.yaml

The first argument is the phase; `dico` takes any captioner as `--model`. Every option of the YAML file can be given on
the command line too, where it wins; `train_dico.py xe --help` lists them. The options that are not below are those of
`DataArguments`, `XEConfig` or `CaptionerArguments`, `RewardArguments`, `DiCOConfig`, and of `TrainingArguments`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, CLIPImageProcessorPil

from hf_captioners import (
    DicoCaptionerConfig,
    DiCOConfig,
    DicoForImageCaptioning,
    DicoProcessor,
    DiCOTrainer,
    FeatureStore,
    XEConfig,
    XETrainer,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.cli.common import TrustArguments
from hf_captioners.cli.training.data_arguments import DataArguments, load_rows
from hf_captioners.cli.training.reward_arguments import naming_option
from hf_captioners.cli.training.script import read_command_line, short_errors, train, train_with_rewards
from hf_captioners.data.rows import training_captions
from hf_captioners.modeling.captioner_trust import foreign_code, load_pretrained

DROPOUTS = ("encoder", "encoder_attention", "decoder_input", "decoder", "decoder_attention")


@dataclass
class ScriptArguments(TrustArguments):
    """What to start from, and the sizes of a new captioner."""

    model: str | None = field(default=None, metadata={"help": "Captioner to continue from, a folder or Hub name."})
    backbone: str | None = field(
        default=None, metadata={"help": "Pretrained CLIP, or another vision model, for a new captioner."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "CLIP's tokenizer, a folder or Hub name; by default that of --backbone."}
    )
    own_vocabulary: bool = field(
        default=False, metadata={"help": "A vocabulary of the captions' words instead of CLIP's."}
    )
    min_count: int = field(default=5, metadata={"help": "Words of it seen less often become the unknown word."})
    d_model: int = field(default=512, metadata={"help": "Width of a new captioner."})
    encoder_layers: int = field(default=3, metadata={"help": "Encoder layers of a new captioner."})
    decoder_layers: int = field(default=3, metadata={"help": "Decoder layers of a new captioner."})
    num_attention_heads: int = field(default=8, metadata={"help": "Heads of a new captioner."})
    ffn_dim: int = field(default=2048, metadata={"help": "Feed-forward width of a new captioner."})
    max_image_tokens: int = field(default=512, metadata={"help": "Most tokens of a picture of a new captioner."})
    max_position_embeddings: int = field(
        default=77, metadata={"help": "Longest caption of a new captioner, in tokens; CLIP's tokenizer cuts to 77."}
    )
    dropout: float = field(default=0.1, metadata={"help": "All five dropout rates of a new captioner."})


def new_processor(script: ScriptArguments, captions: list[str]) -> DicoProcessor:
    """The processor of a new captioner, with CLIP's tokenizer or one of words."""
    if script.own_vocabulary:
        vocabulary = build_vocabulary(captions, script.min_count)
        tokenizer: Any = build_word_tokenizer(vocabulary, model_max_length=script.max_position_embeddings)
    else:
        source = script.tokenizer or script.backbone
        if source is None:
            raise SystemExit("--tokenizer: give CLIP's tokenizer, a CLIP as --backbone, or --own_vocabulary.")
        with naming_option("backbone" if script.tokenizer is None else "tokenizer", source):
            tokenizer = load_pretrained(AutoTokenizer, source, script.trust_remote_code)
    if script.backbone is None:
        return DicoProcessor(CLIPImageProcessorPil(), tokenizer)
    with naming_option("backbone", script.backbone):
        image_processor = load_pretrained(AutoImageProcessor, script.backbone, script.trust_remote_code, backend="pil")
        return DicoProcessor(image_processor, tokenizer)


def new_captioner(script: ScriptArguments, features: str | None, captions: list[str]) -> tuple[Any, Any]:
    """A captioner with a fresh body, and its processor."""
    processor = new_processor(script, captions)
    tokenizer = processor.tokenizer
    options: dict[str, Any] = {f"{name}_dropout": script.dropout for name in DROPOUTS}
    for part in ("encoder", "decoder"):
        options[f"{part}_layers"] = getattr(script, f"{part}_layers")
        options[f"{part}_attention_heads"] = script.num_attention_heads
        options[f"{part}_ffn_dim"] = script.ffn_dim
    options.update(special_token_ids(tokenizer), d_model=script.d_model, vocab_size=len(tokenizer))
    config = DicoCaptionerConfig(
        features_only=True,  # the backbone brings its own sizes
        feature_size=None if features is None else FeatureStore(features).feature_size,
        max_image_tokens=script.max_image_tokens,
        max_position_embeddings=script.max_position_embeddings,
        **options,
    )
    if script.backbone is None:
        if features is None:
            raise SystemExit("--backbone: give a pretrained CLIP, or --features, or --model to continue from.")
        model = DicoForImageCaptioning(config)
    else:
        with foreign_code(script.backbone, script.trust_remote_code):
            model = DicoForImageCaptioning.from_backbone(
                script.backbone, config, trust_remote_code=script.trust_remote_code
            )
    if script.own_vocabulary:
        model.generation_config.suppress_tokens = [tokenizer.unk_token_id]  # a caption needs no unknown word
    return model, processor


def train_with_cross_entropy(argv: list[str]) -> None:
    """The first phase: teach the captions of the pictures."""
    data, script, args = read_command_line(argv, DataArguments, ScriptArguments, XEConfig)
    with short_errors():
        rows, evaluation = load_rows(data)
        if script.model is None:
            model, processor = new_captioner(script, data.features, training_captions(rows))
        else:
            with naming_option("model", script.model):
                processor = load_pretrained(AutoProcessor, script.model, script.trust_remote_code)
                model = load_pretrained(DicoForImageCaptioning, script.model, script.trust_remote_code)
        trainer = XETrainer(model, args, rows, evaluation, processing_class=processor)
    train(trainer)


def optimise_for_rewards(argv: list[str]) -> None:
    """The second phase: direct CLIP-based optimisation."""
    train_with_rewards(argv, DiCOConfig, DiCOTrainer)


PHASES: Mapping[str, Callable[[list[str]], None]] = {"xe": train_with_cross_entropy, "dico": optimise_for_rewards}


def main(argv: list[str] | None = None) -> None:
    """Run the phase that the command line names."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] not in PHASES:
        raise SystemExit(f"the first argument must be the phase: {' or '.join(PHASES)}; try `train_dico.py xe --help`.")
    PHASES[arguments[0]](list(arguments[1:]))


if __name__ == "__main__":
    main()
