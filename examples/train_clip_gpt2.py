"""Train CLIP-GPT2 with cross-entropy, on pictures or on cached image embeddings.

    accelerate launch examples/train_clip_gpt2.py --config examples/recipes/clip_gpt2/1_frozen_clip.yaml
    accelerate launch examples/train_clip_gpt2.py --config examples/recipes/clip_gpt2/2_fine_tuned.yaml

Every option of the YAML file can be given on the command line too, where it wins. `--help` lists them. The options
that are not below are those of `DataArguments`, `XEConfig` and of transformers' `TrainingArguments`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from hf_captioners import (
    ClipGpt2ForImageCaptioning,
    ClipGpt2Processor,
    XEConfig,
    XETrainer,
    build_tags,
    build_vocabulary,
    build_word_tokenizer,
)
from hf_captioners.cli.common import TrustArguments
from hf_captioners.cli.training.data_arguments import DataArguments, load_rows
from hf_captioners.cli.training.script import read_command_line, short_errors, train
from hf_captioners.data.rows import training_captions
from hf_captioners.modeling.captioner_trust import foreign_code, load_pretrained


@dataclass
class ScriptArguments(TrustArguments):
    """What to start from, and the sizes of a new captioner."""

    model: str | None = field(default=None, metadata={"help": "Captioner to continue from, a folder or Hub name."})
    backbone: str | None = field(
        default=None,
        metadata={"help": "Pretrained CLIP, or a vision model that pools its output, for a new captioner."},
    )
    gpt2: str | None = field(
        default=None, metadata={"help": "Pretrained GPT-2; by default a fresh one with a vocabulary of the captions."}
    )
    gpt2_layers: int = field(default=4, metadata={"help": "Layers of a fresh GPT-2."})
    gpt2_heads: int = field(default=4, metadata={"help": "Heads of a fresh GPT-2."})
    gpt2_width: int = field(default=256, metadata={"help": "Width of a fresh GPT-2."})
    gpt2_positions: int = field(default=64, metadata={"help": "Longest sequence of a fresh GPT-2, image included."})
    gpt2_dropout: float = field(default=0.1, metadata={"help": "Dropout of a fresh GPT-2."})
    min_count: int = field(default=5, metadata={"help": "Words seen less often become the unknown word."})
    own_vocabulary: bool = field(
        default=False, metadata={"help": "Give a pretrained GPT-2 a vocabulary of the captions, with fresh embeddings."}
    )
    prefix_length: int = field(default=1, metadata={"help": "Image tokens that one embedding becomes."})
    mapping_type: str = field(default="linear", metadata={"help": "'linear', 'mlp' or 'transformer'."})
    normalize_prefix: bool = field(default=False, metadata={"help": "Scale embeddings to length 1."})
    num_tags: int = field(default=0, metadata={"help": "Words of the tag predictor; 0 for none."})


def fresh_gpt2(script: ScriptArguments, vocabulary: int) -> GPT2LMHeadModel:
    """A small GPT-2 without pretraining."""
    rate = script.gpt2_dropout
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=script.gpt2_positions,
        n_embd=script.gpt2_width,
        n_layer=script.gpt2_layers,
        n_head=script.gpt2_heads,
        resid_pdrop=rate,
        embd_pdrop=rate,
        attn_pdrop=rate,
    )
    return GPT2LMHeadModel(config)


def new_captioner(script: ScriptArguments, captions: list[str]) -> tuple[Any, Any]:
    """A captioner from two towers, and its processor."""
    trust = script.trust_remote_code
    own_words = script.gpt2 is None or script.own_vocabulary
    if own_words:
        vocabulary = build_vocabulary(captions, script.min_count)
        tokenizer: Any = build_word_tokenizer(vocabulary, model_max_length=script.gpt2_positions)
    else:
        tokenizer = load_pretrained(AutoTokenizer, script.gpt2, trust)
    if script.backbone is None:
        raise SystemExit("--backbone: give a pretrained CLIP, or --model to continue from a captioner.")
    image_processor = load_pretrained(AutoImageProcessor, script.backbone, trust, backend="pil")
    tags = build_tags(captions, script.num_tags) if script.num_tags else None
    processor = ClipGpt2Processor(image_processor, tokenizer, tags=tags)
    names = ("prefix_length", "mapping_type", "normalize_prefix")
    options: dict[str, Any] = {name: getattr(script, name) for name in names}
    if tags is not None:
        options["tag_token_ids"] = processor.tag_token_ids()
    with foreign_code(script.backbone, trust):
        model = ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(
            script.backbone,
            fresh_gpt2(script, len(tokenizer)) if script.gpt2 is None else script.gpt2,
            tokenizer,
            fresh_embeddings=own_words,
            encoder_kwargs={"trust_remote_code": trust},
            **options,
        )
    if own_words:
        model.generation_config.suppress_tokens = [tokenizer.unk_token_id]  # a caption needs no unknown word
    return model, processor


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    data, script, args = read_command_line(argv, DataArguments, ScriptArguments, XEConfig)
    with short_errors():
        rows, evaluation = load_rows(data)
        if script.model is None:
            model, processor = new_captioner(script, training_captions(rows))
        else:
            processor = load_pretrained(AutoProcessor, script.model, script.trust_remote_code)
            model = load_pretrained(ClipGpt2ForImageCaptioning, script.model, script.trust_remote_code)
        trainer = XETrainer(model, args, rows, evaluation, processing_class=processor)
    train(trainer)


if __name__ == "__main__":
    main()
