"""The prompt of a captioner, which is saved with it: in its configuration, or beside adapters, which have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..modeling.captioner_hub import at_once
from . import family_class
from .model_parts import without_adapters

PROMPT_FILE = "captioning_prompt.txt"
"""File beside adapters with the prompt that they were taught with."""
MAX_PROMPT_BYTES = 100_000
_ABSENT = ("missing_entries", "connection_errors", "gated_repo")  # transformers raises of these, unless told not to


def ask(model: Any, prompt: str | None) -> None:
    """Let a captioner be asked a prompt, which is saved with its configuration.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the captioner.
        prompt (`str`, *optional*): by default that which it has, or its family's.

    Raises:
        ValueError: a captioner that is asked nothing, or something else.
    """
    if prompt is None:
        return
    base = without_adapters(model)
    family_class(base).check_prompt(base, prompt)
    config: Any = base.config  # whose fields are its class's, but which saves what else it is given
    config.captioning_prompt = prompt


def save_prompt(model: Any, folder: Path) -> None:
    """Write the prompt of a captioner with adapters beside these, if it was given one."""
    prompt = vars(without_adapters(model).config).get("captioning_prompt")
    if prompt is not None and without_adapters(model) is not model:
        (folder / PROMPT_FILE).write_bytes(prompt.encode("utf-8"))


def prompt_of_adapters(source: Any) -> str | None:
    """The prompt that adapters were taught with.

    Args:
        source (`str` or `os.PathLike`): their folder or Hub name.

    Returns:
        `str` or `None`: `None` where there is no such file.

    Raises:
        ValueError: the file is no text of reasonable size.
    """
    options = dict.fromkeys((f"_raise_exceptions_for_{what}" for what in _ABSENT), False)
    with at_once(source):
        found = cached_file(source, PROMPT_FILE, **options)
    if found is None:
        return None
    size = Path(found).stat().st_size
    if size > MAX_PROMPT_BYTES:
        raise ValueError(f"{found}: a prompt of {size} bytes; the limit is {MAX_PROMPT_BYTES}")
    try:
        return Path(found).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{found}: the prompt of the adapters is no UTF-8 text: {error}") from error
