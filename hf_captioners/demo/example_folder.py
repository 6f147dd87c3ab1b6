"""Pictures of a folder that visitors may choose from, and no other file of the machine."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..data.image_suffixes import IMAGE_SUFFIXES
from ..data.printable import printable
from ..modeling.captioner_image_io import ImageError, open_image

MOST_EXAMPLES = 24


class ExampleFolder:
    """Pictures that lie in a folder itself; links that lead out of it are none of them.

    Args:
        folder (`str` or `Path`): with the pictures.
        most (`int`, defaults to 24): how many are shown, by their names.

    Attributes:
        names (`list[str]`): of the files.

    Raises:
        ValueError: there is no such folder, or no picture in it.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from hf_captioners.demo.example_folder import ExampleFolder
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (8, 8)).save(folder / "a.png")
    >>> examples = ExampleFolder(folder)
    >>> examples.names, examples.open("a.png").size
    (['a.png'], (8, 8))

    ```
    """

    def __init__(self, folder: str | Path, most: int = MOST_EXAMPLES) -> None:
        self.folder = Path(folder).resolve()
        if not self.folder.is_dir():
            raise ValueError(f"--examples {folder}: no such folder")
        names = sorted(path.name for path in self.folder.iterdir() if self._is_example(path))
        if not names:
            raise ValueError(f"--examples {folder}: no pictures in it")
        self.names = names[:most]

    def _is_example(self, path: Path) -> bool:
        known = path.suffix.lower() in IMAGE_SUFFIXES
        return known and path.is_file() and path.resolve().parent == self.folder

    def open(self, name: str) -> Image.Image:
        """Open one of `names`.

        Raises:
            ImageError: it is none of them, be it a path, or cannot be read.
        """
        if name not in self.names or not self._is_example(self.folder / name):
            raise ImageError(f"{printable(name)}: is none of the examples")
        return open_image(self.folder / name)

    def thumbnails(self, side: int = 160) -> list[tuple[Image.Image, str]]:
        """The pictures, small, with their names; those that cannot be read are left out.

        Args:
            side (`int`, defaults to 160): the longest side in pixels.
        """
        found = []
        for name in list(self.names):
            try:
                image = self.open(name)
            except ImageError:
                self.names.remove(name)
                continue
            image.thumbnail((side, side))
            found.append((image, name))
        return found
