"""Text of others on a terminal: nothing in it is obeyed, and what people write stays as it is."""

from __future__ import annotations

import json
import logging
import sys
import unicodedata

import pytest

from hf_captioners.data.printable import PrintableFormatter, printable, printable_json

HOSTILE = "a\x1b[2J\x1b]0;title\x07b\r\n\x9b31m\u202egpj.\u2066x\u2028y\udcff.png"
WRITTEN = ("un chien à côté", "कुत्ता क्ष\u200dत्र", "می\u200cخواهم", "狗在跑", "👩\u200d🚀 e\u0301", "C:\\new", "كلب")
# by Unicode's own tables: controls, line and paragraph separators, surrogates, and what has a direction but no shape
KINDS = {"Cc", "Zl", "Zp", "Cs"}
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def is_obeyed(character: str) -> bool:
    if unicodedata.category(character) in KINDS or unicodedata.bidirectional(character) in DIRECTIONS:
        return True
    return character in "\u061c\u200e\u200f"  # marks of a direction: the Unicode Bidirectional Algorithm, 2.6


def test_all_characters():
    """Characters that are obeyed become escapes, and else at most what has no shape at all."""
    characters = [
        *map(chr, range(0x20000)),
        *map(chr, range(0xE0000, 0xE0200)),
    ]
    obeyed = [character for character in characters if is_obeyed(character)]
    assert [one for one in obeyed if not printable(one).isascii()] == []
    seen = "".join(one for one in characters if not is_obeyed(one) and unicodedata.category(one) != "Cf")
    assert printable(seen) == seen


def test_as_python_writes_it():
    assert printable(HOSTILE) == HOSTILE.encode("unicode_escape").decode()
    assert [printable(text) for text in WRITTEN] == list(WRITTEN)
    assert printable(OSError("a\tb")) == r"a\tb"


def test_json_gives_the_same_text_back():
    content = {HOSTILE: [HOSTILE, *WRITTEN], "n": [1.5, None, True]}
    line = printable_json(content)
    assert json.loads(line) == content
    assert not any(map(is_obeyed, line))
    assert all(text in line for text in WRITTEN[:4])


def test_log(capsys):
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("reason")
    except ValueError:
        logger.exception("left out: %s", HOSTILE)
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"left out: {printable(HOSTILE)}"
    assert rest[0].startswith("Traceback") and rest[-1] == "ValueError: reason"


def test_examples_end_with_one_printable_line(capsys):
    from hf_captioners.cli.common import exit_with_usage_errors, mistakes

    with pytest.raises(SystemExit) as end, exit_with_usage_errors("train_satic.py"), mistakes(ValueError):
        raise ValueError(f"{HOSTILE}: no such\nfile")
    line = capsys.readouterr().err.removesuffix("\n")
    assert end.value.code == 2 and not any(map(is_obeyed, line)) and line.endswith(": no such file")
