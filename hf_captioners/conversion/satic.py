"""Conversion of the authors' checkpoints of SATIC (arXiv 2106.09436) to a `save_pretrained` folder.

Sources: `model.pth` or `model-best.pth`, the state dict of a SATIC or of its autoregressive teacher, and the
`infos_<id>.pkl` beside it. The model keeps the authors' parameter names, so that no table is needed. Sizes come from
the shapes of the tensors and must agree with the options in the infos file. The number of heads is in neither of them.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from hf_captioners.modeling.configuration_satic import SaticConfig
from hf_captioners.modeling.image_processing_captioner import CaptionerImageProcessor
from hf_captioners.modeling.modeling_satic import SaticForImageCaptioning, sinusoids
from hf_captioners.modeling.processing_captioner import SaticProcessor

from .command import Command
from .pickle_limits import show
from .safe_load import load_checkpoint
from .satic_infos import Infos, build_tokenizer, read_infos
from .source import Source
from .writing import ConversionError, ConversionReport, check_out_dir, raise_problems, write_folder

logger = logging.getLogger(__name__)

MODEL_TYPE = "satic"
RELEASED_HEADS = 8
POSITIONS = "model.tgt_embed.1.pe"  # computed from a formula
COUNTERS = ".num_batches_tracked"  # of batch normalisations, without influence on any number
BOX_WIDTH = 5  # numbers that option use_box appends to the features
_SAME_POSITIONS = 1e-3  # float32 sinusoids of up to 5000 radians differ by that much from machine to machine


def convert(
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    infos: str | Path,
    num_heads: int | None = None,
    overwrite: bool = False,
) -> ConversionReport:
    """Convert a checkpoint into a folder for `from_pretrained`: model, generation defaults and processor.

    The model trains on with `training_mask="original"`, as it was trained.

    Args:
        checkpoint (`str` or `Path`):
            A SATIC or its autoregressive teacher, which becomes a SATIC of K = 1, as `.pth` or `.safetensors`.
        out_dir (`str` or `Path`), overwrite (`bool`, *optional*, defaults to `False`):
            As in [`hf_captioners.conversion.convert`], which names the result and the errors too.
        infos (`str` or `Path`):
            The `infos_<id>.pkl` beside the checkpoint, with the options and the words.
        num_heads (`int`, *optional*, defaults to 8):
            Heads of every attention.
    """
    check_out_dir(out_dir, MODEL_TYPE, overwrite)
    about = read_infos(infos)
    source = read_source(checkpoint)
    config = build_config(source, about, RELEASED_HEADS if num_heads is None else num_heads)
    model = fill_model(source, config)
    longest = about.number("max_length", 0) or about.number("seq_length")
    model.generation_config.max_length = 1 + longest
    tokenizer = build_tokenizer(about.words, model_max_length=config.label_length + 2)
    if num_heads is None:
        logger.warning(
            "%s: the number of heads is in none of the files, %d were assumed, as released; another number captions "
            "badly without an error, so give num_heads if yours was trained with it",
            checkpoint,
            RELEASED_HEADS,
        )
    processor = SaticProcessor(CaptionerImageProcessor(), tokenizer)
    folder = write_folder(out_dir, MODEL_TYPE, overwrite, model, processor, source=checkpoint)
    special = dict.fromkeys(("PAD", "SOS", "EOS"), (0, about.words[0]))
    if about.unknown is not None:
        special["UNK"] = (about.unknown, about.words[about.unknown])
    return ConversionReport(
        out_dir=folder,
        used=source.used,
        dropped=source.dropped,
        config=config,
        special_tokens=special,
        assumed={"num_heads": RELEASED_HEADS} if num_heads is None else {},
    )


COMMAND = Command(
    MODEL_TYPE,
    convert,
    checkpoint="a SATIC or its autoregressive teacher: .pth or .safetensors",
    example="model.pth --infos infos.pkl --out satic",
    options={
        "infos": {
            "required": True,
            "type": Path,
            "metavar": "FILE.pkl",
            "help": "options, words and size of the groups: the infos_<id>.pkl beside the checkpoint",
        },
        "num_heads": {
            "type": int,
            "metavar": "N",
            "help": f"heads of every attention; no file shows them (default: {RELEASED_HEADS}, as released)",
        },
    },
)


def read_source(checkpoint: str | Path) -> Source:
    """Open the checkpoint and mark the tensors that are not used.

    Args:
        checkpoint: as in [`convert`].

    Returns:
        [`Source`]: without the table of positions and the counters of batch normalisations.

    Raises:
        ConversionError: the table of positions is not the one that the model computes.
    """
    tensors = load_checkpoint(checkpoint)
    dropped = [name for name in tensors if name == POSITIONS or name.endswith(COUNTERS)]
    source = Source(Path(checkpoint), tensors, dropped)
    if POSITIONS in tensors:
        table = tensors[POSITIONS].float()
        same = table.dim() == 3 and table.shape[0] == 1 and table.shape[2] % 2 == 0
        if not same or not torch.allclose(table[0], sinusoids(*table.shape[1:]), atol=_SAME_POSITIONS, rtol=0):
            raise ConversionError(f"{checkpoint}: {POSITIONS} is not the table of sinusoids that this model computes")
    return source


def build_config(source: Source, infos: Infos, num_heads: int) -> SaticConfig:
    """Make the configuration from the shapes of the tensors and the options.

    Args:
        source ([`Source`]): the tensors.
        infos ([`Infos`]): the options and words.
        num_heads (`int`): heads of every attention.

    Returns:
        [`SaticConfig`]

    Raises:
        ConversionError: an option contradicts a tensor; the number of words is not the model's.
    """
    sizes = _read_sizes(source)
    options = infos.options
    boxes = BOX_WIDTH if options.get("use_box") else 0
    expected_sizes = {**sizes, "att_feat_size": sizes["att_feat_size"] - boxes}
    problems = [
        f"{name}: {infos.path} says {show(options[name])}, but the tensors say {value!r}"
        for name, value in expected_sizes.items()
        if name in options and options[name] != value
    ]
    if len(infos.words) - 1 != sizes["vocab_size"]:
        problems.append(
            f"{infos.path} has {len(infos.words) - 1} words, but the tensors {sizes['vocab_size']} and an end"
        )
    raise_problems(str(source.path), problems)
    label_length = infos.number("seq_length")
    try:
        return SaticConfig(
            vocab_size=sizes["vocab_size"] + 1,
            group_size=infos.group_size,
            d_model=sizes["input_encoding_size"],
            encoder_layers=source.count("model.encoder.layers."),
            decoder_layers=source.count("model.decoder.layers."),
            num_attention_heads=num_heads,
            ffn_dim=sizes["rnn_size"],
            max_position_embeddings=max(64, label_length + 2, infos.number("max_length", 0) + 1),
            feature_batch_norm=sizes["use_bn"],
            feature_dropout=options.get("drop_prob_lm", 0.5),
            label_smoothing=options.get("label_smoothing", 0.0),
            training_mask="original",
            label_length=label_length,
            feature_size=sizes["att_feat_size"],
            unk_token_id=infos.unknown,
        )
    except (StrictDataclassError, ValueError) as error:
        raise ConversionError(f"{source.path}: {' '.join(str(error).split())}") from error


def _read_sizes(source: Source) -> dict[str, Any]:
    """Sizes that tensors show, under the names of the options."""
    use_bn = 0 if "att_embed.0.running_mean" not in source.tensors else 1 + ("att_embed.4.weight" in source.tensors)
    places = {
        "vocab_size": ("model.generator.proj.weight", 0),
        "input_encoding_size": ("model.generator.proj.weight", 1),
        "rnn_size": ("model.encoder.layers.0.feed_forward.w_1.weight", 0),
        "att_feat_size": (f"att_embed.{min(use_bn, 1)}.weight", 1),
    }
    source.check_places(places.values(), "a SATIC checkpoint")
    sizes: dict[str, Any] = {name: source.shape(tensor)[axis] for name, (tensor, axis) in places.items()}
    layers = source.count("model.encoder.layers.")
    return {**sizes, "vocab_size": sizes["vocab_size"] - 1, "num_layers": layers, "use_bn": use_bn}


def fill_model(source: Source, config: SaticConfig) -> SaticForImageCaptioning:
    """Make the model and give it the original's weights.

    Names and shapes of all tensors are compared with a model without storage before the first weight is read.

    Args:
        source ([`Source`]): the tensors.
        config ([`SaticConfig`]): the sizes.

    Returns:
        [`SaticForImageCaptioning`]: in float32, for saving only: buffers that are not saved have no storage.

    Raises:
        ConversionError: tensors are missing, extra, misshapen or not of floating point.
    """
    with torch.device("meta"):
        model = SaticForImageCaptioning(config)
    shapes = {name: parameter.shape for name, parameter in model.state_dict().items()}
    targets = {name: {name: shape} for name, shape in shapes.items() if not name.endswith(COUNTERS)}
    source.check(targets)
    counters = {name: torch.zeros((), dtype=torch.long) for name in shapes if name.endswith(COUNTERS)}
    model.load_state_dict({**source.state_dict(targets), **counters}, assign=True)
    return model
