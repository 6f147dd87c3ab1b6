"""Conversion of the authors' evaluator files of PAC-S (arXiv 2303.12112) to a folder of transformers' `CLIPModel`.

Sources: `clip_ViT-B-32.pth` and any other file whose `state_dict` has OpenAI's names of a CLIP with a vision
transformer, OpenAI's own and OpenCLIP's included. Sizes come from the shapes of the tensors. Not in the tensors, and by
default as in OpenAI's CLIP: heads 64 wide, the activation, and the mean and deviation of the pixels. The released
OpenCLIP ViT-L/14 needs `{"quick_gelu": false, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}`.

Files of PAC-S++ are refused: beside the weights they hold LoRA matrices, and nothing in a file says whether those are
in the weights already.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerBase,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..modeling.captioner_trust import load_pretrained
from .command import TRUST, Command
from .pickle_limits import show
from .safe_load import load_checkpoint, load_json
from .source import Source
from .writing import ConversionError, ConversionReport, check_out_dir, raise_problems, write_folder

logger = logging.getLogger(__name__)

WRITTEN_TYPE = "clip"  # the model type in the config.json that is written
HEAD_WIDTH = 64
VISION_LAYERS, TEXT_LAYERS, TOKENS = "visual.transformer.resblocks.", "transformer.resblocks.", "token_embedding.weight"

# Fragments of a parameter's name, ours -> the original's, applied in this order.
KEY_TABLE = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),  # transposed
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),  # transposed
    (".self_attn.q_proj.", ".attn.in_proj_"),  # rows 0..width-1 of the original
    (".self_attn.k_proj.", ".attn.in_proj_"),  # rows width..2 width-1
    (".self_attn.v_proj.", ".attn.in_proj_"),  # rows 2 width..3 width-1
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")
JIT_SCALARS = ("input_resolution", "context_length", "vocab_size")
SETTINGS = ("quick_gelu", "vision_heads", "transformer_heads", "mean", "std")


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    original_config: str | Path | Mapping[str, Any] | None = None,
    vocabulary: Any = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> ConversionReport:
    """Convert an evaluator into a folder for `CLIPModel.from_pretrained`, with its image processor.

    Args:
        checkpoint (`str` or `Path`):
            A file with OpenAI's names of a CLIP, as `.pth` or `.safetensors`, bare or under `state_dict`.
        out_dir (`str` or `Path`), overwrite (`bool`, *optional*, defaults to `False`):
            As in [`hf_captioners.conversion.convert`], which names the result and the errors too.
        original_config (`str`, `Path` or `Mapping`, *optional*):
            What the tensors do not show, as a JSON file or a dict: `quick_gelu` (`bool`), `vision_heads` and
            `transformer_heads` (`int`), `mean` and `std` (three `float`, of pixels in 0..1).
        vocabulary (`str` or `Path`, *optional*):
            Folder or Hub name of the CLIP tokenizer, which is then written beside the model. A scorer needs it to read
            captions as text; the file of the evaluator does not hold it.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with the tokenizer of `vocabulary` may run.
    """
    check_out_dir(out_dir, WRITTEN_TYPE, overwrite)
    settings = read_settings(original_config)
    source = read_source(checkpoint)
    config, assumed = build_config(source, settings)
    model = fill_model(source, config)
    tokenizer = None if vocabulary is None else _read_tokenizer(vocabulary, config, trust_remote_code)
    image_processor = _build_image_processor(config, settings)
    processor = image_processor if tokenizer is None else CLIPProcessor(image_processor, tokenizer)
    folder = write_folder(out_dir, WRITTEN_TYPE, overwrite, model, processor)
    if tokenizer is None:
        logger.warning(
            "%s: no tokenizer was written, as the evaluator's file holds none; give the folder of a CLIP tokenizer as "
            "vocabulary, or give a tokenizer to the scorer",
            out_dir,
        )
    return ConversionReport(out_dir=folder, used=source.used, dropped=source.dropped, config=config, assumed=assumed)


COMMAND = Command(
    "pac_score",
    convert,
    checkpoint="a file with OpenAI's names of a CLIP: .pth or .safetensors",
    example="clip_ViT-B-32.pth --vocabulary openai/clip-vit-base-patch32 --out pac-s",
    options={
        "original_config": {
            "type": Path,
            "metavar": "FILE.json",
            "help": "what the tensors do not show: quick_gelu, vision_heads, transformer_heads, mean, std",
        },
        "vocabulary": {
            "metavar": "DIR",
            "help": "folder or Hub name of a CLIP tokenizer, to be written beside the model",
        },
        "trust_remote_code": TRUST,
    },
)


def read_settings(original_config: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Read the settings that the tensors do not show.

    Args:
        original_config: as in [`convert`].

    Returns:
        `dict[str, Any]`: some of `SETTINGS`.

    Raises:
        ConversionError: an unknown name, or a value of another kind.
    """
    where = "original_config" if isinstance(original_config, Mapping) else str(original_config)
    settings = load_json(original_config) if isinstance(original_config, (str, Path)) else dict(original_config or {})
    if not isinstance(settings, dict):
        raise ConversionError(f"{where}: expected names and values, found {type(settings).__name__}")
    known_names = ", ".join(SETTINGS)
    problems = [f"unknown name {name!r}, the known ones are {known_names}" for name in settings if name not in SETTINGS]
    if not isinstance(settings.get("quick_gelu", True), bool):
        problems.append(f"quick_gelu={show(settings['quick_gelu'])} is not true or false")
    for name in ("vision_heads", "transformer_heads"):
        if type(settings.get(name, 1)) is not int or settings.get(name, 1) < 1:
            problems.append(f"{name}={show(settings[name])} is not a positive number")
    for name in ("mean", "std"):
        values = settings.get(name, OPENAI_CLIP_MEAN)
        if (
            not isinstance(values, (list, tuple))
            or len(values) != 3
            or not all(type(value) is float for value in values)
        ):
            problems.append(f"{name}={show(values)} is not a list of three fractions")
    raise_problems(where, problems)
    return settings


def read_source(checkpoint: str | Path) -> Source:
    """Open the evaluator's file.

    Args:
        checkpoint (`str` or `Path`): as in [`convert`].

    Returns:
        [`Source`]: the scalars of a JIT archive are dropped.

    Raises:
        ConversionError: a file of PAC-S++, or of a CLIP without a vision transformer.
    """
    tensors = load_checkpoint(checkpoint)
    lora = [name for name in tensors if "lora_" in name]
    if lora:
        raise ConversionError(
            f"{checkpoint}: has LoRA matrices ({lora[0]} and {len(lora) - 1} more), as the files of PAC-S++ do; "
            "whether they are in the weights already cannot be seen, so they are not merged here. Load the file with "
            "the code of PAC-S++, merge there, and convert the merged state dict"
        )
    if any(name.startswith("visual.layer1.") for name in tensors):
        raise ConversionError(f"{checkpoint}: its vision tower is a ResNet (visual.layer1); only ViT is supported")
    return Source(Path(checkpoint), tensors, [name for name in JIT_SCALARS if name in tensors])


def build_config(source: Source, original_settings: Mapping[str, Any]) -> tuple[CLIPConfig, dict[str, Any]]:
    """Make the configuration from the shapes of the tensors.

    Args:
        source ([`Source`]): the tensors.
        original_settings (`Mapping[str, Any]`): from [`read_settings`].

    Returns:
        `tuple[CLIPConfig, dict[str, Any]]`: the configuration, and the settings that were assumed.

    Raises:
        ConversionError: a tensor that shows a size is missing, or sizes contradict each other.
    """
    matrices = ["visual.positional_embedding", "visual.proj", "token_embedding.weight", "positional_embedding"]
    matrices += ["text_projection", f"{VISION_LAYERS}0.mlp.c_fc.weight", f"{TEXT_LAYERS}0.mlp.c_fc.weight"]
    source.check_places([("visual.conv1.weight", 3), *((name, 1) for name in matrices)], "a CLIP with OpenAI's names")
    widths = {"vision_heads": source.shape("visual.conv1.weight")[0], "transformer_heads": source.shape(TOKENS)[1]}
    heads = {name: original_settings.get(name, max(width // HEAD_WIDTH, 1)) for name, width in widths.items()}
    problems = [
        f"{name}={heads[name]} does not divide the width {width}; give original_config with it"
        for name, width in widths.items()
        if width % heads[name]
    ]
    patches = source.shape("visual.positional_embedding")[0] - 1
    if not patches or round(patches**0.5) ** 2 != patches:
        problems.append(f"visual.positional_embedding has {patches} patches, expected a square and the class")
    raise_problems(str(source.path), problems)
    settings = {"quick_gelu": True, **heads, "mean": list(OPENAI_CLIP_MEAN), "std": list(OPENAI_CLIP_STD)}
    assumed = {name: value for name, value in settings.items() if name not in original_settings}
    embed_dim = source.shape("visual.proj")[1]
    shared = {
        "hidden_act": "quick_gelu" if original_settings.get("quick_gelu", True) else "gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": embed_dim,
    }
    config = CLIPConfig(
        vision_config=_vision_config(source, heads["vision_heads"]) | shared,
        text_config=_text_config(source, heads["transformer_heads"]) | shared,
        projection_dim=embed_dim,
    )
    return config, assumed


def _vision_config(source: Source, heads: int) -> dict[str, Any]:
    convolution = source.shape("visual.conv1.weight")  # width, channels, patch, patch
    return {
        "hidden_size": convolution[0],
        "intermediate_size": source.shape(f"{VISION_LAYERS}0.mlp.c_fc.weight")[0],
        "num_hidden_layers": source.count(VISION_LAYERS),
        "num_attention_heads": heads,
        "num_channels": convolution[1],
        "image_size": round((source.shape("visual.positional_embedding")[0] - 1) ** 0.5) * convolution[3],
        "patch_size": convolution[3],
    }


def _text_config(source: Source, heads: int) -> dict[str, Any]:
    vocab_size = source.shape(TOKENS)[0]
    return {
        "vocab_size": vocab_size,
        "hidden_size": source.shape(TOKENS)[1],
        "intermediate_size": source.shape(f"{TEXT_LAYERS}0.mlp.c_fc.weight")[0],
        "num_hidden_layers": source.count(TEXT_LAYERS),
        "num_attention_heads": heads,
        "max_position_embeddings": source.shape("positional_embedding")[0],
        # The original pools the highest id of a row: EOS, the last of the vocabulary; BOS in a row without EOS.
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": vocab_size - 1,
    }


def original_name(name: str) -> str:
    """Translate the name of a parameter of `CLIPModel` into the original's, by `KEY_TABLE`.

    Args:
        name (`str`): as in the model's `state_dict`.

    Returns:
        `str`: the original's name; queries, keys and values share one.

    Example:

    ```python
    >>> from hf_captioners.conversion.pac_score import original_name
    >>> original_name("vision_model.encoder.layers.3.self_attn.k_proj.bias")
    'visual.transformer.resblocks.3.attn.in_proj_bias'
    >>> original_name("logit_scale")
    'logit_scale'

    ```
    """
    for part, original_part in KEY_TABLE:
        name = name.replace(part, original_part, 1)
    return name


def fill_model(source: Source, config: CLIPConfig) -> CLIPModel:
    """Make the model and give it the original's weights.

    Names and shapes of all tensors are compared with a model without storage before the first weight is read.

    Args:
        source ([`Source`]): the tensors.
        config (`CLIPConfig`): the sizes.

    Returns:
        `CLIPModel`: in float32, for saving only: buffers that are not saved have no storage.

    Raises:
        ConversionError: tensors are missing, extra, misshapen or not of floating point.
    """
    with torch.device("meta"):
        model = CLIPModel(config)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    for name in TRANSPOSED:
        shapes[name] = torch.Size(reversed(shapes[name]))
    targets: dict[str, dict[str, torch.Size]] = {}
    for name in sorted(shapes, key=_row_block):
        targets.setdefault(original_name(name), {})[name] = shapes[name]
    source.check(targets)
    state = source.state_dict(targets)
    for name in TRANSPOSED:
        state[name] = state[name].T.contiguous()
    model.load_state_dict(state, assign=True)
    return model


def _row_block(name: str) -> int:
    """The block of rows of a parameter in the original's: queries, keys, values. The model lists keys first."""
    return next((index for index, part in enumerate((".q_proj.", ".k_proj.", ".v_proj.")) if part in name), 0)


def _build_image_processor(config: CLIPConfig, settings: Mapping[str, Any]) -> CLIPImageProcessorPil:
    vision: Any = config.vision_config
    side = vision.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=list(settings.get("mean", OPENAI_CLIP_MEAN)),
        image_std=list(settings.get("std", OPENAI_CLIP_STD)),
    )


def _read_tokenizer(vocabulary: Any, config: CLIPConfig, trust: bool) -> PreTrainedTokenizerBase:
    if not isinstance(vocabulary, (str, Path)):
        raise ConversionError(f"vocabulary is a {type(vocabulary).__name__}; expected the folder of a CLIP tokenizer")
    try:
        tokenizer = load_pretrained(AutoTokenizer, vocabulary, trust)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConversionError(f"{vocabulary}: not the folder of a CLIP tokenizer: {reason}") from error
    text: Any = config.text_config
    size = text.vocab_size
    ends = tokenizer.convert_tokens_to_ids([str(tokenizer.bos_token), str(tokenizer.eos_token)])
    if len(tokenizer) != size or ends != [size - 2, size - 1]:
        raise ConversionError(
            f"{vocabulary}: {len(tokenizer)} tokens with BOS and EOS {ends}, but token_embedding.weight has {size}, of "
            f"which the last two are BOS and EOS"
        )
    return tokenizer
