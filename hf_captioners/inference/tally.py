"""Count of images that were captioned, failed or passed over, and the time that it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Tally:
    """Counts of a captioning run, from the moment when it is made.

    Attributes:
        captioned, failed (`int`): images with a caption, with an error.
        skipped (`int`): images that were done before.
        failed_before (`int`): images with an error of earlier runs, of which the file still has one.
        repeated (`int`): how often an image was named again.

    Example:

    ```python
    >>> from hf_captioners.inference.tally import Tally
    >>> tally = Tally()
    >>> tally.add({"image": "a.jpg", "caption": "a dog"})
    >>> tally.add({"image": "b.jpg", "error": "b.jpg: no such file"})
    >>> tally.captioned, tally.failed
    (1, 1)

    ```
    """

    def __init__(self) -> None:
        self.captioned = self.failed = self.skipped = self.failed_before = self.repeated = 0
        self._start = time.monotonic()

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record."""
        self.failed += "error" in record
        self.captioned += "error" not in record

    def summary(self) -> dict[str, Any]:
        """Summary of what has been done so far.

        Returns:
            `dict`: the counts by name, `seconds`, and `images_per_second`, of captions and failures.
        """
        seconds = time.monotonic() - self._start
        number = self.captioned + self.failed
        return {
            "captioned": self.captioned,
            "failed": self.failed,
            "skipped": self.skipped,
            "failed_before": self.failed_before,
            "repeated": self.repeated,
            "seconds": round(seconds, 3),
            "images_per_second": round(number / seconds, 3) if seconds else 0.0,
        }

    def __str__(self) -> str:
        numbers = self.summary()
        shown = [f"{numbers[name]} {name}" for name in ("captioned", "failed", "skipped")]
        shown += [f"{self.failed_before} failed before"] if self.failed_before else []
        shown += [f"{self.repeated} named again"] if self.repeated else []
        rate = f"{numbers['seconds']:.0f} s, {numbers['images_per_second']:.1f} pictures a second"
        return f"{', '.join(shown)}; {rate}"
