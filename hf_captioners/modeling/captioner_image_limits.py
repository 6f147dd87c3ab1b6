"""Limits of opening pictures from outside, and the error that names the one that was reached.

The defaults hold where neither an argument nor an environment variable sets another value. Every limit is compared with
what a file declares before anything is decoded.
"""

import os
import re

MAX_BYTES = 64 * 2**20
"""Largest encoded size, in bytes; `HF_CAPTIONERS_MAX_IMAGE_BYTES` in the environment sets another."""

MAX_PIXELS = 64 * 2**20
"""Largest width times height; `HF_CAPTIONERS_MAX_IMAGE_PIXELS` sets another. Beyond 178,956,970 pixels PIL refuses a
picture itself, until `PIL.Image.MAX_IMAGE_PIXELS` is raised, too."""

MAX_SCANS = 100
"""Most scans of a JPEG (progressive ones have about ten, each as much work as decoding the picture once);
`HF_CAPTIONERS_MAX_IMAGE_SCANS` sets another."""

MAX_ECHO = 200
"""Longest piece of foreign text in a message, in characters."""

# C0 and C1 controls and delete; what turns the direction of writing; line and paragraph separators; lone surrogates, of
# names that are not Unicode. Joiners stay: words of Hindi or Persian, and emoji, need them.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff]")


class ImageError(ValueError):
    """A picture could not be read; the message names the source and the reason."""


def limit_of(quantity: str, default: int) -> int:
    """Look up a limit.

    Args:
        quantity (`str`): `"bytes"`, `"pixels"` or `"scans"`.
        default (`int`): where the environment sets none.

    Raises:
        ValueError: the environment variable is not a positive integer.
    """
    variable = f"HF_CAPTIONERS_MAX_IMAGE_{quantity.upper()}"
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"{variable}={shorten(text)!r} must be a positive integer")
    return int(text)


def too_many(count: int | str, limit: int, quantity: str) -> ImageError:
    """The error of a limit that was reached: what was declared, what is allowed, and how to allow more."""
    return ImageError(
        f"{count} {quantity}, more than the {limit} allowed (HF_CAPTIONERS_MAX_IMAGE_{quantity.upper()} sets another "
        "limit)"
    )


def escape(text: str) -> str:
    """Text in which characters that cannot be seen stand as Python writes them in a string."""
    return UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shorten(text: str) -> str:
    """Foreign text for a message: at most about `MAX_ECHO` characters, control characters and the like escaped."""
    if len(text) > MAX_ECHO:
        text = f"{text[: MAX_ECHO // 2]}...{text[-MAX_ECHO // 2 :]}"
    return escape(text)
