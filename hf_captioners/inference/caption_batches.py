"""A captioner as a step of `datasets` or Ray Data: batches of images to batches with their captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from .captioning import caption_rows
from .digests import settings_sha256, weights_sha256
from .loading import load_captioners


class CaptionBatches:
    """Callable that gives images captions, for `datasets.Dataset.map` and `ray.data.Dataset.map_batches`.

    The model is loaded when the object is made: by Ray once in each actor, from the arguments that are sent there.

    Args:
        model (`str` or `Sequence[str]`): folder or Hub name of a captioner; several caption together, as an ensemble.
        image_column (`str`, defaults to `"image"`): of the batch: encoded bytes, `{"bytes", "path"}` as `datasets`
            writes images, paths, PIL images, or `uint8` arrays of height × width × 3.
        caption_column, error_column (`str`, defaults to `"caption"` and `"error"`): what is added: text, of which one
            is empty. An image that cannot be captioned does not stop the others.
        batch_size (`int`, defaults to 8): images at a time. Captions do not depend on it.
        num_workers (`int`, *optional*): threads that open images, see [`caption_rows`].
        device, dtype (`str`, defaults to `"auto"`), trust_remote_code (`bool`), prompt (`str`, *optional*): see
            [`load_captioners`].
        options: of `generate`, such as `num_beams`.

    Raises:
        ValueError: a model that cannot be loaded, no such device, or `num_return_sequences` above 1.

    With `datasets`, leave decoding to this class, or the first image that is broken ends the work:

    ```python
    >>> from datasets import Image, load_dataset
    >>> from hf_captioners.inference import CaptionBatches
    >>> images = load_dataset("org/name", split="train").cast_column("image", Image(decode=False))  # doctest: +SKIP
    >>> captioned = images.map(CaptionBatches("captioner"), batched=True, batch_size=256)  # doctest: +SKIP

    ```

    With Ray Data, on two GPUs:

    ```python
    >>> import ray  # doctest: +SKIP
    >>> rows = ray.data.read_parquet("images/")  # doctest: +SKIP
    >>> rows = rows.map_batches(  # doctest: +SKIP
    ...     CaptionBatches, fn_constructor_args=["captioner"], concurrency=2, num_gpus=1, batch_size=256
    ... )

    ```
    """

    def __init__(
        self,
        model: str | Sequence[str],
        image_column: str = "image",
        caption_column: str = "caption",
        error_column: str = "error",
        batch_size: int = 8,
        num_workers: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        prompt: str | None = None,
        **options: Any,
    ) -> None:
        if options.get("num_return_sequences") not in (None, 1):
            raise ValueError(f"num_return_sequences={options['num_return_sequences']}: an image gets one caption")
        options.pop("num_return_sequences", None)
        self.names = [model] if isinstance(model, str) else list(model)
        self.image_column, self.caption_column, self.error_column = image_column, caption_column, error_column
        self.batch_size, self.num_workers, self.options = batch_size, num_workers, options
        self._loading: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
        self._loading["prompt"] = prompt
        self._load()

    def _load(self) -> None:
        self.model, self.processor = load_captioners(self.names, **self._loading)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Caption the images of a batch.

        Args:
            batch (`Mapping[str, Sequence]`): columns of the same length.

        Returns:
            `dict`: the batch, and lists of text `caption` and `error`.

        Raises:
            ValueError: it has no column of images, or already one of the columns that are added.
        """
        if self.image_column not in batch:
            raise ValueError(f"image_column={self.image_column!r}: the batch has {', '.join(map(repr, batch))}")
        for argument in ("caption_column", "error_column"):
            if (column := vars(self)[argument]) in batch:
                raise ValueError(f"{argument}={column!r} is there already; give another name")
        rows = ({"image": _source(value), "image_id": place} for place, value in enumerate(batch[self.image_column]))
        records = list(
            caption_rows(self.model, self.processor, rows, self.batch_size, self.num_workers, **self.options)
        )
        captions = [record.get("caption", "") for record in records]
        return {**batch, self.caption_column: captions, self.error_column: [row.get("error", "") for row in records]}

    def __getstate__(self) -> dict[str, Any]:
        """The arguments, and digests of what was loaded, so that `datasets` knows its cached results by them."""
        state = {name: value for name, value in vars(self).items() if name not in ("model", "processor")}
        image_processor = settings_sha256(self.processor.image_processor)
        return {**state, "_digests": (weights_sha256(self.model), image_processor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._load()


def _source(value: Any) -> Any:
    """An image as `open_image` takes it, or the reason why it is none."""
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
            return {"error": f"expected uint8 of height × width × 3, found {value.dtype} of shape {value.shape}"}
        return Image.fromarray(value)
    return {"error": "no image"} if value is None else value
