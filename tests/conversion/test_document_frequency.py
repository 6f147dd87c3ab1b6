"""Pickled document frequencies of the originals: read as they are, refused when they hold anything else."""

from __future__ import annotations

import json
import math
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from hf_captioners.conversion.document_frequency import convert_document_frequencies
from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.metrics.document_frequency import DocumentFrequencies

COUNTS = {("5",): 3.0, ("5", "0"): 2.0, ("0",): 3.0}


def pickled(tmp_path: Path, content: Any, protocol: int = 2) -> Path:
    (tmp_path / "df.p").write_bytes(pickle.dumps(content, protocol))
    return tmp_path / "df.p"


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_satic(shared_parity: Path, case: str) -> None:
    folder = shared_parity / "satic" / case
    plain = json.loads((folder / "cider_df.json").read_text("utf-8"))
    counts = {tuple(ngram.split()): count for ngram, count in plain["df"].items()}
    frequencies = convert_document_frequencies(folder / "coco-train-idxs.p")
    assert frequencies.content_hash == DocumentFrequencies.from_counts(counts, plain["ref_len"]).content_hash
    assert len(frequencies) == len(counts) and frequencies.number_of_images == plain["ref_len"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("factory", [float, int])
def test_every_protocol(tmp_path: Path, factory: Any, protocol: int) -> None:
    counts = defaultdict(factory, {ngram: factory(count) for ngram, count in COUNTS.items()})
    path = pickled(tmp_path, {"document_frequency": counts, "ref_len": 3}, protocol)
    assert convert_document_frequencies(path).content_hash == DocumentFrequencies.from_counts(COUNTS, 3).content_hash


@pytest.mark.parametrize("images", [3, 40, 113_287, 2_000_000])
def test_the_logarithm_of_the_number_of_images(tmp_path: Path, images: int) -> None:
    """As SCD-Net keeps it, with n-grams of integers."""
    counts = {tuple(map(int, ngram)): count for ngram, count in COUNTS.items()}
    path = pickled(tmp_path, {"document_frequency": counts, "ref_len": math.log(images)})
    frequencies = convert_document_frequencies(path)
    assert frequencies.content_hash == DocumentFrequencies.from_counts(COUNTS, images).content_hash


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COUNTS, "expected a dict with 'document_frequency'"),
        ([1], "expected a dict with 'document_frequency'"),
        ({"document_frequency": COUNTS}, "expected a dict with .*'ref_len'"),
        ({"document_frequency": [], "ref_len": 3}, "expected a dict with"),
        ({"document_frequency": {5: 1.0}, "ref_len": 3}, "5 is no n-gram"),
        ({"document_frequency": {(None,): 1.0}, "ref_len": 3}, "is no n-gram"),
        ({"document_frequency": {("5",) * 5: 1.0}, "ref_len": 3}, "is no n-gram"),
        ({"document_frequency": {("5",): "1"}, "ref_len": 3}, "'1' is no number"),
        ({"document_frequency": {("5",): math.inf}, "ref_len": 3}, "inf is no number"),
        ({"document_frequency": {("5",): 10**400}, "ref_len": 3}, "OverflowError"),
        ({"document_frequency": COUNTS, "ref_len": 2}, r"\('5',\) occurs in 3.0 images"),
        ({"document_frequency": COUNTS, "ref_len": 0}, "at most the 0 images"),
        ({"document_frequency": COUNTS, "ref_len": True}, "True is no number"),
        ({"document_frequency": COUNTS, "ref_len": 1.2}, "ref_len is 1.2, neither a number of images nor"),
        ({"document_frequency": COUNTS, "ref_len": 1e300}, "number_of_images is"),
    ],
)
def test_refuses_other_content(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"df\.p: .*{message}"):
        convert_document_frequencies(pickled(tmp_path, content))


def test_refuses_code(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"df\.p: refers to .*\.eval"):
        convert_document_frequencies(pickled(tmp_path, {"document_frequency": eval, "ref_len": 3}))


def test_limits(tmp_path: Path) -> None:
    path = pickled(tmp_path, {"document_frequency": COUNTS, "ref_len": 3})
    with pytest.raises(CheckpointError, match="larger than the limit of 10 bytes"):
        convert_document_frequencies(path, max_bytes=10)
    with pytest.raises(FileNotFoundError, match="nothing"):
        convert_document_frequencies(tmp_path / "nothing")
