"""`hf-captioners retrieval`: from a data set to rows with retrieved sentences."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import datasets
import pytest
from contracts.tiny_retriever import CAPTIONS, save_clip, save_dataset

from hf_captioners.cli.main import main
from hf_captioners.data.captions.load import load_captions
from hf_captioners.modeling.captioner_retriever import CaptionRetriever
from hf_captioners.training.data_arguments import DataArguments, load_rows


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return save_dataset(tmp_path)


@pytest.fixture
def retrieval(tmp_path, dataset):
    clip = save_clip(tmp_path / "clip")
    options = ["--annotations", str(dataset[0]), "--clip", str(clip), "--device", "cpu"]
    assert main(["retrieval", "build", *options, "--out", str(tmp_path / "retrieval")]) == 0
    return tmp_path / "retrieval"


def look_up(retrieval, dataset, *more):
    options = ["--annotations", str(dataset[0]), "--image-root", str(dataset[1]), "--device", "cpu"]
    options += ["--out", str(retrieval.parent / "retrieved.jsonl")]
    return main(["retrieval", "lookup", "--retrieval", str(retrieval), *options, *more])


def test_training_rows_get_their_sentences(retrieval, dataset, tmp_path, capfd):
    assert len(CaptionRetriever.from_pretrained(retrieval)) == 5  # captions of the training split
    assert look_up(retrieval, dataset, "--top", "2") == 0
    file = tmp_path / "retrieved.jsonl"
    assert json.loads(capfd.readouterr().out.splitlines()[-1]) == {"file": str(file), "images": 4, "errors": 0}
    arguments = {"annotations": str(dataset[0]), "image_root": str(dataset[1])}
    train, evaluation = load_rows(DataArguments(**arguments, sentences=[f"retrieved={file}"]))
    for row in train:
        own = {caption.lower().replace("  ", " ").rstrip(" .") for caption in CAPTIONS[row["image_id"]]}
        assert len(row["retrieved"]) == 2 and not own & {text.lower().rstrip(" .") for text in row["retrieved"]}
    assert len(evaluation[0]["retrieved"]) == 2


def test_pictures_that_cannot_be_opened_are_named(retrieval, dataset, capfd):
    (dataset[1] / "2.png").write_bytes(b"no picture")
    assert look_up(retrieval, dataset) == 1
    assert "image 2: " in capfd.readouterr().err
    arguments = {"annotations": str(dataset[0]), "image_root": str(dataset[1]), "check_images": False}
    with pytest.raises(ValueError, match="no sentence for 1 of 3 images: 2"):
        load_rows(DataArguments(**arguments, sentences=[f"retrieved={retrieval.parent / 'retrieved.jsonl'}"]))


def test_tars(retrieval, dataset, tmp_path, capfd):
    """As from the file of captions of the same pictures."""
    rows = load_captions(dataset[0], dataset[1]).cast_column("image", datasets.Image(decode=False))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row in rows:
            captions = json.dumps(row["captions"]).encode()
            for suffix, content in (("png", Path(row["image"]["path"]).read_bytes()), ("json", captions)):
                info = tarfile.TarInfo(f"{row['image_id']}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    tars = ["--annotations", str(tmp_path / "*.tar"), "--device", "cpu"]
    built = ["build", *tars, "--clip", str(tmp_path / "clip"), "--out", str(tmp_path / "of_tars")]
    assert main(["retrieval", *built]) == 0
    assert CaptionRetriever.from_pretrained(tmp_path / "of_tars").captions == (
        CaptionRetriever.from_pretrained(retrieval).captions
    )
    found = ["lookup", *tars, "--retrieval", str(tmp_path / "of_tars"), "--out", str(tmp_path / "found.jsonl")]
    assert main(["retrieval", *found]) == 0
    assert look_up(retrieval, dataset, "--split", "train+restval") == 0
    assert (tmp_path / "found.jsonl").read_text() == (tmp_path / "retrieved.jsonl").read_text()


def test_a_column_that_validation_has_nothing_for(retrieval, dataset, tmp_path):
    (tmp_path / "guides.jsonl").write_text('{"image_id": 0, "caption": "a dog"}\n' * 1)
    with (tmp_path / "guides.jsonl").open("a") as file:
        file.writelines(f'{{"image_id": {number}, "caption": "a dog"}}\n' for number in (1, 2))
    arguments = {"annotations": str(dataset[0]), "image_root": str(dataset[1])}
    train, evaluation = load_rows(DataArguments(**arguments, sentences=[f"guide={tmp_path / 'guides.jsonl'}"]))
    assert train[0]["guide"] == ["a dog"] and "guide" not in evaluation.column_names


@pytest.mark.parametrize(
    "words, message",
    [
        (["build", "--clip", "clip", "--out", "out"], "give --annotations or --data-dir"),
        (["lookup", "--retrieval", "nowhere", "--out", "out", "--annotations", "x"], "no caption retriever"),
    ],
)
def test_mistakes(words, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["retrieval", *words]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("option", ["retrieved", "retrieved=", "=file"])
def test_sentences_that_say_no_file(option):
    with pytest.raises(ValueError, match="expected COLUMN=FILE"):
        load_rows(DataArguments(annotations="x", sentences=[option]))
