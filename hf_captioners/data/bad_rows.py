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
        log (`bool`, defaults to `True`): log them; `False` where `messages` are shown in another way.

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

    def __init__(self, action: str = "error", log: bool = True) -> None:
        if action not in ON_BAD_ROW:
            raise ValueError(f"on_bad_row={action!r}, expected {' or '.join(map(repr, ON_BAD_ROW))}")
        self.skips = action == "skip"
        self._logged = _LOGGED if log else 0
        self._messages: dict[str, None] = {}

    @property
    def count(self) -> int:
        return len(self._messages)

    @property
    def messages(self) -> list[str]:
        """The faults of rows that were left out."""
        return list(self._messages)

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
        self._messages[str(error)] = None
        if self.count <= self._logged:
            logger.warning("left out: %s", printable(error))
        if self.count == self._logged:
            logger.warning("further rows that cannot be used are counted, not named")

    def conclude(self, source: str) -> None:
        """Log how many rows were left out, if any.

        Args:
            source (`str`): where they were from.
        """
        if self.count:
            logger.warning("%s: %d rows left out that cannot be used", printable(source), self.count)
