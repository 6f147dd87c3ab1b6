"""Conversion of the authors' checkpoints of SCD-Net (arXiv 2212.03099) to a `save_pretrained` folder.

Sources: `model_Epoch_*.pth` of one stage, or of both stages of a cascade, with the weights under `model` and their
moving average under `trainer.ema`; `vocabulary.txt`; the settings in X-modaler's names. The model keeps the authors'
parameter names; those of a cascade's first stage stand under `first_stage.`. Which stage a checkpoint is shows in the
width of its input. Heads, places of a caption, regions of a picture and the noise schedule are in no tensor.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_captioners.modeling.configuration_scdnet import ScdnetConfig
from hf_captioners.modeling.diffusion_scdnet import bits_needed
from hf_captioners.modeling.image_processing_captioner import CaptionerImageProcessor
from hf_captioners.modeling.modeling_scdnet import ScdnetForImageCaptioning
from hf_captioners.modeling.processing_scdnet import ScdnetProcessor

from .command import NAMED_IDS, Command
from .pickle_limits import show
from .safe_load import MissingStateError, load_checkpoint, load_json
from .scdnet_words import build_tokenizer, read_words
from .source import Source
from .state_names import EMA_KEYS
from .writing import ConversionError, ConversionReport, check_out_dir, raise_problems, write_folder

MODEL_TYPE = "scdnet"
EMA = (("trainer", "ema"), *((key,) for key in EMA_KEYS))  # places of the moving average; the authors' first
FIRST = "first_stage."
POSITIONS = "embeddings_pos.position_embeddings.weight"
CROPPED = 64  # positions of retrieved sentences that stay when the tables are cropped

# Our name of a setting, its place in X-modaler's configuration, and the released value.
SETTINGS: dict[str, tuple[str, Any]] = {
    "num_attention_heads": ("MODEL.BERT.NUM_ATTENTION_HEADS", 8),
    "caption_length": ("MODEL.MAX_SEQ_LEN", 20),
    "max_regions": ("DATALOADER.MAX_FEAT_NUM", 50),  # below 1: all
    "bit_scale": ("MODEL.TOKEN_EMBED.BIT_SCALE", 1.0),
    "noise_schedule": ("DIFFUSION.NOISE_SCHEDULE", "cosine"),
    "label_smoothing": ("LOSSES.LABELSMOOTHING", 0.1),
    "visual_dropout": ("MODEL.VISUAL_EMBED.DROPOUT", 0.5),
    "dropout": ("MODEL.BERT.HIDDEN_DROPOUT_PROB", 0.1),
    "attention_dropout": ("MODEL.BERT.ATTENTION_PROBS_DROPOUT_PROB", 0.1),
}
# wrong ones caption badly
ASSUMED = ("num_attention_heads", "caption_length", "max_regions", "bit_scale", "noise_schedule")
_SAMPLING = "DECODE_STRATEGY.DIFFUSION."


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    vocabulary: str | Path | Sequence[str],
    stage1: str | Path | None = None,
    original_config: str | Path | Mapping[str, Any] | None = None,
    special: Mapping[str, int] | None = None,
    ema: bool | None = None,
    crop_positions: bool = False,
    overwrite: bool = False,
) -> ConversionReport:
    """Convert a checkpoint into a folder for `from_pretrained`: model, generation defaults and processor.

    Args:
        checkpoint (`str` or `Path`):
            A first or second stage as `.pth` or `.safetensors`.
        out_dir (`str` or `Path`), overwrite (`bool`, *optional*, defaults to `False`):
            As in [`hf_captioners.conversion.convert`], which names the result and the errors too.
        vocabulary (`str`, `Path` or `Sequence[str]`):
            `vocabulary.txt`, a word on each line, or the words; the id of a word counts from 1. Word 0 is
            start, end and padding.
        stage1 (`str` or `Path`, *optional*):
            The first stage, with which a second stage becomes a cascade that owns both.
        original_config (`str`, `Path` or `Mapping`, *optional*):
            X-modaler's settings, of both stages, as a JSON file or a dict of dicts. Sizes are read from the tensors.
        special (`Mapping[str, int]`, *optional*):
            `{"UNK": id}`, the unknown word. By default the last word if it is called so (UNK, <unk>).
        ema (`bool`, *optional*):
            Take the moving average of the weights, which all published numbers are of, or not. By default it is taken
            where the checkpoint has it.
        crop_positions (`bool`, *optional*, defaults to `False`):
            Drop positions that are never reached: of captions those beyond their length, of retrieved sentences those
            beyond 64.
    """
    check_out_dir(out_dir, MODEL_TYPE, overwrite)
    settings = read_settings(original_config)
    words, unknown = read_words(vocabulary, special)
    sources = {"": _read_source(checkpoint, ema, settings, crop_positions)}
    if stage1 is not None:
        sources[FIRST] = _read_source(stage1, ema, settings, crop_positions)
    config = build_config(sources, settings, len(words), unknown)
    model = fill_model(sources, config)
    _set_decoding(model, settings)
    processor = ScdnetProcessor(CaptionerImageProcessor(), build_tokenizer(words, unknown, config.caption_length + 1))
    folder = write_folder(out_dir, MODEL_TYPE, overwrite, model, processor, source=checkpoint)
    names = dict.fromkeys(("PAD", "SOS", "EOS"), (0, words[0]))
    return ConversionReport(
        out_dir=folder,
        used=[prefix + name for prefix, source in sources.items() for name in source.used],
        dropped=[prefix + name for prefix, source in sources.items() for name in source.dropped],
        config=config,
        special_tokens=names | ({} if unknown is None else {"UNK": (unknown, words[unknown])}),
        assumed={place: released for name in ASSUMED for place, released in [SETTINGS[name]] if place not in settings},
    )


COMMAND = Command(
    MODEL_TYPE,
    convert,
    checkpoint="a first or second stage: .pth or .safetensors",
    example="stage2.pth --stage1 stage1.pth --vocabulary vocabulary.txt --out scdnet",
    options={
        "vocabulary": {
            "required": True,
            "type": Path,
            "metavar": "FILE.txt",
            "help": "vocabulary.txt, a word on each line",
        },
        "stage1": {
            "type": Path,
            "metavar": "FILE",
            "help": "the first stage, to make a cascade of a second stage and this one",
        },
        "original_config": {
            "type": Path,
            "metavar": "FILE.json",
            "help": "X-modaler's settings; needed where they are not the released ones (heads, length of a caption, "
            "noise schedule)",
        },
        "special": {**NAMED_IDS, "help": "UNK=ID of the unknown word, where the last word is not called so"},
        "ema": {
            "action": argparse.BooleanOptionalAction,
            "help": "take the moving average of the weights (default: where the checkpoint has it)",
        },
        "crop_positions": {"action": "store_true", "help": "drop the positions that no caption reaches"},
    },
)


def read_settings(original_config: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Read X-modaler's settings.

    Args:
        original_config (`str`, `Path`, `Mapping` or `None`): JSON file, or dict of dicts.

    Returns:
        `dict[str, Any]`: place, names joined with dots -> value.

    Raises:
        ConversionError: not a dict, or a setting that this model does not have.
    """
    if original_config is None:
        return {}
    where = str(original_config) if isinstance(original_config, str | Path) else "original_config"
    content = load_json(original_config) if isinstance(original_config, str | Path) else original_config
    if not isinstance(content, Mapping):
        raise ConversionError(f"{where}: expected names and values, found {type(content).__name__}")
    settings = _flat(content)
    released = {
        "MODEL.META_ARCHITECTURE": ("BitDiffusionRefTransformerEncoderDecoder",),
        "MODEL.TOKEN_EMBED.ACTIVATION": ("none",),
        "MODEL.VISUAL_EMBED.ACTIVATION": ("relu",),
        "MODEL.VISUAL_EMBED.LOCATION_SIZE": (0,),
        "MODEL.BERT.HIDDEN_ACT": ("relu",),
    }
    problems = [
        f"{place}={show(settings[place])} is not supported, only {values[0]!r}"
        for place, values in released.items()
        if place in settings and settings[place] not in values
    ]
    raise_problems(where, problems)
    return settings


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _setting(settings: Mapping[str, Any], name: str) -> Any:
    place, released = SETTINGS[name]
    return settings.get(place, released)


def _read_source(path: str | Path, ema: bool | None, settings: Mapping[str, Any], crop: bool) -> Source:
    """The weights of a stage, those of the moving average if they are wanted."""
    tensors = None if ema is False else _read_moving_average(path)
    if tensors is None:
        if ema:
            places = " or ".join(".".join(place) for place in EMA)
            raise ConversionError(f"{path}: has no moving average of the weights ({places}); give ema=False")
        tensors = load_checkpoint(path)
    for part, rows in (("token_embed.", _setting(settings, "caption_length")), ("r_token_embed.", CROPPED)):
        if crop and part + POSITIONS in tensors:
            tensors[part + POSITIONS] = tensors[part + POSITIONS][:rows]
    return Source(Path(path), tensors)


def _read_moving_average(path: str | Path) -> dict[str, torch.Tensor] | None:
    for place in EMA:
        with suppress(MissingStateError):
            return load_checkpoint(path, at=place)
    return None


def _sizes(source: Source, settings: Mapping[str, Any], words: int) -> dict[str, Any]:
    """The sizes of a stage, as its tensors show them."""
    places = {
        "vocab_size": ("predictor.logits.weight", 0),
        "hidden_size": ("predictor.logits.weight", 1),
        "input_size": ("token_embed.embeddings.weight", 1),
        "intermediate_size": ("encoder.layers.0.intermediate.dense.weight", 0),
        "feature_size": ("visual_embed.embeddings.weight", 1),
        "time_frequencies": ("token_embed.time_embed.0.weights", 0),
        "caption_positions": ("token_embed." + POSITIONS, 0),
        "retrieved_positions": ("r_token_embed." + POSITIONS, 0),
    }
    source.check_places(places.values(), "an SCD-Net checkpoint")
    sizes: dict[str, Any] = {name: source.shape(tensor)[axis] for name, (tensor, axis) in places.items()}
    bits, width = bits_needed(sizes["vocab_size"]), sizes.pop("input_size")
    problems = []
    if sizes["vocab_size"] != words:
        problems.append(
            f"the vocabulary has {words - 1} words, with the implicit first one {words}, but the tensors have "
            f"{sizes['vocab_size']}"
        )
    if width not in (2 * bits, 3 * bits):
        problems.append(
            f"token_embed.embeddings.weight reads {width} numbers; with {bits} bits a first stage has {2 * bits} and a "
            f"second {3 * bits}"
        )
    if (said := settings.get("MODEL.VOCAB_SIZE", words)) != words:
        problems.append(f"MODEL.VOCAB_SIZE: original_config says {show(said)}, but the vocabulary has {words}")
    raise_problems(str(source.path), problems)
    layers = {
        "visual_layers": source.count("encoder.layers."),
        "semantic_layers": source.count("r_encoder.layers."),
        "decoder_layers": source.count("decoder.g_layers."),
    }
    return {**sizes, **layers, "sees_previous": width == 3 * bits}


def build_config(
    sources: Mapping[str, Source], settings: Mapping[str, Any], words: int, unknown: int | None
) -> ScdnetConfig:
    """Make the configuration from the shapes of the tensors and the settings.

    Args:
        sources (`Mapping[str, Source]`): the stage under `""`, and a first stage that it is to own under
            `"first_stage."`.
        settings (`Mapping[str, Any]`): see [`read_settings`].
        words (`int`): words of the vocabulary, with word 0.
        unknown (`int`, *optional*): id of the unknown word.

    Returns:
        [`ScdnetConfig`]

    Raises:
        ConversionError: the tensors contradict the vocabulary, the settings or each other.
    """
    common = {name: _setting(settings, name) for name in SETTINGS}
    common["max_position_embeddings"] = common.pop("caption_length") + 1
    if isinstance(common["max_regions"], int) and common["max_regions"] < 1:
        common["max_regions"] = None
    sizes = {prefix: _sizes(source, settings, words) for prefix, source in sources.items()}
    main, path = sizes[""], sources[""].path
    if FIRST in sizes and not main["sees_previous"]:
        raise ConversionError(f"{path}: is a first stage, which has no use for stage1; give the second stage")
    if FIRST in sizes and sizes[FIRST]["sees_previous"]:
        raise ConversionError(f"{sources[FIRST].path}: is a second stage; give a first stage as stage1")
    try:
        first = ScdnetConfig(**sizes[FIRST], **common, unk_token_id=unknown) if FIRST in sizes else None
        return ScdnetConfig(**main, **common, unk_token_id=unknown, first_stage=first)
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"{path}: {' '.join(str(error).split())}") from error


def fill_model(sources: Mapping[str, Source], config: ScdnetConfig) -> ScdnetForImageCaptioning:
    """Make the model and give it the original's weights.

    Names and shapes of all tensors are compared with a model without storage before the first weight is read.

    Args:
        sources, config: see [`build_config`].

    Returns:
        [`ScdnetForImageCaptioning`]: in float32, for saving only: buffers that are not saved have no storage.

    Raises:
        ConversionError: tensors are missing, extra, misshapen or not of floating point.
    """
    with torch.device("meta"):
        model = ScdnetForImageCaptioning(config)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    for prefix, source in sources.items():
        own = {name for name in shapes if name.startswith(FIRST) == (prefix == FIRST)}
        targets = {name.removeprefix(prefix): {name: shapes[name]} for name in shapes if name in own}
        source.check(targets)
        state |= source.state_dict(targets)
    model.load_state_dict(state, assign=True)
    return model


def _set_decoding(model: ScdnetForImageCaptioning, settings: Mapping[str, Any]) -> None:
    """The settings' way of sampling, where they say one; lists are for the stages of a cascade."""
    options = {
        "num_inference_steps": settings.get(_SAMPLING + "TIMESTEPS"),
        "time_difference": settings.get(_SAMPLING + "TIME_DIFFERENCE"),
        "sample_noise": settings.get(_SAMPLING + "SAMPLE_NOISE"),
    }
    if model.is_cascade:
        options |= {
            "num_inference_steps": settings.get(_SAMPLING + "CAS_TIMESTEPS") or None,
            "time_difference": settings.get(_SAMPLING + "CAS_TIME_DIFFERENCE") or None,
            # X-modaler lists the first network first
            "cascade_weights": settings.get("MODEL.MODEL_WEIGHTS"),
        }
    vars(model.generation_config).update({name: value for name, value in options.items() if value is not None})
