"""Pickled document frequencies of the originals: read as they are, refused when they hold anything else."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from hf_captioners.conversion import convert
from hf_captioners.conversion.document_frequency import FrequencyReport, convert_document_frequencies
from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
from hf_captioners.rewards.cider import CiderDReward

COUNTS = {("5",): 3.0, ("5", "0"): 2.0, ("0",): 3.0}
WORDS = {("a",): 3.0, ("a", "dög"): 2.0, ("dög",): 2.0, ("<eos>",): 3.0}


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


# -- the entry point: a file -------------------------------------------------------------------------------------------


class Payload:
    """Pickled as a call that would make a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(("counts", "token_ids"), [(WORDS, False), (COUNTS, True)])
def test_convert_writes_what_was_counted(tmp_path: Path, counts: dict[Any, float], token_ids: bool) -> None:
    out = tmp_path / "new" / "df.safetensors"
    path = pickled(tmp_path, {"document_frequency": defaultdict(float, counts), "ref_len": 3})
    assert convert("document_frequency", path, out) == FrequencyReport(out, len(counts), 3, token_ids)
    saved = DocumentFrequencies.load(out)
    assert saved.content_hash == DocumentFrequencies.from_counts(counts, 3).content_hash
    assert {ngram: saved.count(" ".join(ngram)) for ngram in counts} == counts
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "df.p", out.parent, out]


def test_a_reward_of_the_converted_file_is_that_of_the_counted_references(tmp_path: Path) -> None:
    references = [["a dog runs", "a dog"], ["two cats"], ["a red bus"]]
    counts: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for several in references:  # as a script of the originals counts
        texts = [[*one.split(), "<eos>"] for one in several]
        found = {tuple(one[i : i + n]) for one in texts for n in range(1, 5) for i in range(len(one) - n + 1)}
        for ngram in found:
            counts[ngram] += 1
    convert(
        "document_frequency",
        pickled(tmp_path, {"document_frequency": counts, "ref_len": 3}),
        tmp_path / "d.safetensors",
    )
    options = {"tokenized": True, "eos": "<eos>"}
    rewards = [
        CiderDReward(frequencies, **options)(["a dog sits", "two cats"], captions=references[:2])
        for frequencies in (
            DocumentFrequencies.load(tmp_path / "d.safetensors"),
            DocumentFrequencies.from_references(references, **options),
        )
    ]
    assert rewards[0] == rewards[1]


def test_convert_runs_nothing(tmp_path: Path) -> None:
    marker, out = tmp_path / "marker", tmp_path / "df.safetensors"
    path = pickled(tmp_path, {"document_frequency": {("5",): Payload(marker)}, "ref_len": 3})
    with pytest.raises(CheckpointError, match=r"df\.p: refers to (posix|nt)\.mkdir; only plain values"):
        convert("document_frequency", path, out)
    assert not marker.exists() and not out.exists()
    pickle.loads(path.read_bytes())  # the payload is one
    assert marker.is_dir()


def test_convert_replaces_only_what_it_may(tmp_path: Path) -> None:
    out = tmp_path / "df.safetensors"
    first, second = DocumentFrequencies.from_counts(COUNTS, 3), DocumentFrequencies.from_counts(WORDS, 3)
    convert("document_frequency", pickled(tmp_path, {"document_frequency": COUNTS, "ref_len": 3}), out)
    path = pickled(tmp_path, {"document_frequency": WORDS, "ref_len": 3})
    with pytest.raises(FileExistsError, match=r"df\.safetensors: exists; .* overwrite=True"):
        convert("document_frequency", path, out)
    assert DocumentFrequencies.load(out).content_hash == first.content_hash
    convert("document_frequency", path, out, overwrite=True)
    assert DocumentFrequencies.load(out).content_hash == second.content_hash
    with pytest.raises(CheckpointError):  # a bad source leaves the earlier conversion
        convert("document_frequency", pickled(tmp_path, []), out, overwrite=True)
    assert DocumentFrequencies.load(out).content_hash == second.content_hash
    out.write_text("notes")
    with pytest.raises(FileExistsError, match="holds no document frequencies; not replaced"):
        convert("document_frequency", path, out, overwrite=True)
    assert out.read_text() == "notes"


def test_convert_refuses_by_name(tmp_path: Path) -> None:
    path = pickled(tmp_path, {"document_frequency": COUNTS, "ref_len": 3})
    with pytest.raises(ValueError, match=r"df\.p: document frequencies become a file; .* ends in \.safetensors"):
        convert("document_frequency", path, path, overwrite=True)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileExistsError, match=r"folder\.safetensors: is not a file"):
        convert("document_frequency", path, tmp_path / "folder.safetensors", overwrite=True)
    with pytest.raises(FileNotFoundError, match="nothing"):
        convert("document_frequency", tmp_path / "nothing", tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="num_heads=8 has no use with document_frequency"):
        convert("document_frequency", path, tmp_path / "out.safetensors", num_heads=8)
    assert not (tmp_path / "out.safetensors").exists()
