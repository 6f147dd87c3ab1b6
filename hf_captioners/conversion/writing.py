"""The end of every conversion: a report or a list of problems, and a folder that appears whole or not at all."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import bring_back, check_can_be_made, replace_folder, settle, system_errors, working_folder
from ..data.progress import progress_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

SHOWN_PROBLEMS = 10
# Files that `save_pretrained` of a captioner and its processor write; a folder with any other file is never replaced.
_WRITTEN_FILES = {
    "README.md",
    "added_tokens.json",
    "card_facts.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


class ConversionError(ValueError):
    """A checkpoint, configuration or vocabulary that cannot be converted. Nothing was written."""


@dataclass(frozen=True)
class ConversionReport:
    """The result of a conversion.

    Attributes:
        out_dir (`Path`): the folder that was written.
        used (`list[str]`): names of the original tensors that went into the model.
        dropped (`list[str]`): names of the original tensors that did not (buffers that are computed, a classification
            head, the backbone of a model that was asked for without one). With `used` they are the whole input.
        config (`PreTrainedConfig`): the configuration of the converted model.
        special_tokens (`dict[str, tuple[int, str]]`): for PAD, SOS, EOS and UNK the id and the word of the vocabulary.
        assumed (`dict[str, Any]`): settings in the original's names that neither tensors nor arguments show, with the
            released value that was used. If one of them is wrong the model loads and captions badly.
    """

    out_dir: Path
    used: list[str]
    dropped: list[str]
    config: "PreTrainedConfig"
    special_tokens: dict[str, tuple[int, str]] = field(default_factory=dict)
    assumed: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for people; dropped names that differ in numbers only are one line."""
        groups = Counter(re.sub(r"\d+", "*", name) for name in self.dropped)
        special = " ".join(f"{name}={index} ({word!r})" for name, (index, word) in self.special_tokens.items())
        lines = [f"{len(self.used)} tensors converted, {len(self.dropped)} dropped"]
        lines += [f"  dropped {count} x {name}" for name, count in groups.items()]
        lines += [f"special tokens: {special}"] if special else []
        lines += [f"assumed, as released: {name}={value}" for name, value in self.assumed.items()]
        return lines

    def written(self) -> dict[str, str]:
        """The folder under its name, for programs."""
        return {"out_dir": str(self.out_dir)}


@dataclass(frozen=True)
class FrequencyReport:
    """The result of a conversion of document frequencies.

    Attributes:
        out_path (`Path`): the file that was written, for `DocumentFrequencies.load`.
        ngrams (`int`): how many n-grams occur.
        number_of_images (`int`): the size of the corpus.
        token_ids (`bool`): whether the words are token ids. Such frequencies fit rewards with `token_ids=True` and no
            captions of words.
    """

    out_path: Path
    ngrams: int
    number_of_images: int
    token_ids: bool

    def lines(self) -> list[str]:
        """The report for people."""
        words = "token ids" if self.token_ids else "words"
        return [f"{self.ngrams} n-grams of {words} in the references of {self.number_of_images} images"]

    def written(self) -> dict[str, str]:
        """The file under its name, for programs."""
        return {"out_path": str(self.out_path)}


def raise_problems(title: str, problems: Sequence[str]) -> None:
    """Raise an error with all problems, if there are any.

    Args:
        title (`str`): what was being checked, with the file's name.
        problems (`Sequence[str]`): one line each; the first 10 are shown, and how many there are.

    Raises:
        ConversionError: `problems` is not empty.

    Example:

    ```python
    >>> from hf_captioners.conversion.writing import raise_problems
    >>> raise_problems("model.pth", [])
    >>> raise_problems("model.pth", ["a: missing", "b: missing"])
    Traceback (most recent call last):
        ...
    hf_captioners.conversion.writing.ConversionError: model.pth: 2 problems: a: missing; b: missing

    ```
    """
    if not problems:
        return
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    omitted = [f"... and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
    raise ConversionError(f"{title}: {count}: " + "; ".join([*problems[:SHOWN_PROBLEMS], *omitted]))


def check_out_dir(out_dir: str | Path, model_type: str, overwrite: bool) -> Path:
    """Check that a folder may be written (again), and restore a folder that a killed conversion had set aside.

    Args:
        out_dir (`str` or `Path`): the folder; it need not exist.
        model_type (`str`): the model type that will be written there.
        overwrite (`bool`): whether a previous conversion to the same model type may be replaced.

    Returns:
        `Path`: the folder, absolute, links resolved.

    Raises:
        FileExistsError: it is a file, or a folder with content that may not be replaced.
        NotADirectoryError, PermissionError: it cannot be made where it is to be.
    """
    path = Path(out_dir).resolve()
    check_can_be_made(path)
    bring_back(path)
    if not path.exists():
        return path
    if not path.is_dir():
        raise FileExistsError(f"{out_dir}: is not a folder; give a new or an empty one")
    entries = sorted(path.iterdir())
    if not entries:
        return path
    if not overwrite:
        raise FileExistsError(
            f"{out_dir}: is not empty; give another folder, or overwrite=True to replace a conversion"
        )
    if _model_type(path) != model_type:
        raise FileExistsError(
            f"{out_dir}: is not empty and its config.json is not of a converted {model_type}; not replaced"
        )
    foreign = [entry.name for entry in entries if not _was_written(entry)]
    if foreign:
        raise FileExistsError(
            f"{out_dir}: holds {foreign[0]!r}, which no conversion wrote; move it away before overwriting"
        )
    return path


@contextmanager
def new_folder(out_dir: str | Path, model_type: str, overwrite: bool = False) -> Iterator[Path]:
    """Make an empty temporary folder beside `out_dir` that takes its name when the block ends without an error.

    Args:
        out_dir, model_type, overwrite: as in [`check_out_dir`].

    Yields:
        `Path`: where to write. After an error it is gone and `out_dir` is as it was.

    Raises:
        FileExistsError: as in [`check_out_dir`].
        OSError: the disk is full, or the folder cannot be written.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.conversion.writing import new_folder
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     with new_folder(Path(parent, "model"), "expansionnet_v2") as folder:
    ...         _ = (folder / "config.json").write_text("{}")
    ...     [path.name for path in Path(parent).rglob("*")]
    ['model', 'config.json']

    ```
    """
    target = check_out_dir(out_dir, model_type, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with working_folder(target.parent, f".{target.name}.", ".new") as temporary:
            shown = progress_of(lambda: _bytes_in(temporary), desc=f"writing {target.name}", unit="B", unit_scale=True)
            with system_errors(out_dir), shown:
                yield temporary
            settle(temporary)
            replace_folder(temporary, check_out_dir(out_dir, model_type, overwrite))
    except OSError as error:
        if error.errno is None:
            raise
        # the name that the file would have had, not that in the temporary folder
        working = re.escape(str(target.parent / f".{target.name}.")) + r"[0-9a-f]{32}\.new(\.making)?"
        name = re.sub(working, str(out_dir).replace("\\", r"\\"), str(error.filename or out_dir))
        raise OSError(error.errno, os.strerror(error.errno), name) from error


def _bytes_in(folder: Path) -> int:
    """Bytes of the files in a folder, some of which may be gone while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def write_folder(
    out_dir: str | Path, model_type: str, overwrite: bool, *parts: Any, source: str | Path | None = None
) -> Path:
    """Write what a captioner consists of, and its card.

    Args:
        out_dir, model_type, overwrite: as in [`check_out_dir`].
        parts: the model, and its processor or the like, each with `save_pretrained`.
        source (`str` or `Path`, *optional*): the original checkpoint, which the card names; without one there is no
            card.

    Returns:
        `Path`: `out_dir`.

    Raises:
        FileExistsError, OSError: as in [`new_folder`].
    """
    from ..hub.card import updated_card, write_card
    from ..hub.facts import CardFacts

    with new_folder(out_dir, model_type, overwrite) as folder:
        for part in parts:
            part.save_pretrained(folder)
        if source is not None:
            config = parts[0].config.to_dict()
            facts = CardFacts(
                Path(out_dir).resolve().name,
                config,
                type(parts[0]).__name__,
                source=Path(source).name,
                parameters=parts[0].num_parameters(),
            )
            write_card(facts, folder, updated_card(out_dir, facts))
    return Path(out_dir)


def _model_type(path: Path) -> str | None:
    try:
        content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("model_type") if isinstance(content, dict) else None


def _was_written(entry: Path) -> bool:
    shard = entry.name.startswith("model-") and entry.suffix == ".safetensors"
    return entry.is_file() and not entry.is_symlink() and (entry.name in _WRITTEN_FILES or shard)
