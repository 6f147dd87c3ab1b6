"""Bad rows: the first is the error, or all are counted and some named."""

from __future__ import annotations

import pytest

from hf_captioners.data.bad_rows import BadRows


def test_the_first_is_the_error():
    with pytest.raises(KeyError, match="that one"):
        BadRows().add(KeyError("that one"))


def test_skipped_ones_are_counted_and_twenty_are_named(caplog):
    bad_rows = BadRows("skip")
    for number in [*range(30), 3]:  # one is read twice
        bad_rows.add(ValueError(f"row {number}\x1b[2J"))
    bad_rows.conclude("dogs.json")
    assert bad_rows.count == 30
    assert sum("left out: row " in message for message in caplog.messages) == 20
    assert "\x1b" not in caplog.text
    assert caplog.messages[-1] == "dogs.json: 30 rows left out that cannot be used"


def test_none(caplog):
    BadRows("skip").conclude("dogs.json")
    assert caplog.messages == []


def test_another_action():
    with pytest.raises(ValueError, match="on_bad_row='drop', expected 'error' or 'skip'"):
        BadRows("drop")
