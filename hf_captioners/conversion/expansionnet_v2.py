"""Conversion of the authors' checkpoints of ExpansionNet v2 (arXiv 2208.06551) to a `save_pretrained` folder.

Sources: a training or released checkpoint of `End_ExpansionNet_v2` (pixels) or `ExpansionNet_v2` (cached features), the
backbone files of Microsoft's Swin, and the vocabulary pickle of the authors' demo.

The model keeps the authors' parameter names, except for the backbone: it is transformers' Swin, whose names are
translated by `KEY_TABLE`, and whose queries, keys and values are one matrix (`attn.qkv`) in the original. Sizes come
from the shapes of the tensors. Two settings are not in the tensors, the number of heads and the grouping of the
encoder's slots: they are the released ones unless the original's configuration is given (`expansionnet_v2_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from hf_captioners.modeling.configuration_expansionnet_v2 import ExpansionNetV2Config
from hf_captioners.modeling.image_processing_captioner import CaptionerImageProcessor
from hf_captioners.modeling.modeling_expansionnet_v2 import ExpansionNetV2ForImageCaptioning
from hf_captioners.modeling.processing_captioner import ExpansionNetV2Processor
from hf_captioners.modeling.tokenization_words import build_word_tokenizer

from .command import NAMED_IDS, Command
from .expansionnet_v2_config import (
    RELEASED_IMAGE_SIZE,
    RELEASED_SPECIAL,
    SWIN_PREFIX,
    build_config,
    read_original_config,
    read_swin_sizes,
)
from .safe_load import load_checkpoint
from .source import Source
from .vocabulary import Vocabulary, WordVocabulary, read_vocabulary
from .writing import ConversionError, ConversionReport, check_out_dir, write_folder

MODEL_TYPE = "expansionnet_v2"

# Fragments of a backbone parameter's name, ours -> the original's, applied in this order. Other names are equal.
KEY_TABLE = (
    ("backbone.", SWIN_PREFIX),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.norm.", "patch_embed.norm."),
    ("encoder.layers.", "layers."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.q_proj.", ".attn.qkv."),  # rows 0..C-1 of the original
    (".attention.k_proj.", ".attn.qkv."),  # rows C..2C-1
    (".attention.v_proj.", ".attn.qkv."),  # rows 2C..3C-1
    (".attention.o_proj.", ".attn.proj."),
    (".attention.relative_position_bias.", ".attn."),
    (f"{SWIN_PREFIX}layernorm.", f"{SWIN_PREFIX}norm."),
)
COMPUTED_BUFFERS = (".attn.relative_position_index", ".attn_mask")


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    vocabulary: Vocabulary,
    original_config: str | Path | Mapping[str, Any] | None = None,
    special: Mapping[str, int] | None = None,
    backbone: str | Path | None = None,
    features_only: bool = False,
    overwrite: bool = False,
) -> ConversionReport:
    """Convert a checkpoint into a folder for `from_pretrained`: model, generation defaults and processor.

    Args:
        checkpoint (`str` or `Path`):
            `End_ExpansionNet_v2` or `ExpansionNet_v2` as `.pth` or `.safetensors`, bare or under `model_state_dict`.
        out_dir (`str` or `Path`), overwrite (`bool`, *optional*, defaults to `False`):
            As in [`hf_captioners.conversion.convert`], which names the result and the errors too.
        vocabulary (`str`, `Path`, `Sequence[str]` or `Mapping`):
            The words, index = id: the original pickle, a `.json` file, or a list. See
            [`hf_captioners.conversion.vocabulary.read_vocabulary`].
        original_config (`str`, `Path` or `Mapping`, *optional*):
            The original constructor's arguments in its own names, as a JSON file or a dict: `num_heads`,
            `num_exp_enc_list`, `drop_args`, `swin_img_size`... and optionally `special`. Sizes are read from the
            tensors and compared with it. Not in the tensors, and by default as released: 8 heads, the groups 32, 64,
            128, 256, 512, and drop path 0.1.
        special (`Mapping[str, int]`, *optional*):
            Ids of PAD, SOS, EOS and UNK when the vocabulary does not name them so.
        backbone (`str` or `Path`, *optional*):
            For a features-only checkpoint: a file of Microsoft's Swin, or an end-to-end checkpoint of which the
            backbone is taken, to make an end-to-end model.
        features_only (`bool`, *optional*, defaults to `False`):
            Leave the backbone of an end-to-end checkpoint out.
    """
    check_out_dir(out_dir, MODEL_TYPE, overwrite)
    arguments = read_original_config(original_config)
    source = read_source(checkpoint, backbone, features_only)
    words = read_vocabulary(vocabulary, arguments.get("special") if special is None else special, RELEASED_SPECIAL)
    config, assumed = build_config(source, arguments, words)
    model = fill_model(source, config)
    processor = _build_processor(words, config, source, arguments)
    folder = write_folder(out_dir, MODEL_TYPE, overwrite, model, processor, source=checkpoint)
    return ConversionReport(
        out_dir=folder,
        used=source.used,
        dropped=source.dropped,
        config=config,
        special_tokens=words.special_tokens,
        assumed=assumed,
    )


COMMAND = Command(
    MODEL_TYPE,
    convert,
    checkpoint="End_ExpansionNet_v2 or ExpansionNet_v2: .pth or .safetensors",
    example="rf_model.pth --vocabulary demo_coco_tokens.pickle --out expansionnet-v2",
    options={
        "vocabulary": {
            "required": True,
            "type": Path,
            "metavar": "FILE",
            "help": "the words: the original pickle, or a .json list whose index is the id",
        },
        "original_config": {
            "type": Path,
            "metavar": "FILE.json",
            "help": "the original constructor's arguments in its own names; needed where they are not the released "
            "ones and leave no trace in the tensors (number of heads, expansion groups)",
        },
        "special": {
            **NAMED_IDS,
            "help": "ids of PAD, SOS, EOS, UNK, when the vocabulary does not call them so (PAD=8 SOS=9 EOS=7 UNK=10)",
        },
        "backbone": {"type": Path, "metavar": "FILE", "help": "the backbone, for a features-only checkpoint"},
        "features_only": {"action": "store_true", "help": "leave the backbone out"},
    },
)


def read_source(checkpoint: str | Path, backbone: str | Path | None = None, features_only: bool = False) -> Source:
    """Open the checkpoint, and the backbone's file if there is one, and mark the tensors that are not used.

    Args:
        checkpoint, backbone, features_only: as in [`convert`].

    Returns:
        [`Source`]: names from Microsoft's file get the prefix `swin_transf.`, as in an end-to-end checkpoint.

    Raises:
        ConversionError: `backbone` is given although the checkpoint has one or none is wanted, or is not a Swin's file.
    """
    tensors = load_checkpoint(checkpoint)
    dropped: list[str] = []
    if backbone is not None:
        if features_only:
            raise ConversionError(f"backbone={str(backbone)!r} has no use with features_only=True; give one of the two")
        if any(name.startswith(SWIN_PREFIX) for name in tensors):
            raise ConversionError(
                f"{checkpoint}: has a backbone ({SWIN_PREFIX}*) already; leave backbone={str(backbone)!r} out"
            )
        extra, dropped = _read_backbone(Path(backbone))
        tensors |= extra
    swin = [name for name in tensors if name.startswith(SWIN_PREFIX)]
    dropped += swin if features_only else [name for name in swin if name.endswith(COMPUTED_BUFFERS)]
    return Source(Path(checkpoint), tensors, dropped)


def _read_backbone(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a backbone's file under end-to-end names, and the names that are not the backbone's."""
    tensors = load_checkpoint(path)
    if any(name.startswith(SWIN_PREFIX) for name in tensors):
        # the rest of an end-to-end checkpoint; the file's name keeps its names apart from the features-only ones
        foreign = [name for name in tensors if not name.startswith(SWIN_PREFIX)]
        renamed = {name: f"{path.name}:{name}" for name in foreign}
    elif "patch_embed.proj.weight" in tensors:
        foreign = [name for name in tensors if name.startswith("head.")]
        renamed = {name: SWIN_PREFIX + name for name in tensors}
    else:
        raise ConversionError(f"{path}: not a Swin backbone: no patch_embed.proj.weight, with or without {SWIN_PREFIX}")
    tensors = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    return tensors, [renamed[name] for name in foreign]


def original_name(name: str) -> str:
    """Translate the name of a parameter of our model into the original's, by `KEY_TABLE`.

    Args:
        name (`str`): as in the model's `state_dict`.

    Returns:
        `str`: the original's name; queries, keys and values share one.

    Example:

    ```python
    >>> from hf_captioners.conversion.expansionnet_v2 import original_name
    >>> original_name("backbone.encoder.layers.0.blocks.1.attention.k_proj.bias")
    'swin_transf.layers.0.blocks.1.attn.qkv.bias'
    >>> original_name("decoders.0.dyn_exp.key_linear.weight")
    'decoders.0.dyn_exp.key_linear.weight'

    ```
    """
    if name.startswith("backbone."):
        for part, original_part in KEY_TABLE:
            name = name.replace(part, original_part, 1)
    return name


def fill_model(source: Source, config: ExpansionNetV2Config) -> ExpansionNetV2ForImageCaptioning:
    """Make the model and give it the original's weights.

    Names and shapes of all tensors are compared with a model without storage before the first weight is read.

    Args:
        source ([`Source`]): the tensors.
        config ([`ExpansionNetV2Config`]): the sizes.

    Returns:
        [`ExpansionNetV2ForImageCaptioning`]: in float32, for saving only: buffers that are not saved have no storage.

    Raises:
        ConversionError: tensors are missing, extra, misshapen or not of floating point.
    """
    with torch.device("meta"):
        model = ExpansionNetV2ForImageCaptioning(config)
    targets: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in model.state_dict().items():
        targets.setdefault(original_name(name), {})[name] = parameter.shape
    source.check(targets)
    model.load_state_dict(source.state_dict(targets), assign=True)
    return model


def _build_processor(
    words: WordVocabulary, config: ExpansionNetV2Config, source: Source, arguments: Mapping[str, Any]
) -> ExpansionNetV2Processor:
    tokenizer = build_word_tokenizer(
        words.words,
        special=words.special,
        model_max_length=config.max_position_embeddings,
        rule="expansionnet_v2",
    )
    size = _image_size(config, source, arguments)
    return ExpansionNetV2Processor(CaptionerImageProcessor(size={"height": size, "width": size}), tokenizer)


def _image_size(config: ExpansionNetV2Config, source: Source, arguments: Mapping[str, Any]) -> int:
    """Side of the pictures in pixels; for a features-only model, of the backbone that its features come from."""
    if isinstance(config.vision_config, PreTrainedConfig):
        return config.vision_config.image_size
    if f"{SWIN_PREFIX}patch_embed.proj.weight" in source.tensors:
        shown_size = read_swin_sizes(source).get("swin_img_size")
        if shown_size is not None:
            return shown_size[0]
    return arguments.get("swin_img_size", RELEASED_IMAGE_SIZE)
