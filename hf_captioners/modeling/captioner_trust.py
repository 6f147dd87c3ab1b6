"""Python code that comes with a checkpoint: it runs if the user said so, and nobody is asked.

transformers asks on the terminal whether to run the code of a folder, unless every loader is given `trust_remote_code`,
and takes the answer from whatever stands in stdin, be it a list of file names. Here the default is no, and a refusal is
one line that names the folder and the option.
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    dynamic_module_utils,
)
from transformers.utils import find_adapter_config_file

from .captioner_adapters import AdapterError, absent_base, base_of
from .captioner_hub import at_once
from .tokenization_limits import check_tokenizer

MAX_SETTINGS_BYTES = 64 * 2**20
_SETTINGS = (
    *("config.json", "generation_config.json", "adapter_config.json"),
    *("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"),
)
_REFUSED = "trust_remote_code=True"  # stands in each refusal of transformers
_ONLY_IF = f"which runs only with --trust_remote_code (in Python {_REFUSED}); read it before you allow it"


class RemoteCodeError(ValueError):
    """A checkpoint that brings code, without the user's word that it may run."""


@contextmanager
def foreign_code(source: Any, allowed: bool) -> Iterator[None]:
    """Load from `source` without a question on the terminal, also where a loader forgets its `trust_remote_code`.

    Args:
        source: folder or Hub name that is loaded from; an object that is loaded already passes.
        allowed (`bool`): whether its code may run. The loaders inside get the same as `trust_remote_code`.

    Raises:
        RemoteCodeError: it has code, and that may not run.
    """
    patience = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # an error at once where transformers would ask
    try:
        if isinstance(source, (str, os.PathLike)):
            check_settings(source)
            if not allowed:
                with at_once(source):
                    _refuse_named_modules(source)
        with at_once(source):
            yield
    except RemoteCodeError:
        raise
    except (ValueError, OSError) as error:
        if allowed or _REFUSED not in str(error):
            raise
        raise RemoteCodeError(_refusal(source, "brings Python code of its own")) from error
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = patience


def check_settings(folder: str | os.PathLike[str]) -> None:
    """Check that the settings in a folder are files of reasonable size with a JSON object each.

    Args:
        folder (`str` or `os.PathLike`): of a model; what is no folder passes.

    Raises:
        ValueError: naming the file and what is in it.
    """
    for path in (Path(folder, name) for name in _SETTINGS):
        if not path.exists():
            continue
        if not path.is_file():
            raise ValueError(f"{path}: expected a JSON file, found something that is not a regular file")
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise ValueError(f"{path}: {path.stat().st_size} bytes; the limit is {MAX_SETTINGS_BYTES}")
        try:
            settings = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"{path}: expected a JSON object, found {reprlib.repr(settings)}")


def load_pretrained(
    loader: Any, source: str | os.PathLike[str] | None, trust_remote_code: bool = False, **options: Any
) -> Any:
    """`loader.from_pretrained(source, …)`, in which foreign code runs only if `trust_remote_code` allows it.

    A folder of adapters is loaded as the model that they belong to (`captioner_adapters`), with the adapters in it.

    Args:
        loader (`type`): a class with `from_pretrained`, such as `AutoProcessor`.
        source (`str` or `os.PathLike`): folder or Hub name.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.
        options: passed to `from_pretrained`.

    Returns:
        What `from_pretrained` returns.

    Raises:
        RemoteCodeError: it has code, and that may not run.
        AdapterError: adapters whose model is not there.
        ValueError: the rules of its tokenizer can explode (`tokenization_limits`).

    Example:

    ```python
    >>> from transformers import AutoProcessor
    >>> from hf_captioners.modeling.captioner_trust import load_pretrained
    >>> load_pretrained(AutoProcessor, "captioner")  # doctest: +SKIP

    ```
    """
    with foreign_code(source, trust_remote_code):
        if loader in (AutoTokenizer, AutoProcessor) and source is not None:
            check_tokenizer(os.fspath(source), **options)
        base = base_of(source) if loader in (AutoModel, AutoModelForImageTextToText) else None
        if base is None:
            return loader.from_pretrained(source, trust_remote_code=trust_remote_code, **options)
        try:
            model = load_pretrained(loader, base, trust_remote_code, **options)
        except OSError as error:
            raise AdapterError(absent_base(str(source), base)) from error
        model.load_adapter(os.fspath(source))  # type: ignore[arg-type]
        return model


def _refusal(source: Any, reason: str) -> str:
    return f"{source}: {reason}, {_ONLY_IF}"


def _refuse_named_modules(source: str | os.PathLike[str]) -> None:
    """Refuse settings that name code elsewhere: attention kernels of the Hub, and modules that peft would import."""
    try:
        settings = PreTrainedConfig.get_config_dict(source)[0]
    except (OSError, ValueError):  # no model: a tokenizer, or adapters; what is wrong with it the loader will say
        settings = {}
    refuse_kernels(settings, f"{source}: config.json")
    adapters = find_adapter_config_file(str(source)) if Path(source).is_dir() else None
    if adapters is None:
        return
    try:
        named = json.loads(Path(adapters).read_text("utf-8"))
    except ValueError:
        return
    if isinstance(named, dict) and named.get("megatron_config"):
        raise RemoteCodeError(_refusal(source, f"adapter_config.json names a module, {named.get('megatron_core')!r}"))


def refuse_kernels(settings: Any, place: str) -> None:
    """Refuse settings that name a repository of the Hub as the code of their attention or experts.

    Args:
        settings (`dict`): fields of a configuration.
        place (`str`): where they stand, the beginning of the message.

    Raises:
        RemoteCodeError: naming the repository.
    """
    for name in _kernels(settings):
        raise RemoteCodeError(f"{place} names code of the Hub, {name!r}, {_ONLY_IF}")


def _kernels(settings: Any) -> Iterator[str]:
    """Implementations of attention or experts that are the name of a repository, at any depth."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            if name.lstrip("_").split("_implementation")[0] in ("attn", "experts"):
                yield from (name for name in _texts(value) if "/" in name)
            yield from _kernels(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
