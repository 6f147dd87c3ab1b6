"""Document frequencies that the originals pickled, for CIDEr-D rewards.

SATIC and the self-critical code base keep `coco-train-idxs.p`, SCD-Net `mscoco_train_cider.pkl`. Both hold a dict with
`document_frequency`, n-gram -> number of images, and `ref_len`. N-grams are tuples of token ids, as strings or
integers, where 0 is the end of the caption. `ref_len` is the number of images in the first and its natural logarithm in
the second; the logarithm of a whole number above 1 is never whole, which tells them apart.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..metrics.document_frequency import DocumentFrequencies, DocumentFrequencyError
from .safe_load import DEFAULTDICT, CheckpointError, load_plain_pickle

MAX_BYTES = 1024**3  # COCO's have four million n-grams


def convert_document_frequencies(path: str | Path, max_bytes: int = MAX_BYTES) -> DocumentFrequencies:
    """Read the pickled document frequencies of an original, without running anything that is inside.

    Args:
        path (`str` or `Path`): the pickle.
        max_bytes (`int`, defaults to 1 GiB): larger files are refused unread.

    Returns:
        [`DocumentFrequencies`]: of token ids, which are words such as "12"; `save` keeps them as safetensors.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is something else, or has counts that cannot be.

    Example:

    ```python
    >>> import pickle, tempfile
    >>> from hf_captioners.conversion.document_frequency import convert_document_frequencies
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(pickle.dumps({"document_frequency": {("5",): 2.0, ("5", "0"): 1.0}, "ref_len": 3}))
    ...     file.flush()
    ...     convert_document_frequencies(file.name)
    DocumentFrequencies(2 n-grams of up to 4 words in 3 images)

    ```
    """
    content = load_plain_pickle(path, max_bytes, stand_ins=DEFAULTDICT)
    try:
        counts, images = content["document_frequency"], content["ref_len"]
        return DocumentFrequencies.from_counts(
            {_ngram(ngram): _number(count) for ngram, count in counts.items()}, _number_of_images(images)
        )
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: expected a dict with 'document_frequency', n-grams and their counts, and 'ref_len', the number "
            f"of images or its logarithm ({type(error).__name__}: {error})"
        ) from error
    except DocumentFrequencyError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _ngram(value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple):
        raise DocumentFrequencyError(f"{value!r} is no n-gram; expected a tuple of token ids")
    return tuple(str(word) if type(word) is int else word for word in value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise DocumentFrequencyError(f"{value!r} is no number of images")
    return value


def _number_of_images(ref_len: Any) -> int:
    number = _number(ref_len)
    if number == int(number):
        return int(number)
    images = math.exp(min(number, 100))
    if not math.isclose(images, round(images), rel_tol=1e-9):
        raise DocumentFrequencyError(f"ref_len is {ref_len}, neither a number of images nor the logarithm of one")
    return round(images)
