"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` fill a temporary file beside `path`, and move it there once it is safely on the disk.

    Args:
        path (`Path`): the file; an older one is replaced at the end, or stays if `write` fails.
        write (`Callable[[Path], object]`): writes the file that it is given.

    Raises:
        OSError: the folder cannot be written, or whatever `write` raises.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.files import write_whole
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_whole(path, lambda temporary: temporary.write_text("done"))
    >>> path.read_text()
    'done'

    ```
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed run left is overwritten
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
