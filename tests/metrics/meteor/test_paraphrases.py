"""The paraphrase table and its cache file."""

import gzip
import itertools
import logging
import multiprocessing
import random
import re
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from hf_captioners.metrics.meteor.paraphrases import MeteorDataError, ParaphraseTable, load_paraphrases
from hf_captioners.metrics.ngrams import unpack

PAIRS = [("a lot of", "many"), ("a lot of", "much"), ("many", "a lot of"), ("café", "bar"), ("dog", "canine friend")]


def write(path, pairs):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(f"0.5\n{source}\n{target}\n" for source, target in pairs)
    return path


def paraphrases_of(table):
    """Phrase -> its paraphrases, in their order."""
    texts = [""]
    for parent, word in zip(*map(np.ndarray.tolist, unpack(table.keys[1:])), strict=True):
        texts.append(f"{texts[parent]} {table.words[word]}".strip())
    others = [texts[node] for node in table.paraphrases.tolist()]
    return {
        text: others[start:end]
        for text, (start, end) in zip(texts, itertools.pairwise(table.first_entry.tolist()), strict=True)
        if end > start
    }


def grouped(pairs):
    return {source: [target for other, target in pairs if other == source] for source, _ in pairs}


def among(table, lines):
    """Positions of phrases and their texts, and the paraphrases of each."""
    words = list(dict.fromkeys(word for line in lines for word in line))
    flat = [word for line in lines for word in line]
    word = np.array([words.index(word) for word in flat], np.int64)
    phrases = table.among(words, word, np.array([len(line) for line in lines], np.int64))
    occurrences = [
        (position, " ".join(flat[position : position + length]))
        for position, length in zip(phrases.position.tolist(), phrases.length.tolist(), strict=True)
    ]
    texts = {number: text for number, (_, text) in zip(phrases.phrase.tolist(), occurrences, strict=True)}
    pairs = zip(phrases.source.tolist(), phrases.target.tolist(), strict=True)
    return occurrences, grouped([(texts[source], texts[target]) for source, target in pairs])


def test_keeps_the_entries_of_a_phrase_in_their_order():
    assert paraphrases_of(ParaphraseTable.from_pairs(iter(PAIRS))) == grouped(PAIRS)


def test_among_gives_every_entry_whose_phrases_occur():
    rng = random.Random(0)
    words = ["a", "b", "c", "d", "e"]

    def phrase(most):
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    pairs = list({(phrase(3), phrase(3)): None for _ in range(300)})
    table = ParaphraseTable.from_pairs(pairs)
    for _ in range(50):
        lines = [phrase(5).split() for _ in range(rng.randint(1, 3))]
        parts = [  # of all lines, by their positions
            (sum(map(len, lines[:number])) + start, " ".join(line[start:end]))
            for number, line in enumerate(lines)
            for start in range(len(line))
            for end in range(start + 1, len(line) + 1)
        ]
        texts = {text for _, text in parts}
        entries = [pair for pair in pairs if texts.issuperset(pair)]
        occurrences, paraphrases = among(table, lines)
        assert paraphrases == grouped(entries)
        assert sorted(occurrences) == sorted(part for part in parts if part[1] in {t for pair in entries for t in pair})


def test_nothing_matters_for_no_words():
    assert among(ParaphraseTable.from_pairs(PAIRS), [[], ["unknown"]]) == ([], {})
    assert among(ParaphraseTable.from_pairs([]), [["many"]]) == ([], {})
    assert among(ParaphraseTable.from_pairs(PAIRS), []) == ([], {})


def test_second_load_reads_the_cache(tmp_path, monkeypatch):
    source, cache = write(tmp_path / "p.gz", PAIRS), tmp_path / "deep" / "cache"
    first = load_paraphrases(source, cache)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    monkeypatch.setattr(gzip, "open", None)
    second = load_paraphrases(source, cache)
    assert paraphrases_of(first) == paraphrases_of(second) == grouped(PAIRS)
    assert second.words == first.words


def test_another_table_is_not_taken_from_the_cache(tmp_path):
    source = write(tmp_path / "p.gz", PAIRS)
    load_paraphrases(source, tmp_path / "cache")
    write(source, PAIRS[1:])
    assert paraphrases_of(load_paraphrases(source, tmp_path / "cache")) == grouped(PAIRS[1:])


def test_broken_cache_is_replaced(tmp_path, caplog):
    source = write(tmp_path / "p.gz", PAIRS)
    load_paraphrases(source, tmp_path)
    (cached,) = tmp_path.glob("*.safetensors")
    content = cached.read_bytes()
    cached.write_bytes(content[:100])
    with caplog.at_level(logging.WARNING):
        assert paraphrases_of(load_paraphrases(source, tmp_path)) == grouped(PAIRS)
    assert cached.name in caplog.text
    assert cached.read_bytes() == content


def test_a_flipped_bit_in_the_cache(tmp_path, caplog):
    source = write(tmp_path / "p.gz", PAIRS)
    load_paraphrases(source, tmp_path)
    (cached,) = tmp_path.glob("*.safetensors")
    content = cached.read_bytes()
    cached.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert paraphrases_of(load_paraphrases(source, tmp_path)) == grouped(PAIRS)
    assert "its content is not what was written" in caplog.text
    assert cached.read_bytes() == content


def test_the_cache_is_as_readable_as_other_files(tmp_path):
    load_paraphrases(write(tmp_path / "p.gz", PAIRS), tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    assert cached.stat().st_mode == (tmp_path / "p.gz").stat().st_mode


def test_works_where_nothing_can_be_kept(tmp_path, caplog):
    (tmp_path / "cache").write_text("a file, no folder")
    with caplog.at_level(logging.WARNING):
        table = load_paraphrases(write(tmp_path / "p.gz", PAIRS), tmp_path / "cache")
    assert paraphrases_of(table) == grouped(PAIRS)
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"0.5\na lot\nmany\n0.5\nmuch\n"),
        gzip.compress(b"0.5\na lot\nmany\nmuch\nall\n0.5\n"),
        gzip.compress(b"0.5\na lot\nmany\n" * 99)[:-20],
        gzip.compress(b"0.5\na\xff\nmany\n"),
        b"no archive",
    ],
    ids=["line missing", "out of step", "cut off", "not UTF-8", "not compressed"],
)
def test_says_what_is_no_table(tmp_path, content):
    path = tmp_path / "p.gz"
    path.write_bytes(content)
    with pytest.raises(MeteorDataError, match=re.escape(f"{path}: not a paraphrase table")):
        load_paraphrases(path, tmp_path / "cache")
    assert not list(tmp_path.glob("cache/*"))


def test_says_that_the_table_is_missing(tmp_path):
    with pytest.raises(MeteorDataError, match="paraphrase table is not there"):
        load_paraphrases(tmp_path / "p.gz", tmp_path)


def test_processes_that_start_together_share_one_cache(tmp_path):
    source = write(tmp_path / "p.gz", [(f"word {n} here", f"there {n % 99}") for n in range(20_000)])
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("fork")) as pool:
        tables = list(pool.map(load_paraphrases, [source] * 6, [tmp_path / "cache"] * 6))
    line = ["word", "7", "here", "there", "7"]
    assert all(among(table, [line])[1] == {"word 7 here": ["there 7"]} for table in tables)
    assert len(list((tmp_path / "cache").iterdir())) == 1
