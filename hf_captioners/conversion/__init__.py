"""Conversion of the original projects' checkpoints to folders for `from_pretrained`.

One module per model, each with its key table, and one for pickled document frequencies; they are imported when they are
used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .document_frequency import FrequencyReport
    from .writing import ConversionReport

MODEL_TYPES = (
    "expansionnet_v2",
    "satic",
    "clip_gpt2",
    "dico",
    "scdnet",
    "bottom_up",
    "pac_score",
    "document_frequency",
)

__all__ = ["MODEL_TYPES", "convert"]


def convert(
    model_type: str,
    checkpoint: str | Path,
    out_dir: str | Path,
    *,
    original_config: str | Path | Mapping[str, Any] | None = None,
    vocabulary: str | Path | Sequence[str] | Mapping[str, Any] | None = None,
    special: Mapping[str, int] | None = None,
    backbone: str | Path | None = None,
    features_only: bool = False,
    infos: str | Path | None = None,
    num_heads: int | None = None,
    tokenizer: str | Path | None = None,
    clip: str | Path | None = None,
    normalize_prefix: bool | None = None,
    objects: str | Path | None = None,
    attributes: str | Path | None = None,
    convention: str | None = None,
    stage1: str | Path | None = None,
    ema: bool | None = None,
    crop_positions: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> ConversionReport | FrequencyReport:
    """Convert an original checkpoint into a folder that `from_pretrained` reads.

    Args:
        model_type (`str`):
            `"expansionnet_v2"`, `"satic"`, `"clip_gpt2"` for a ClipCap, `"dico"`, `"scdnet"`, `"bottom_up"` for a
            detector of regions, or `"pac_score"` for the evaluator of PAC-S, which becomes a `CLIPModel`.
            `"document_frequency"` for the pickle behind a CIDEr-D reward, such as `coco-train-words.p`, which becomes a
            file.
        checkpoint (`str` or `Path`):
            The original checkpoint, `.pth` or `.safetensors`; for `dico` its folder, an archive of that, or the weights
            with `config.json` beside them. Never unpickled beyond tensors and plain values.
        out_dir (`str` or `Path`):
            The folder to write; new or empty. It appears complete or not at all. For `document_frequency` the file,
            `*.safetensors`, that `DocumentFrequencies.load` and `hf-captioners evaluate` read.
        original_config (`str`, `Path` or `Mapping`, *optional*):
            The original's settings in its own names, as a JSON file or a dict; sizes are read from the tensors.
        vocabulary (`str`, `Path`, `Sequence[str]` or `Mapping`, *optional*):
            The words: the original's file, a JSON file, or a list whose index is the id. Required by `expansionnet_v2`
            and `scdnet` (`vocabulary.txt`). For `pac_score` the folder of a CLIP tokenizer, to be written beside the
            model.
        special (`Mapping[str, int]`, *optional*):
            Ids of PAD, SOS, EOS and UNK when the vocabulary does not name them so.
        backbone (`str` or `Path`, *optional*):
            The backbone's own checkpoint, to be joined with a features-only one.
        features_only (`bool`, *optional*, defaults to `False`):
            Leave the backbone out.
        infos (`str` or `Path`, *optional*):
            The pickle of options and words that lies beside a checkpoint of `satic`, which requires it.
        num_heads (`int`, *optional*):
            Heads of the attention for `satic`; neither checkpoint nor `infos` shows them. By default 8, as released.
            For `clip_gpt2` heads of GPT-2, by default its width / 64.
        tokenizer (`str` or `Path`, *optional*):
            For `clip_gpt2`: folder or Hub name of GPT-2's tokenizer, by default `"openai-community/gpt2"`. For `dico`
            of CLIP's, by default `"openai/clip-vit-large-patch14"`.
        clip (`str` or `Path`, *optional*):
            For `clip_gpt2`: folder or Hub name of the CLIP whose embeddings the checkpoint was trained on, to make a
            model that reads pictures and not only cached embeddings.
        normalize_prefix (`bool`, *optional*):
            For `clip_gpt2`: whether it was trained on embeddings of length 1. By default not.
        objects (`str` or `Path`, *optional*), attributes (`str` or `Path`, *optional*), convention (`str`, *optional*):
            For `bottom_up`, see [`~hf_captioners.conversion.bottom_up.convert`].
        stage1 (`str` or `Path`, *optional*):
            For `scdnet`: the checkpoint of the first stage, with which that of a second stage becomes a cascade.
        ema (`bool`, *optional*):
            For `scdnet`: whether to take the moving average of the weights. By default it is taken where there is one.
        crop_positions (`bool`, *optional*, defaults to `False`):
            For `scdnet`: drop the positions that no caption reaches.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier conversion in `out_dir`.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with `tokenizer`, `clip` or `vocabulary` may run. That of the checkpoint never runs.

    Returns:
        [`~hf_captioners.conversion.writing.ConversionReport`]: what was used, dropped and assumed; for
            `document_frequency` a [`~hf_captioners.conversion.document_frequency.FrequencyReport`].

    Raises:
        ValueError: an unknown `model_type`; an option that has no use with it; a source that is unreadable, incomplete
            or contradictory, by name.
        FileNotFoundError, FileExistsError: a source does not exist; `out_dir` may not be written.

    Example:

    ```python
    >>> from hf_captioners.conversion import convert
    >>> convert("expansionnet", "rf_model.pth", "expansionnet-v2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: model_type='expansionnet' is not known; expected one of expansionnet_v2, satic, ...

    ```
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type={model_type!r} is not known; expected one of {', '.join(MODEL_TYPES)}")
    options = {
        "original_config": original_config,
        "vocabulary": vocabulary,
        "special": special,
        "backbone": backbone,
        "features_only": features_only or None,
        "infos": infos,
        "num_heads": num_heads,
        "tokenizer": tokenizer,
        "clip": clip,
        "normalize_prefix": normalize_prefix,
        "objects": objects,
        "attributes": attributes,
        "convention": convention,
        "stage1": stage1,
        "ema": ema,
        "crop_positions": crop_positions or None,
        "trust_remote_code": trust_remote_code or None,
    }
    used_options = {name: value for name, value in options.items() if value is not None}
    module = import_module(f".{model_type}", __name__)
    unused = sorted(set(used_options) - set(signature(module.convert).parameters))
    if unused:
        raise ValueError(f"{unused[0]}={used_options[unused[0]]!r} has no use with {model_type}; leave it out")
    return module.convert(checkpoint, out_dir, overwrite=overwrite, **used_options)
