"""Conversion of the original projects' checkpoints to folders for `from_pretrained`.

One module per source, with its key table, its function `convert`, and the declaration of that function's options
(`COMMAND`), of which a command line makes a sub-command. They are imported when they are used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .command import Command
    from .writing import ConversionReport, FrequencyReport

SOURCES = {
    "expansionnet_v2": "ExpansionNet v2, end to end or on cached features",
    "satic": "SATIC or its autoregressive teacher, with its infos.pkl",
    "clip_gpt2": "a ClipCap, with either mapper",
    "dico": "DiCO's captioner: its folder, or an archive of it",
    "scdnet": "SCD-Net: a stage, or both as a cascade",
    "bottom_up": "the bottom-up detector of regions, in four projects' layouts",
    "pac_score": "the evaluator of PAC-S, which becomes a CLIPModel",
    "document_frequency": "the pickled document frequencies of a CIDEr-D reward",
}
"""The sources, each the name of its module, in a few words."""

__all__ = ["SOURCES", "convert"]


def convert(
    name: str, checkpoint: str | Path, out_dir: str | Path, *, overwrite: bool = False, **options: Any
) -> ConversionReport | FrequencyReport:
    """Convert an original checkpoint into a folder that `from_pretrained` reads.

    Args:
        name (`str`):
            The source, one of `SOURCES`. `hf_captioners.conversion.<name>.convert` is the function for it, with types;
            its options are documented there.
        checkpoint (`str` or `Path`):
            The original checkpoint. Never unpickled beyond tensors and plain values.
        out_dir (`str` or `Path`):
            The folder to write; new or empty. It appears complete or not at all, with weights in float32. For
            `document_frequency` the file, `*.safetensors`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Replace an earlier conversion in `out_dir`.
        options:
            Of the source. `None` is the same as leaving an option out.

    Returns:
        [`~hf_captioners.conversion.writing.ConversionReport`]: what was used, dropped and assumed; for
            `document_frequency` a [`~hf_captioners.conversion.writing.FrequencyReport`].

    Raises:
        ValueError: an unknown source.
        CheckpointError, ConversionError: (both `ValueError`) an option that the source does not have or that is
            missing; something in the sources is unreadable, missing, extra, misshapen or contradictory. All such
            problems are named together, and nothing is written.
        FileNotFoundError, FileExistsError: a source does not exist; `out_dir` may not be written.
        OSError: the disk is full, or the like; with the name of `out_dir`.

    Example:

    ```python
    >>> from hf_captioners.conversion import convert
    >>> convert("expansionnet", "rf_model.pth", "expansionnet-v2")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: name='expansionnet' is not known; expected one of expansionnet_v2, satic, ...

    ```
    """
    return find_command(name).convert_with(checkpoint, out_dir, options, overwrite)


def find_command(name: str) -> Command:
    """Import the module of a source.

    Args:
        name (`str`): one of `SOURCES`.

    Returns:
        [`~hf_captioners.conversion.command.Command`]: its function and its options.

    Raises:
        ValueError: there is no such source.
    """
    if name not in SOURCES:
        raise ValueError(f"{name=} is not known; expected one of {', '.join(SOURCES)}")
    command: Command = import_module(f".{name}", __name__).COMMAND
    return command
