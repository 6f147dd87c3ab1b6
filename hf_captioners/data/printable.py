"""Text of others made safe to show: names of files, captions and messages that hold them.

A name may hold what a terminal obeys: escape sequences that move the cursor, colour or retitle, carriage returns that
write over a line, marks that turn the direction of what follows, line ends that forge a message.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from ..modeling.captioner_image_limits import UNSEEN, escape


def printable(text: object) -> str:
    r"""Write what cannot be seen as Python writes it in a string.

    Args:
        text (`object`): as text.

    Returns:
        `str`: of one line.

    Example:

    ```python
    >>> from hf_captioners.data.printable import printable
    >>> print(printable("a\x1b[2Jb\n.png"))
    a\x1b[2Jb\n.png

    ```
    """
    return escape(str(text))


def printable_json(content: Any) -> str:
    r"""JSON in which letters stand as they are, and what cannot be seen as `\u` and its number.

    A reader of JSON gets the same text back.

    Args:
        content: what `json.dumps` takes.

    Returns:
        `str`: of one line.
    """
    return UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(content, ensure_ascii=False))


class PrintableFormatter(logging.Formatter):
    """A log's formatter that shows messages by [`printable`]."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message, of one line; a traceback behind it keeps its lines."""
        return printable(super().formatMessage(record))
