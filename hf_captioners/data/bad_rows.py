"""Rows that cannot be used: the first is an error, or each is left out, logged and counted."""

from __future__ import annotations

import logging

from .printable import printable

logger = logging.getLogger(__name__)

ON_BAD_ROW = ("error", "skip")
_LOGGED = 20  # rows; the others are counted


class BadRows:
    """Collector of rows that cannot be used: it raises, or logs and counts them.

    Args:
        action (`str`, defaults to `"error"`): `"error"` raises for the first, `"skip"` leaves all of them out: the
            first 20 are warnings in the log, the others are counted.

    Attributes:
        count (`int`): rows that were left out; one that is read twice counts once.

    Raises:
        ValueError: another action.

    Example:

    ```python
    >>> from hf_captioners.data.bad_rows import BadRows
    >>> bad_rows = BadRows("skip")
    >>> bad_rows.add(ValueError("dogs.json: images[3]: field 'filename' is 7, expected a string"))
    >>> bad_rows.count
    1
    >>> BadRows().add(ValueError("dogs.json: images[3]: field 'filename' is 7, expected a string"))
    Traceback (most recent call last):
        ...
    ValueError: dogs.json: images[3]: field 'filename' is 7, expected a string

    ```
    """

    def __init__(self, action: str = "error") -> None:
        if action not in ON_BAD_ROW:
            raise ValueError(f"on_bad_row={action!r}, expected {' or '.join(map(repr, ON_BAD_ROW))}")
        self.skips = action == "skip"
        self._messages: set[str] = set()

    @property
    def count(self) -> int:
        return len(self._messages)

    def add(self, error: Exception) -> None:
        """Leave a row out.

        Args:
            error (`Exception`): what is wrong with it; names file, row and field.

        Raises:
            Exception: this one, if rows are not to be left out.
        """
        if not self.skips:
            raise error
        if str(error) in self._messages:
            return
        self._messages.add(str(error))
        if self.count <= _LOGGED:
            logger.warning("left out: %s", printable(error))
        if self.count == _LOGGED:
            logger.warning("further rows that cannot be used are counted, not named")

    def conclude(self, source: str) -> None:
        """Log how many rows were left out, if any.

        Args:
            source (`str`): where they were from.
        """
        if self.count:
            logger.warning("%s: %d rows left out that cannot be used", printable(source), self.count)
