"""From the original projects' checkpoints to folders for `from_pretrained`.

One module per model, each with its key table; they are imported when they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .writing import ConversionReport

MODEL_TYPES = ("expansionnet_v2",)

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
    overwrite: bool = False,
) -> ConversionReport:
    """
    Converts an original checkpoint into a folder that `from_pretrained` reads.

    Args:
        model_type (`str`):
            `"expansionnet_v2"`.
        checkpoint (`str` or `Path`):
            The original checkpoint, `.pth` or `.safetensors`. Never unpickled beyond tensors and plain values.
        out_dir (`str` or `Path`):
            The folder to write; new or empty. It appears complete or not at all.
        original_config (`str`, `Path` or `Mapping`, *optional*):
            The original's settings in its own names, as a JSON file or a dict; sizes are read from the tensors.
        vocabulary (`str`, `Path`, `Sequence[str]` or `Mapping`, *optional*):
            The words: the original's file, a JSON file, or a list whose index is the id. Required by `expansionnet_v2`.
        special (`Mapping[str, int]`, *optional*):
            Ids of PAD, SOS, EOS and UNK when the vocabulary does not name them so.
        backbone (`str` or `Path`, *optional*):
            The backbone's own checkpoint, to be joined with a features-only one.
        features_only (`bool`, *optional*, defaults to `False`):
            Leave the backbone out.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier conversion in `out_dir`.

    Returns:
        [`~hf_captioners.conversion.writing.ConversionReport`]: what was used, dropped and assumed.

    Raises:
        ValueError: an unknown `model_type`; a source that is unreadable, incomplete or contradictory, by name.
        FileNotFoundError, FileExistsError: a source does not exist; `out_dir` may not be written.

    Example:

    ```python
    >>> from hf_captioners.conversion import convert
    >>> convert("expansionnet", "rf_model.pth", "expansionnet-v2")
    Traceback (most recent call last):
        ...
    ValueError: model_type='expansionnet' is not known; expected one of expansionnet_v2

    ```
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"model_type={model_type!r} is not known; expected one of {', '.join(MODEL_TYPES)}")
    module = import_module(f".{model_type}", __name__)
    return module.convert(
        checkpoint,
        out_dir,
        original_config=original_config,
        vocabulary=vocabulary,
        special=special,
        backbone=backbone,
        features_only=features_only,
        overwrite=overwrite,
    )
