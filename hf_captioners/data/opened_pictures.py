"""Pictures that are opened when somebody looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from PIL import Image

from ..modeling.image_processing_captioner import open_picture


class OpenedPictures(Sequence[Image.Image]):
    """A column of pictures as a list of PIL pictures, each opened at the first look, within limits.

    Args:
        closed (`Sequence`): paths, `{"path": ..., "bytes": ...}`, or PIL pictures.
        image_processor (`BaseImageProcessor`): says how large a picture may be.

    Attributes:
        closed (`Sequence`): what was given, for who opens pictures in another way or knows them already.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_captioners import CaptionerImageProcessor
    >>> from hf_captioners.data.opened_pictures import OpenedPictures
    >>> pictures = OpenedPictures([Image.new("L", (4, 3))] * 2, CaptionerImageProcessor())
    >>> len(pictures), pictures[0].mode, pictures[0] is pictures[1]
    (2, 'RGB', True)

    ```
    """

    def __init__(self, closed: Sequence[Any], image_processor: Any) -> None:
        self.closed = closed
        self.image_processor = image_processor
        self._opened: dict[int, Image.Image] = {}  # by the identity of what is closed, which `closed` keeps alive

    def __len__(self) -> int:
        return len(self.closed)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...

    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        picture = self.closed[index]
        if id(picture) not in self._opened:
            self._opened[id(picture)] = open_picture(picture, self.image_processor)
        return self._opened[id(picture)]
