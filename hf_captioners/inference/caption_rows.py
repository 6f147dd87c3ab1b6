"""Captions for pictures whose features are cached, one record per row, in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch


def caption_rows(
    model: Any,
    processor: Any,
    rows: Iterable[dict[str, Any]],
    batch_size: int = 8,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Caption rows that have `image_id` and `image_features`.

    Args:
        model (`PreTrainedModel`): a captioner in evaluation mode, on the device and in the dtype to use.
        processor (`ProcessorMixin`): its processor.
        rows (`Iterable[dict]`): such as a [`FeatureDataset`]; read as the captions are asked for.
        batch_size (`int`, defaults to 8): rows at a time. Captions do not depend on it.
        options: of `generate`. With `num_return_sequences` every record has several captions.

    Returns:
        `Iterator[dict]`: `{"image_id": id, "caption": text}`, or with `num_return_sequences`
        `{"image_id": id, "captions": [text, …]}`, best first.

    Raises:
        ValueError: a model in training mode, or features that the model does not take.

    Example:

    ```python
    >>> from hf_captioners.data.features.store import FeatureStore
    >>> from hf_captioners.data.rows import attach_features
    >>> from hf_captioners.data.captions.karpathy import load_karpathy
    >>> from hf_captioners.inference.caption_rows import caption_rows
    >>> rows = attach_features(load_karpathy("dataset.json"), FeatureStore("features"))  # doctest: +SKIP
    >>> list(caption_rows(model, processor, rows, num_beams=5, num_return_sequences=5))  # doctest: +SKIP

    ```
    """
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes captions; call model.eval() first")
    several = "num_return_sequences" in options
    remaining = iter(rows)
    while batch := list(itertools.islice(remaining, batch_size)):
        inputs = processor(image_features=[row["image_features"] for row in batch])
        inputs = inputs.to(model.device, dtype=model.dtype)
        with torch.inference_mode():
            ids = model.generate(**inputs, **{"num_return_sequences": 1, **options})
        captions = processor.batch_decode(ids, skip_special_tokens=True)
        each = len(captions) // len(batch)
        for index, row in enumerate(batch):
            mine = captions[index * each : (index + 1) * each]
            yield {"image_id": row["image_id"]} | ({"captions": mine} if several else {"caption": mine[0]})
