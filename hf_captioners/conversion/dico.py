"""Conversion of the authors' captioner of DiCO (arXiv 2408.14547) to a `save_pretrained` folder.

Source: a folder of transformers 4.20 with `config.json` and `pytorch_model.bin`, an archive of one, or the state dict
(also under `state_dict`) with its `config.json` beside it. All sizes are in the configuration and must agree with the
tensors. Our model keeps the original's parameter names below the prefixes of `PREFIXES`. Unused tensors are dropped
by name (`DEAD`): BERT's word embedding and pooler, and buffers that are computed now. No other file is opened; a
Trainer's `training_args.bin` would run code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, CLIPImageProcessorPil

from hf_captioners.modeling.configuration_dico import DicoCaptionerConfig
from hf_captioners.modeling.modeling_dico import DicoForImageCaptioning
from hf_captioners.modeling.processing_dico import DicoProcessor

from ..modeling.captioner_trust import load_pretrained
from .command import TRUST, Command
from .dico_files import CONFIG, opened_files
from .pickle_limits import show
from .safe_load import load_checkpoint
from .source import Source
from .writing import ConversionError, ConversionReport, check_out_dir, raise_problems, write_folder

logger = logging.getLogger(__name__)

MODEL_TYPE = "dico"
RELEASED_TOKENIZER = "openai/clip-vit-large-patch14"
RELEASED_VOCABULARY = 49409  # CLIP's tokens and one for padding

# Prefixes of names: ours, the original's
PREFIXES = (
    ("backbone.", "encoder.vision_encoder."),
    ("vis_enc_to_enc_proj.", "encoder.vis_enc_to_enc_proj."),
    ("encoder.", "encoder.encoder."),
    ("decoder.", "decoder."),
)
HEAD, WORDS = "decoder.lm_head.weight", "decoder.transformer.wte.weight"
DEAD = re.compile(
    r"encoder\.encoder\.(embeddings\.word_embeddings\.weight|pooler\.dense\.(weight|bias))"
    r"|encoder\.(vision_encoder|encoder)\.embeddings\.(position_ids|token_type_ids)"
    r"|decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(bias|masked_bias)"
)

# The parts of the configuration and their model types
TOP, VISUAL, VISION, BERT, GPT2 = "", "encoder", "encoder.vision_encoder", "encoder.encoder", "decoder"
TYPES = {
    TOP: "vision-encoder-decoder",
    VISUAL: "vision-encoder-encoder",
    VISION: "clip_vision_model",
    BERT: "bert",
    GPT2: "gpt2",
}
# Our settings and where the original has them
PLACES = {
    "vocab_size": (GPT2, "vocab_size"),
    "d_model": (GPT2, "n_embd"),
    "encoder_layers": (BERT, "num_hidden_layers"),
    "decoder_layers": (GPT2, "n_layer"),
    "encoder_attention_heads": (BERT, "num_attention_heads"),
    "decoder_attention_heads": (GPT2, "n_head"),
    "encoder_ffn_dim": (BERT, "intermediate_size"),
    "encoder_activation": (BERT, "hidden_act"),
    "decoder_activation": (GPT2, "activation_function"),
    "encoder_layer_norm_eps": (BERT, "layer_norm_eps"),
    "decoder_layer_norm_eps": (GPT2, "layer_norm_epsilon"),
    "max_image_tokens": (BERT, "max_position_embeddings"),
    "max_position_embeddings": (GPT2, "n_positions"),
    "encoder_dropout": (BERT, "hidden_dropout_prob"),
    "encoder_attention_dropout": (BERT, "attention_probs_dropout_prob"),
    "decoder_input_dropout": (GPT2, "embd_pdrop"),
    "decoder_dropout": (GPT2, "resid_pdrop"),
    "decoder_attention_dropout": (GPT2, "attn_pdrop"),
    "pad_token_id": (TOP, "pad_token_id"),
    "bos_token_id": (TOP, "bos_token_id"),
    "eos_token_id": (TOP, "eos_token_id"),
    "decoder_start_token_id": (TOP, "decoder_start_token_id"),
}
VISION_SIZES = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"]
VISION_SIZES += ["patch_size", "hidden_act", "layer_norm_eps"]
VISION_OPTIONS = ("num_channels", "attention_dropout", "projection_dim", "initializer_range", "initializer_factor")
# Options of the original for which this model computes only these values
FIXED: dict[tuple[str, str], Any] = {
    (BERT, "position_embedding_type"): "absolute",
    (BERT, "is_decoder"): False,
    (BERT, "type_vocab_size"): 2,
    (GPT2, "add_cross_attention"): True,
    (GPT2, "scale_attn_weights"): True,
    (GPT2, "scale_attn_by_inverse_layer_idx"): False,
}


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    original_config: str | Path | Mapping[str, Any] | None = None,
    tokenizer: str | Path | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> ConversionReport:
    """Convert a captioner into a folder for `from_pretrained`: model, generation defaults and processor.

    Args:
        checkpoint (`str` or `Path`):
            The original's folder, or one that holds it; a `.zip` or `.tar` (also `.tar.gz`) of it; or its
            `pytorch_model.bin` with `config.json` beside it.
        out_dir (`str` or `Path`), overwrite (`bool`, *optional*, defaults to `False`):
            As in [`hf_captioners.conversion.convert`], which names the result and the errors too.
        original_config (`str`, `Path` or `Mapping`, *optional*):
            The original's configuration, when it is not beside the weights.
        tokenizer (`str` or `Path`, *optional*, defaults to `"openai/clip-vit-large-patch14"`):
            Folder or Hub name of CLIP's tokenizer, which gets the token for padding. It must fit the vocabulary. For a
            vocabulary of another size than the released one there is no default: the folder is then written without
            tokenizer.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with the tokenizer may run.
    """
    check_out_dir(out_dir, MODEL_TYPE, overwrite)
    with opened_files(checkpoint, original_config) as (weights, content):
        config = build_config(content, f"{checkpoint}: {CONFIG}" if original_config is None else "original_config")
        image_processor = _build_image_processor(config)
        if tokenizer is None and config.vocab_size == RELEASED_VOCABULARY:
            tokenizer = RELEASED_TOKENIZER
        processor = (
            None if tokenizer is None else _build_processor(image_processor, tokenizer, config, trust_remote_code)
        )
        source = read_source(weights)
        model = fill_model(source, config)
        folder = write_folder(out_dir, MODEL_TYPE, overwrite, model, processor or image_processor, source=checkpoint)
    if processor is None:
        logger.warning(
            "%s: no tokenizer was written: the vocabulary of %d tokens is not that of CLIP and one for padding, so "
            "there is no default; give one as tokenizer",
            out_dir,
            config.vocab_size,
        )
    return ConversionReport(
        out_dir=folder,
        used=source.used,
        dropped=source.dropped,
        config=config,
        special_tokens={} if processor is None else _special_tokens(config, processor.tokenizer),
    )


COMMAND = Command(
    MODEL_TYPE,
    convert,
    checkpoint="the original's folder, an archive of it (.zip, .tar, .tar.gz), or its weights beside config.json",
    example="dico-ViTL14.zip --tokenizer openai/clip-vit-large-patch14 --out dico",
    options={
        "original_config": {
            "type": Path,
            "metavar": "FILE.json",
            "help": "the original's config.json, where it is not beside the weights",
        },
        "tokenizer": {
            "metavar": "DIR",
            "help": f"folder or Hub name of CLIP's tokenizer (default: {RELEASED_TOKENIZER})",
        },
        "trust_remote_code": TRUST,
    },
)


def build_config(content: Any, where: str = CONFIG) -> DicoCaptionerConfig:
    """Make the configuration from the original's.

    Args:
        content (`Any`): the content of its `config.json`.
        where (`str`): its name, for messages.

    Returns:
        [`DicoCaptionerConfig`]

    Raises:
        ConversionError: it is of another model, or settings are missing, contradictory or of a kind that this model
            does not compute.
    """
    parts = {place: _part(content, place) for place in TYPES}
    types = {place: part.get("model_type") for place, part in parts.items()}
    raise_problems(
        f"{where}: not of DiCO's captioner",
        [
            f"{_field(place, 'model_type')} is {show(types[place])}, expected {expected!r}"
            for place, expected in TYPES.items()
            if types[place] != expected
        ],
    )
    required = [*PLACES.values(), *((VISION, name) for name in VISION_SIZES)]
    problems = [f"{_field(*place)} is missing" for place in required if parts[place[0]].get(place[1]) is None]
    problems += [
        f"{_field(*place)} is {show(parts[place[0]][place[1]])}; this model has {value!r}"
        for place, value in FIXED.items()
        if parts[place[0]].get(place[1], value) != value
    ]
    if parts[BERT].get("hidden_size") != parts[GPT2].get("n_embd"):
        problems.append(
            f"{_field(BERT, 'hidden_size')}={show(parts[BERT].get('hidden_size'))} and "
            f"{_field(GPT2, 'n_embd')}={show(parts[GPT2].get('n_embd'))} must be equal"
        )
    raise_problems(where, problems)
    settings = {setting: parts[place][name] for setting, (place, name) in PLACES.items()}
    inner = parts[GPT2].get("n_inner")
    vision = {name: parts[VISION][name] for name in (*VISION_SIZES, *VISION_OPTIONS) if name in parts[VISION]}
    try:
        settings["decoder_ffn_dim"] = 4 * settings["d_model"] if inner is None else inner
        return DicoCaptionerConfig(**settings, vision_config={"model_type": TYPES[VISION], **vision})
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"{where}: {' '.join(str(error).split())}") from error


def _part(content: Any, place: str) -> Mapping[str, Any]:
    for name in filter(None, place.split(".")):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def _field(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def read_source(weights: Path) -> Source:
    """Open the weights and mark the tensors that are not used.

    Args:
        weights (`Path`): a state dict as `.bin`, `.pth` or `.safetensors`, or in a checkpoint under a usual key.

    Returns:
        [`Source`]
    """
    tensors = load_checkpoint(weights)
    return Source(weights, tensors, [name for name in tensors if DEAD.fullmatch(name)])


def original_name(name: str) -> str:
    """Translate the name of a parameter into the original's, by `PREFIXES`.

    Args:
        name (`str`): as in our `state_dict`.

    Returns:
        `str`

    Example:

    ```python
    >>> from hf_captioners.conversion.dico import original_name
    >>> original_name("encoder.embeddings.LayerNorm.bias"), original_name("backbone.pre_layrnorm.bias")
    ('encoder.encoder.embeddings.LayerNorm.bias', 'encoder.vision_encoder.pre_layrnorm.bias')

    ```
    """
    prefix, original_prefix = next(pair for pair in PREFIXES if name.startswith(pair[0]))
    return original_prefix + name.removeprefix(prefix)


def fill_model(source: Source, config: DicoCaptionerConfig) -> DicoForImageCaptioning:
    """Make the model and give it the original's weights.

    Names and shapes of all tensors are compared with a model without storage before the first weight is read.

    Args:
        source ([`Source`]): the tensors.
        config ([`DicoCaptionerConfig`]): the sizes.

    Returns:
        [`DicoForImageCaptioning`]: in float32, for saving only: buffers that are not saved have no storage.

    Raises:
        ConversionError: tensors are missing, extra, misshapen or not of floating point.
    """
    _check_depths(source, config)
    with torch.device("meta"):
        model = DicoForImageCaptioning(config)
    targets = {original_name(name): {name: tensor.shape} for name, tensor in model.state_dict().items()}
    if HEAD not in source.tensors:  # .safetensors files have tied tensors once
        del targets[HEAD]
    source.check(targets)
    if HEAD in source.tensors and not torch.equal(source.tensors[HEAD], source.tensors[WORDS]):
        logger.warning(
            "%s: %s and %s differ, although the original ties them; the embedding %s is used for both",
            source.path,
            HEAD,
            WORDS,
            WORDS,
        )
    state = source.state_dict(targets)
    state[HEAD] = state[WORDS]  # both have the same names in the original
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def _check_depths(source: Source, config: DicoCaptionerConfig) -> None:
    """Compare numbers of layers, before a model with that many is made."""
    vision: Any = config.vision_config
    depths = {
        "encoder.vision_encoder.encoder.layers.": vision.num_hidden_layers,
        "encoder.encoder.encoder.layer.": config.encoder_layers,
        "decoder.transformer.h.": config.decoder_layers,
    }
    raise_problems(
        str(source.path),
        [
            f"has {source.count(prefix)} layers {prefix}*, but {CONFIG} says {depth}"
            for prefix, depth in depths.items()
            if source.count(prefix) != depth
        ],
    )


def _build_image_processor(config: DicoCaptionerConfig) -> CLIPImageProcessorPil:
    vision: Any = config.vision_config
    side = vision.image_size
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _build_processor(
    image_processor: Any, tokenizer: str | Path, config: DicoCaptionerConfig, trust: bool
) -> DicoProcessor:
    try:
        processor = DicoProcessor(image_processor, load_pretrained(AutoTokenizer, tokenizer, trust))
    except (OSError, ValueError) as error:
        raise ConversionError(f"tokenizer={str(tokenizer)!r}: no tokenizer could be loaded: {error}") from error
    words = processor.tokenizer
    ids = (len(words), words.bos_token_id, words.eos_token_id, words.pad_token_id)
    expected = (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id)
    if ids != expected:
        raise ConversionError(
            f"tokenizer={str(tokenizer)!r} has (with the token for padding) {ids[0]} tokens with start, end and "
            f"padding {ids[1:]}, but the checkpoint {expected[0]} with {expected[1:]}"
        )
    return processor


def _special_tokens(config: DicoCaptionerConfig, tokenizer: Any) -> dict[str, tuple[int, str]]:
    ids = {"PAD": config.pad_token_id, "SOS": config.bos_token_id, "EOS": config.eos_token_id}
    return {name: (index, tokenizer.convert_ids_to_tokens(index)) for name, index in ids.items() if index is not None}
