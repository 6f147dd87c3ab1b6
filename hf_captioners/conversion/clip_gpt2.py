"""Conversion of the authors' checkpoints of ClipCap (arXiv 2111.09734) to a `save_pretrained` folder of CLIP-GPT2.

Source: the state dict of a ClipCap model with the MLP or the transformer mapper. Our model keeps its parameter names;
older files also hold GPT-2's causal masks, which are computed now. Sizes come from the shapes of the tensors. Not in
the tensors, and by default as released: GPT-2's heads, 64 wide; the mapper's 8 heads; and whether embeddings are scaled
to length 1 before they are mapped.

The file has no CLIP. Without `clip` the model reads cached embeddings; with it, pictures.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from hf_captioners.modeling.captioner_backbone import PooledBackbone
from hf_captioners.modeling.configuration_clip_gpt2 import ClipGpt2Config
from hf_captioners.modeling.modeling_clip_gpt2 import ClipGpt2ForImageCaptioning
from hf_captioners.modeling.processing_clip_gpt2 import ClipGpt2Processor

from ..modeling.captioner_trust import foreign_code, load_pretrained
from .command import TRUST, Command
from .safe_load import load_checkpoint
from .source import Source
from .writing import ConversionError, ConversionReport, check_out_dir, write_folder

MODEL_TYPE = "clip_gpt2"
HEAD_WIDTH = 64  # of every GPT-2 that OpenAI released
MAPPER_HEADS = 8
LONGEST = 67  # tokens that the original writes at most
FULL_STOP = "."  # ends a caption too
COMPUTED_BUFFERS = re.compile(r"gpt\.transformer\.h\.\d+\.attn\.(bias|masked_bias)")
WORDS, POSITIONS, HEAD = "gpt.transformer.wte.weight", "gpt.transformer.wpe.weight", "gpt.lm_head.weight"
LAYERS, FIRST_FC = "gpt.transformer.h.", "gpt.transformer.h.0.mlp.c_fc.weight"
MLP, CONSTANTS, LINEAR = "clip_project.model.", "clip_project.prefix_const", "clip_project.linear.weight"
MAPPER_LAYERS = "clip_project.transformer.layers."


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    tokenizer: str | Path = "openai-community/gpt2",
    clip: str | Path | None = None,
    normalize_prefix: bool | None = None,
    num_heads: int | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> ConversionReport:
    """Convert a checkpoint into a folder for `from_pretrained`: model, generation defaults and processor.

    Args:
        checkpoint (`str` or `Path`):
            The state dict of a ClipCap model as `.pt` or `.safetensors`.
        out_dir (`str` or `Path`), overwrite (`bool`, *optional*, defaults to `False`):
            As in [`hf_captioners.conversion.convert`], which names the result and the errors too.
        tokenizer (`str` or `Path`, *optional*, defaults to `"openai-community/gpt2"`):
            Folder or Hub name of GPT-2's tokenizer.
        clip (`str` or `Path`, *optional*):
            Folder or Hub name of the CLIP that the embeddings came from, to make a model that reads pictures: CLIP
            ViT-B/32 for the embeddings of 512. (transformers has no CLIP with a ResNet, as RN50x4 with 640.)
        normalize_prefix (`bool`, *optional*):
            Whether the mapper was trained on embeddings of length 1; by default not. The wrong switch costs about 7
            points of CIDEr, in silence.
        num_heads (`int`, *optional*):
            Attention heads of GPT-2, by default width / 64.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with `tokenizer` and `clip` may run.
    """
    check_out_dir(out_dir, MODEL_TYPE, overwrite)
    source = read_source(checkpoint)
    settings, assumed = read_sizes(source, num_heads, normalize_prefix)
    words = _read_tokenizer(tokenizer, settings["text_config"]["vocab_size"], trust_remote_code)
    vision = None if clip is None else _read_clip(clip, settings["feature_size"], trust_remote_code)
    config = _build_config(settings, words, vision)
    model = fill_model(source, config, vision)
    _set_decoding(model, words)
    processor = _build_processor(clip, tokenizer, trust_remote_code)
    folder = write_folder(out_dir, MODEL_TYPE, overwrite, model, processor, source=checkpoint)
    return ConversionReport(
        out_dir=folder,
        used=source.used,
        dropped=source.dropped,
        config=config,
        special_tokens={
            name: (index, words.convert_ids_to_tokens(index))
            for name, index in (
                ("PAD", config.pad_token_id),
                ("SOS", config.bos_token_id),
                ("EOS", config.eos_token_id),
            )
        },
        assumed=assumed,
    )


COMMAND = Command(
    MODEL_TYPE,
    convert,
    checkpoint="the state dict of a ClipCap: .pt or .safetensors",
    example="coco_weights.pt --clip openai/clip-vit-base-patch32 --out clipcap",
    options={
        "tokenizer": {
            "metavar": "DIR",
            "help": "folder or Hub name of GPT-2's tokenizer (default: openai-community/gpt2)",
        },
        "clip": {
            "metavar": "DIR",
            "help": "folder or Hub name of the CLIP whose embeddings it was trained on, to make a model that reads "
            "pictures and not only cached embeddings",
        },
        "normalize_prefix": {
            "action": argparse.BooleanOptionalAction,
            "help": "whether it was trained on embeddings of length 1 (default: it was not)",
        },
        "num_heads": {"type": int, "metavar": "N", "help": "attention heads of GPT-2 (default: its width / 64)"},
        "trust_remote_code": TRUST,
    },
)


def read_source(checkpoint: str | Path) -> Source:
    """Open the checkpoint and mark the tensors that are not used.

    Args:
        checkpoint (`str` or `Path`): as in [`convert`].

    Returns:
        [`Source`]
    """
    tensors = load_checkpoint(checkpoint)
    return Source(Path(checkpoint), tensors, [name for name in tensors if COMPUTED_BUFFERS.fullmatch(name)])


def read_sizes(
    source: Source, num_heads: int | None = None, normalize_prefix: bool | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the sizes off the tensors.

    Args:
        source ([`Source`]): the tensors.
        num_heads, normalize_prefix: as in [`convert`].

    Returns:
        `tuple[dict[str, Any], dict[str, Any]]`: fields of [`ClipGpt2Config`], and the assumed ones among them.

    Raises:
        ConversionError: tensors that show sizes are missing, or the width of GPT-2 is not that of a released one and
            `num_heads` is not given.
    """
    source.check_places([(WORDS, 1), (POSITIONS, 1), (FIRST_FC, 1)], "a ClipCap checkpoint")
    vocab_size, width = source.shape(WORDS)
    assumed: dict[str, Any] = {}
    if num_heads is None:
        if width % HEAD_WIDTH:
            raise ConversionError(
                f"{source.path}: GPT-2 is {width} wide, not a multiple of {HEAD_WIDTH} like OpenAI's; give num_heads"
            )
        num_heads = assumed["num_heads"] = width // HEAD_WIDTH
    if normalize_prefix is None:
        normalize_prefix = assumed["normalize_prefix"] = False
    mapping = _read_mapping(source, width)
    if mapping["mapping_type"] == "transformer":
        assumed["mapping_heads"] = MAPPER_HEADS
    for name, heads in (("num_heads", num_heads), ("mapping_heads", mapping.get("mapping_heads", 1))):
        if heads < 1 or width % heads:
            raise ConversionError(f"{source.path}: {name}={heads} does not divide the width of GPT-2, {width}")
    tied = HEAD not in source.tensors or torch.equal(source.tensors[HEAD], source.tensors[WORDS])
    text = {
        "vocab_size": vocab_size,
        "n_positions": source.shape(POSITIONS)[0],
        "n_embd": width,
        "n_layer": source.count(LAYERS),
        "n_head": num_heads,
        "n_inner": source.shape(FIRST_FC)[1],
        "tie_word_embeddings": tied,
    }
    return {**mapping, "text_config": text, "normalize_prefix": normalize_prefix}, assumed


def _read_mapping(source: Source, width: int) -> dict[str, Any]:
    """The mapper's sizes and its layout, which its names tell."""
    if source.has(MLP):
        source.check_places([(f"{MLP}0.weight", 1), (f"{MLP}2.weight", 1)], "a ClipCap checkpoint with the MLP mapper")
        return {
            "mapping_type": "mlp",
            "feature_size": source.shape(f"{MLP}0.weight")[1],
            "prefix_length": _tokens(source, f"{MLP}2.weight", width),
        }
    first_layer = f"{MAPPER_LAYERS}0.mlp.fc1.weight"
    places = [(LINEAR, 1), (CONSTANTS, 1), (first_layer, 1)]
    source.check_places(places, f"a ClipCap checkpoint with the transformer mapper (it has no {MLP}* either)")
    return {
        "mapping_type": "transformer",
        "feature_size": source.shape(LINEAR)[1],
        "clip_length": _tokens(source, LINEAR, width),
        "prefix_length": source.shape(CONSTANTS)[0],
        "mapping_layers": source.count(MAPPER_LAYERS),
        "mapping_heads": MAPPER_HEADS,
        "mapping_ratio": _tokens(source, first_layer, width),
    }


def _tokens(source: Source, name: str, width: int) -> int:
    """The number of tokens that a matrix makes: its rows, divided by the width of GPT-2."""
    multiple, remainder = divmod(source.shape(name)[0], width)
    if remainder or not multiple:
        raise ConversionError(
            f"{source.path}: {name} has shape {source.shape(name)}, expected a multiple of {width} rows, GPT-2's width"
        )
    return multiple


def fill_model(source: Source, config: ClipGpt2Config, vision: PreTrainedModel | None) -> ClipGpt2ForImageCaptioning:
    """Make the model and give it the original's weights, and the image tower its own.

    Names and shapes of all tensors are compared with a model without storage before the first weight is read.

    Args:
        source ([`Source`]): the tensors.
        config ([`ClipGpt2Config`]): the sizes.
        vision (`PreTrainedModel`, *optional*): the image tower.

    Returns:
        [`ClipGpt2ForImageCaptioning`]: in float32, for saving only: buffers that are not saved have no storage.

    Raises:
        ConversionError: tensors are missing, extra, misshapen or not of floating point.
    """
    with torch.device("meta"):
        model = ClipGpt2ForImageCaptioning(config)
    targets = {
        name: {name: tensor.shape} for name, tensor in model.state_dict().items() if not name.startswith("backbone.")
    }
    if HEAD not in source.tensors:  # .safetensors files have tied tensors once
        del targets[HEAD]
    source.check(targets)
    state = source.state_dict(targets)
    state.setdefault(HEAD, state[WORDS])
    if vision is not None:
        state |= {f"backbone.{name}": tensor.float() for name, tensor in vision.state_dict().items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _build_config(settings: dict[str, Any], tokenizer: Any, vision: PreTrainedModel | None) -> ClipGpt2Config:
    end = tokenizer.eos_token_id
    text = {**settings["text_config"], "bos_token_id": end, "eos_token_id": end}
    tower = {"features_only": True} if vision is None else {"vision_config": vision.config}
    return ClipGpt2Config(**{**settings, **tower, "text_config": text, "unk_token_id": tokenizer.unk_token_id})


def _set_decoding(model: ClipGpt2ForImageCaptioning, tokenizer: Any) -> None:
    """The original's decoding: five beams by its own rule, 67 tokens at most, and a full stop ends a caption too."""
    (stop,) = tokenizer(FULL_STOP, add_special_tokens=False).input_ids
    model.generation_config.update(
        allow_custom_entries=True,  # decoding
        num_beams=5,
        decoding="paper",
        max_length=min(LONGEST + 1, model.config.max_position_embeddings or 0),
        eos_token_id=[model.config.eos_token_id, stop],
    )


def _read_tokenizer(source: str | Path, vocab_size: int, trust: bool) -> Any:
    try:
        tokenizer = load_pretrained(AutoTokenizer, source, trust)
    except (OSError, ValueError) as error:
        raise ConversionError(f"tokenizer={str(source)!r}: no tokenizer could be loaded: {error}") from error
    if len(tokenizer) != vocab_size:
        raise ConversionError(
            f"tokenizer={str(source)!r} has {len(tokenizer)} tokens, but the checkpoint embeddings for {vocab_size}; "
            "give that of its GPT-2"
        )
    if tokenizer.eos_token is None or len(tokenizer(FULL_STOP, add_special_tokens=False).input_ids) != 1:
        raise ConversionError(f"tokenizer={str(source)!r} must have an end token, and one token for the full stop")
    return tokenizer


def _read_clip(source: str | Path, feature_size: int, trust: bool) -> PreTrainedModel:
    try:
        with foreign_code(source, trust):
            tower = PooledBackbone.load(source, trust_remote_code=trust)
        width = PooledBackbone.width(tower)
    except (OSError, ValueError) as error:
        raise ConversionError(f"clip={str(source)!r}: no image tower could be loaded: {error}") from error
    if width != feature_size:
        raise ConversionError(
            f"clip={str(source)!r} gives embeddings of {width}, but the checkpoint was trained on {feature_size}"
        )
    return tower


def _build_processor(clip: str | Path | None, tokenizer: str | Path, trust: bool) -> ClipGpt2Processor:
    try:
        with foreign_code(clip, trust):
            return ClipGpt2Processor.from_encoder_decoder_pretrained(clip, tokenizer, trust, caption_length=LONGEST)
    except (OSError, ValueError) as error:
        raise ConversionError(f"clip={str(clip)!r}: no image processor could be loaded: {error}") from error
