"""The evaluation signature: what a score was computed from, so that two numbers can be compared honestly.

After the signatures of sacreBLEU (Post, 2018, "A call for clarity in reporting BLEU scores").
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def hash_captions(captions: Sequence[Sequence[str]]) -> str:
    """A short hash of the references of all images: their words, their order, and which image has which.

    Args:
        captions (`Sequence[Sequence[str]]`): the references of each image.

    Returns:
        `str`: the first 12 hexadecimal digits of a SHA-256.

    Example:

    ```python
    >>> from hf_captioners.metrics.signature import hash_captions
    >>> hash_captions([["a dog"], ["a cat"]]) == hash_captions([["a dog", "a cat"]])
    False

    ```
    """
    digest = hashlib.sha256()
    for image_captions in captions:
        digest.update(f"{len(image_captions)}\n".encode())
        for caption in image_captions:
            content = caption.encode("utf-8", "surrogatepass")
            digest.update(b"%d\n" % len(content))
            digest.update(content)
    return digest.hexdigest()[:12]


def signature_text(signature: Mapping[str, Any]) -> str:
    """A signature on one line, `key:value` joined by `|`.

    Args:
        signature (`Mapping[str, Any]`): as [`Evaluation`] holds it.

    Returns:
        `str`

    Example:

    ```python
    >>> from hf_captioners.metrics.signature import signature_text
    >>> signature_text({"metrics": ["bleu", "cider_d"], "images": 5000, "cider_d": {"n": 4, "df": "references"}})
    'metrics:bleu+cider_d|images:5000|cider_d.n:4|cider_d.df:references'

    ```
    """
    return "|".join(f"{key}:{_word(value)}" for key, value in _flat(signature))


def _flat(signature: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in signature.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return "+".join(map(_word, value))
    if isinstance(value, str) and (set(value) & set('|"\\\n') or value != value.strip()):
        return json.dumps(value, ensure_ascii=False)  # so that no text reads as two settings
    return str(value)
