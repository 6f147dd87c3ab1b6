"""Folders of adapters (peft), and the captioner that they belong to.

`adapter_config.json` names that captioner by a Hub name or a path. transformers takes a path as it is, from the working
directory; here it may also begin at the adapters, and training puts a captioner that no other folder has beside its
adapters, so that the folder can be moved as a whole.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

BASE_FOLDER = "base"
"""Folder beside adapters with the captioner that they belong to, where training has saved it."""

_HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


def may_be_on_hub(name: str) -> bool:
    """Tell whether a name could be that of a repository of the Hub, and no folder has it."""
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def nor_on_hub(name: str) -> str:
    """Addition to the message about a folder that is not there, where its name could be one of the Hub."""
    return ", nor can it be had from the Hub" if may_be_on_hub(name) else ""


class AdapterError(ValueError):
    """Adapters whose captioner is not there. The message names both."""


def base_of(source: Any) -> str | None:
    """The captioner that a folder of adapters belongs to.

    Args:
        source: anything that a model is loaded from.

    Returns:
        `str` or `None`: a folder, or a name that may be one of the Hub; `None` where `source` is no folder, or is that
        of a whole model.

    Raises:
        AdapterError: `adapter_config.json` cannot be read or names no captioner, or one that is nowhere or is adapters
            itself.

    Example:

    ```python
    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.modeling.captioner_adapters import base_of
    >>> adapters = Path(tempfile.mkdtemp()) / "adapters"
    >>> for folder, settings in (("adapters", {"base_model_name_or_path": "../captioner"}), ("captioner", {})):
    ...     path = adapters.parent / folder / ("config.json" if folder == "captioner" else "adapter_config.json")
    ...     path.parent.mkdir()
    ...     _ = path.write_text(json.dumps(settings))
    >>> Path(base_of(adapters)).resolve().name, base_of(adapters.parent / "captioner")
    ('captioner', None)

    ```
    """
    if not isinstance(source, (str, os.PathLike)) or not Path(source, ADAPTER_CONFIG_NAME).is_file():
        return None
    folder = Path(source)
    if (folder / CONFIG_NAME).is_file():  # adapters in the folder of their model, as transformers reads it
        return None
    named = _named(folder)
    for place in _places(folder, named):
        if (place / ADAPTER_CONFIG_NAME).is_file():
            raise AdapterError(f"{folder}: the adapters belong to {named}, which has adapters itself; merge those.")
        if (place / CONFIG_NAME).is_file():
            return str(place)
    if may_be_on_hub(named):
        return named
    raise AdapterError(absent_base(folder, named))


def absent_base(folder: str | os.PathLike[str], base: str) -> str:
    """The message about adapters whose captioner is not there.

    Args:
        folder (`str` or `os.PathLike`): of the adapters.
        base (`str`): what they belong to.
    """
    return (
        f"{folder}: the adapters belong to {base}: there is no such folder of a captioner, neither from here nor from "
        f"the adapters{nor_on_hub(base)}; set base_model_name_or_path in its {ADAPTER_CONFIG_NAME}."
    )


def _named(folder: Path) -> str:
    """The captioner as `adapter_config.json` names it."""
    path = folder / ADAPTER_CONFIG_NAME
    try:
        named = json.loads(path.read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: has no base_model_name_or_path that could be read: {error!r}") from error
    if not named or not isinstance(named, str):
        raise AdapterError(
            f"{folder}: its {ADAPTER_CONFIG_NAME} has no base_model_name_or_path, but {named!r}: the captioner of the "
            "adapters was never saved. Save it, and name its folder there."
        )
    return named


def _places(folder: Path, named: str) -> list[Path]:
    """Folders that may be meant: first what training has put beside the adapters, or beside their checkpoint."""
    beside = [folder / BASE_FOLDER, folder.parent / BASE_FOLDER] if Path(named).name == BASE_FOLDER else []
    return [*beside, Path(named), folder / named]
