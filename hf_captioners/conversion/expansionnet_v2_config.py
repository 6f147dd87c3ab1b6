"""The configuration of a converted ExpansionNet v2: sizes from the tensors, the rest from the original's arguments.

Names are those of the original's constructors throughout. A size that a tensor shows is taken from there; when it is
an argument as well, the two must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from hf_captioners.modeling.configuration_expansionnet_v2 import ExpansionNetV2Config

from .pickle_limits import show
from .safe_load import load_json
from .source import Source
from .vocabulary import WordVocabulary
from .writing import ConversionError, raise_problems

SWIN_PREFIX = "swin_transf."
SWIN_LAYERS = f"{SWIN_PREFIX}layers."
Sizes = dict[str, tuple[Any, str]]  # original name -> value, and the tensor that shows it

RELEASED_HEADS = 8
RELEASED_GROUPS = (32, 64, 128, 256, 512)
RELEASED_DROP_PATH = 0.1
RELEASED_IMAGE_SIZE = 384
RELEASED_SPECIAL = {"PAD": 78, "SOS": 79, "EOS": 77, "UNK": 80}

# Argument names of the original constructors: sizes that tensors show; settings that no tensor shows; no effect here.
_READABLE = (
    *("swin_img_size", "swin_patch_size", "swin_in_chans", "swin_embed_dim", "swin_depths", "swin_num_heads"),
    *("swin_window_size", "swin_mlp_ratio", "swin_qkv_bias", "final_swin_dim", "img_feature_dim"),
    *("d_model", "N_enc", "N_dec", "ff", "num_exp_dec", "max_seq_len"),
)
_NOT_READABLE = (
    *("num_heads", "num_exp_enc_list", "drop_args", "special", "swin_drop_rate", "swin_attn_drop_rate"),
    *("swin_drop_path_rate", "swin_qk_scale", "swin_ape", "swin_patch_norm"),
)
_IGNORED = ("rank", "swin_norm_layer", "swin_use_checkpoint", "output_word2idx", "output_idx2word")
_DROPOUTS = {
    "enc": "encoder_dropout",
    "dec": "decoder_dropout",
    "enc_input": "encoder_input_dropout",
    "dec_input": "decoder_input_dropout",
    "other": "other_dropout",
}


def read_original_config(original_config: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Read the original constructor's arguments and check their names.

    Args:
        original_config (`str`, `Path`, `Mapping` or `None`): JSON file or dict, in the original's names.

    Returns:
        `dict[str, Any]`: the arguments that matter here.

    Raises:
        ConversionError: not a dict, an unknown name, or a setting that transformers' Swin does not have.
    """
    if original_config is None:
        return {}
    where = str(original_config) if isinstance(original_config, str | Path) else "original_config"
    arguments = load_json(original_config) if isinstance(original_config, str | Path) else original_config
    if not isinstance(arguments, Mapping):
        raise ConversionError(f"{where}: expected names and values, found {type(arguments).__name__}")
    known_names = (*_READABLE, *_NOT_READABLE, *_IGNORED)
    problems = [f"unknown name {name!r}" for name in arguments if name not in known_names]
    if problems:
        problems.append(f"the known names are {', '.join(known_names)}")
    for name, supported in (("swin_qk_scale", None), ("swin_ape", False), ("swin_patch_norm", True)):
        if arguments.get(name, supported) is not supported:
            problems.append(f"{name}={show(arguments[name])} is not supported, only {supported}")
    drop_args = arguments.get("drop_args") or {}
    if not isinstance(drop_args, Mapping) or set(drop_args) - set(_DROPOUTS):
        problems.append(f"drop_args={show(drop_args)} must map some of {', '.join(_DROPOUTS)} to rates")
    raise_problems(where, problems)
    return {name: value for name, value in arguments.items() if name not in _IGNORED}


def build_config(
    source: Source, arguments: Mapping[str, Any], words: WordVocabulary
) -> tuple[ExpansionNetV2Config, dict[str, Any]]:
    """Make the configuration from the shapes of the tensors and the original's arguments.

    Args:
        source ([`Source`]): the tensors; without a used backbone the model is a features-only one.
        arguments (`Mapping[str, Any]`): from [`read_original_config`].
        words ([`WordVocabulary`]): the vocabulary.

    Returns:
        `tuple[ExpansionNetV2Config, dict[str, Any]]`: the configuration, and the settings that were assumed because
        neither a tensor nor `arguments` shows them.

    Raises:
        ConversionError: an argument contradicts a tensor, a required value is neither an argument nor readable, or the
            vocabulary has another length than the model.
    """
    features_only = not source.has(SWIN_PREFIX)
    shown_sizes = read_body_sizes(source) | ({} if features_only else read_swin_sizes(source))
    problems = [
        f"{name}: the original configuration says {show(arguments[name])}, but {tensor} says {value!r}"
        for name, (value, tensor) in shown_sizes.items()
        if name in arguments and not _agrees(name, arguments[name], shown_sizes)
    ]
    sizes = {name: value for name, (value, _) in shown_sizes.items()}
    if len(words.words) != sizes["vocab_size"]:
        problems.append(f"the vocabulary has {len(words.words)} words, but vocab_linear.weight {sizes['vocab_size']}")
    settings = {"num_heads": RELEASED_HEADS, "num_exp_enc_list": list(RELEASED_GROUPS)}
    assumed = {name: value for name, value in settings.items() if name not in arguments}
    settings = {**settings, **arguments, **sizes}
    problems += _check_hidden_settings(settings, assumed)
    if not features_only:
        problems += _check_swin(source, settings)
    raise_problems(str(source.path), problems)
    return _make_config(source, settings, words, features_only), assumed


def _make_config(
    source: Source, settings: Mapping[str, Any], words: WordVocabulary, features_only: bool
) -> ExpansionNetV2Config:
    """Translate the original's names into ours; the configuration itself validates the fields."""
    dropouts = {_DROPOUTS[name]: rate for name, rate in (settings.get("drop_args") or {}).items()}
    try:
        return ExpansionNetV2Config(
            vocab_size=settings["vocab_size"],
            d_model=settings["d_model"],
            encoder_layers=settings["N_enc"],
            decoder_layers=settings["N_dec"],
            num_attention_heads=settings["num_heads"],
            ffn_dim=settings["ff"],
            encoder_expansion_groups=list(settings["num_exp_enc_list"]),
            decoder_expansion_size=settings["num_exp_dec"],
            max_position_embeddings=settings["max_seq_len"],
            features_only=features_only,
            vision_config=None if features_only else _vision_config(settings),
            feature_size=settings["img_feature_dim"],
            pad_token_id=words.special["PAD"],
            bos_token_id=words.special["SOS"],
            eos_token_id=words.special["EOS"],
            unk_token_id=words.special["UNK"],
            decoder_start_token_id=words.special["SOS"],
            **dropouts,
        )
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"{source.path}: {' '.join(str(error).split())}") from error


def _vision_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's configuration in transformers' names."""
    return {
        "model_type": "swin",
        "image_size": settings["swin_img_size"],
        "patch_size": settings["swin_patch_size"],
        "num_channels": settings["swin_in_chans"],
        "embed_dim": settings["swin_embed_dim"],
        "depths": settings["swin_depths"],
        "num_heads": settings["swin_num_heads"],
        "window_size": settings["swin_window_size"],
        "mlp_ratio": settings["swin_mlp_ratio"],
        "qkv_bias": settings["swin_qkv_bias"],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": settings.get("swin_drop_rate", 0.0),
        "attention_probs_dropout_prob": settings.get("swin_attn_drop_rate", 0.0),
        "drop_path_rate": settings.get("swin_drop_path_rate", RELEASED_DROP_PATH),
    }


def read_body_sizes(source: Source) -> Sizes:
    """Read the sizes of encoder and decoder.

    Args:
        source ([`Source`]): the tensors.

    Returns:
        `dict[str, tuple[Any, str]]`: original name -> value, and the tensor that shows it.

    Raises:
        ConversionError: one of those tensors is missing.
    """
    places = {
        "vocab_size": ("vocab_linear.weight", 0),
        "d_model": ("vocab_linear.weight", 1),
        "max_seq_len": ("pos_encoder.weight", 0),
        "ff": ("encoders.0.ff.linear_1.weight", 0),
        "encoder_slots": ("encoders.0.stc_exp.query_exp_vectors.weight", 0),
        "num_exp_dec": ("decoders.0.dyn_exp.query_exp_vectors.weight", 0),
        "img_feature_dim": ("input_linear.weight", 1),
        "final_swin_dim": ("input_linear.weight", 1),
    }
    source.check_places(places.values(), "an ExpansionNet v2 checkpoint")
    sizes: Sizes = {name: (source.shape(tensor)[axis], tensor) for name, (tensor, axis) in places.items()}
    sizes["N_enc"] = (source.count("encoders."), "encoders.*")
    sizes["N_dec"] = (source.count("decoders."), "decoders.*")
    return sizes


def read_swin_sizes(source: Source) -> Sizes:
    """Read the sizes of the backbone; the image size only when a shift mask shows it.

    Args:
        source ([`Source`]): the tensors, in the end-to-end checkpoint's names.

    Returns:
        `dict[str, tuple[Any, str]]`: original name -> value, and the tensor that shows it.

    Raises:
        ConversionError: one of those tensors is missing.
    """
    stages = source.count(SWIN_LAYERS)
    tables = [f"{SWIN_LAYERS}{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(stages)]
    patches, hidden = f"{SWIN_PREFIX}patch_embed.proj.weight", f"{SWIN_LAYERS}0.blocks.0.mlp.fc1.weight"
    source.check_places([(patches, 3), (hidden, 1), *((table, 1) for table in tables)], "a Swin backbone")
    embed_dim, channels, patch, *_ = source.shape(patches)
    window = (round(source.shape(tables[0])[0] ** 0.5) + 1) // 2  # the table has (2w - 1)^2 rows
    depths = [source.count(f"{SWIN_LAYERS}{stage}.blocks.") for stage in range(stages)]
    bias = f"{SWIN_LAYERS}0.blocks.0.attn.qkv.bias"
    sizes: Sizes = {
        "swin_patch_size": (patch, patches),
        "swin_in_chans": (channels, patches),
        "swin_embed_dim": (embed_dim, patches),
        "swin_depths": (depths, f"{SWIN_LAYERS}*.blocks.*"),
        "swin_num_heads": ([source.shape(table)[1] for table in tables], tables[0].replace(".0.", ".*.", 1)),
        "swin_window_size": (window, tables[0]),
        "swin_mlp_ratio": (source.shape(hidden)[0] / embed_dim, hidden),
        "swin_qkv_bias": (bias in source.tensors, bias),
    }
    masks = [f"{SWIN_LAYERS}{i}.blocks.{j}.attn_mask" for i, depth in enumerate(depths) for j in range(depth)]
    mask = next((name for name in masks if name in source.tensors and source.tensors[name].dim() == 3), None)
    if mask is not None:  # a plane per window; the stage has halved the grid of patches `stage` times
        stage = int(mask.removeprefix(SWIN_LAYERS).split(".", 1)[0])
        sizes["swin_img_size"] = (round(source.shape(mask)[0] ** 0.5) * window * patch * 2**stage, mask)
    return sizes


def _agrees(name: str, argument: Any, shown_sizes: Sizes) -> bool:
    value = shown_sizes[name][0]
    if name == "swin_mlp_ratio" and isinstance(argument, int | float):
        embed_dim = shown_sizes["swin_embed_dim"][0]
        return int(argument * embed_dim) == round(value * embed_dim)
    return (list(argument) if isinstance(argument, tuple) else argument) == value


def _check_hidden_settings(settings: Mapping[str, Any], assumed: Mapping[str, Any]) -> list[str]:
    """Check that the two settings that tensors do not show at least fit the tensors."""
    problems = []
    heads, width = settings["num_heads"], settings["d_model"]
    groups, slots = settings["num_exp_enc_list"], settings["encoder_slots"]
    if type(heads) is not int or heads < 1 or width % heads:
        problems.append(
            f"num_heads={show(heads)} does not divide d_model={width}; give the right one in original_config"
        )
    if not isinstance(groups, list | tuple) or not all(type(size) is int and size > 0 for size in groups):
        problems.append(f"num_exp_enc_list={show(groups)} must be a list of positive numbers")
    elif sum(groups) != slots:
        origin = "the released" if "num_exp_enc_list" in assumed else "the original configuration's"
        problems.append(
            f"encoders.0.stc_exp.query_exp_vectors.weight has {slots} slots, but {origin} num_exp_enc_list "
            f"{list(groups)} has {sum(groups)}; give original_config with num_exp_enc_list and num_heads, which the "
            "tensors do not show"
        )
    return problems


def _check_swin(source: Source, settings: Mapping[str, Any]) -> list[str]:
    """Check the backbone as a whole, for clearer messages than the shapes of single tensors give."""
    problems = []
    stages, window = len(settings["swin_depths"]), settings["swin_window_size"]
    width, expected = settings["swin_embed_dim"] * 2 ** (stages - 1), settings["img_feature_dim"]
    if width != expected:
        problems.append(f"the backbone's tokens are {width} wide, but input_linear.weight takes {expected}")
    if f"{SWIN_PREFIX}absolute_pos_embed" in source.tensors:
        problems.append(f"{SWIN_PREFIX}absolute_pos_embed: absolute positions (swin_ape) are not supported")
    if f"{SWIN_PREFIX}patch_embed.norm.weight" not in source.tensors:
        problems.append(f"{SWIN_PREFIX}patch_embed.norm.weight is missing; swin_patch_norm=False is not supported")
    image = settings.get("swin_img_size")
    if image is None:
        return [*problems, "no attn_mask shows the image size; give original_config with swin_img_size"]
    side = image / settings["swin_patch_size"] / 2 ** (stages - 1) if isinstance(image, int) else 0
    # transformers' Swin has the configured window everywhere; the original shrinks it in stages that are smaller
    if side != int(side) or side < window:
        problems.append(
            f"swin_img_size={show(image)} makes the last of {stages} stages {side:g} patches wide; expected a whole "
            f"number not smaller than the window, {window}"
        )
    return problems
