"""Inputs of the graphs of an exported captioner, in transformers' `export.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = "export.json"
_KEY = "captioner"


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
    """

    image_input: str
    step: int
    state: dict[str, list[int]]
    starts_with_image: bool

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
            return cls(**{one.name: content[one.name] for one in fields(cls)})
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


def is_exported(folder: object) -> bool:
    """Tell whether a folder holds an exported captioner.

    Args:
        folder: name of a folder, or anything else, which holds none.

    Example:

    ```python
    >>> from hf_captioners.export.manifest import is_exported
    >>> is_exported("nowhere"), is_exported(None)
    (False, False)

    ```
    """
    return isinstance(folder, (str, Path)) and (Path(folder) / FILE).is_file()
