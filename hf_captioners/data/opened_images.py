"""Images that are opened when they are first read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

from PIL import Image

from ..modeling.image_processing_captioner import open_for_processor


class OpenedImages(Sequence[Image.Image]):
    """A column of pictures as a list of PIL pictures, each opened when it is first read, within limits.

    Args:
        closed (`Sequence`): paths, `{"path": ..., "bytes": ...}`, or PIL pictures.
        image_processor (`BaseImageProcessor`): says how large a picture may be.

    Attributes:
        closed (`Sequence`): the argument, for code that opens pictures in another way or has them already.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_captioners import CaptionerImageProcessor
    >>> from hf_captioners.data.opened_images import OpenedImages
    >>> images = OpenedImages([Image.new("L", (4, 3))] * 2, CaptionerImageProcessor())
    >>> len(images), images[0].mode, images[0] is images[1]
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
        image = self.closed[index]
        if id(image) not in self._opened:
            self._opened[id(image)] = open_for_processor(image, self.image_processor)
        return self._opened[id(image)]
