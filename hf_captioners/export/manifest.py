"""Inputs of the graphs of an exported captioner, in transformers' `export.json`."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

FILE = "export.json"
FOLDERS = ("onnx", "openvino")  # of a captioner's exports, in its repository on the Hub
_KEY = "captioner"
_IN_REPOSITORY = re.compile(rf"(\w[\w.-]*/\w[\w.-]*)/({'|'.join(FOLDERS)})")


@dataclass(frozen=True)
class Manifest:
    """Inputs of the graphs of a captioner.

    Args:
        image_input (`str`): `"pixels"` or `"features"`.
        step (`int`): words that the decoder reads at a time.
        state (`dict[str, list[int]]`): by name, the shape of what each caption has before its first word; -1 for the
            number of captions. Empty of SCD-Net, which does not write word by word.
        starts_with_image (`bool`): whether the graph of the pictures gives the state that captions start from, and the
            scores of their first words.
        bfloat16 (`bool`, defaults to `False`): whether OpenVINO computes in bfloat16 on processors that have it. Those
            exported before there was this choice do not.
    """

    image_input: str
    step: int
    state: dict[str, list[int]]
    starts_with_image: bool
    bfloat16: bool = False

    def write(self, folder: Path) -> None:
        """Add this to the file that transformers has written.

        Args:
            folder (`Path`): of the export.
        """
        content = json.loads((folder / FILE).read_text("utf-8"))
        content[_KEY] = asdict(self)
        (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read it.

        Args:
            path (`Path`): the file.

        Raises:
            ValueError: it describes no exported captioner.
        """
        try:
            content = json.loads(path.read_text("utf-8"))[_KEY]
            given = {one.name: content[one.name] for one in fields(cls) if one.default is MISSING}
            return cls(**given, bfloat16=bool(content.get("bfloat16")))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: describes no captioner exported by `hf-captioners export` (of this version)"
            ) from error


def export_format(path: Path) -> str:
    """Read which runtime an export is for.

    Args:
        path (`Path`): the file, which [`Manifest.read`] has read.

    Returns:
        `str`: `"onnx"` or `"openvino"`
    """
    return str(json.loads(path.read_text("utf-8"))["export_format"])


def split_name(name: str | Path) -> tuple[str | Path, str | None]:
    """Split the name of an export in a captioner's repository on the Hub.

    Args:
        name (`str` or `Path`): such a name, or any other, or a folder.

    Returns:
        `tuple[str | Path, str | None]`: the repository and the folder in it; `name` and `None` of what is no such name.

    Example:

    ```python
    >>> from hf_captioners.export.manifest import split_name
    >>> split_name("me/mine/onnx"), split_name("me/mine")
    (('me/mine', 'onnx'), ('me/mine', None))

    ```
    """
    found = None if Path(name).exists() else _IN_REPOSITORY.fullmatch(str(name))
    return (name, None) if found is None else (found[1], found[2])


def is_exported(name: object) -> bool:
    """Tell whether a name is of an exported captioner.

    Args:
        name: a folder, a name on the Hub, of which those with the folder of an export are meant, or anything else.

    Example:

    ```python
    >>> from hf_captioners.export.manifest import is_exported
    >>> is_exported("nowhere"), is_exported(None), is_exported("me/mine/onnx")
    (False, False, True)

    ```
    """
    return isinstance(name, (str, Path)) and ((Path(name) / FILE).is_file() or split_name(name)[1] is not None)
