"""The processor of SCD-Net: which sentences a picture gets, and which of them a caption sees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from contracts.tiny_retriever import CAPTIONS, rows, save_clip
from contracts.tiny_scdnet import small_model
from transformers import AutoProcessor
from transformers.utils import logging

import hf_captioners
from hf_captioners import (
    CaptionCollator,
    CaptionerImageProcessor,
    ScdnetProcessor,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.cli.main import main
from hf_captioners.inference.build_retriever import build_retriever
from hf_captioners.inference.captioning import caption_rows
from hf_captioners.modeling.captioner_retriever import CaptionRetriever, RetrieverError

WORDS = ["EOS", "PAD", "SOS", "UNK", "a", "b", "c", "d"]
FEATURES = torch.zeros(2, 3, 8)


@pytest.fixture(scope="module")
def processor():
    return ScdnetProcessor(CaptionerImageProcessor(), build_word_tokenizer(WORDS))


def words(processor, batch):
    return processor.batch_decode(batch["retrieved_ids"])


class TestRetrieved:
    def test_of_a_list_the_first_is_taken(self, processor):
        batch = processor(image_features=FEATURES, retrieved=[["a", "b"], "c"], previous=[["b"], ["d", "a"]])
        assert words(processor, batch) == ["a", "c"]
        assert batch["previous_ids"].tolist() == [[5, 0], [7, 0]]

    def test_a_single_sentence(self, processor):
        batch = processor(image_features=FEATURES[:1], retrieved="a b", previous="c")
        assert words(processor, batch) == ["a b"] and batch["previous_ids"].tolist() == [[6, 0]]

    def test_in_training_every_caption_gets_another_of_the_list(self, processor):
        lists, seen = [["a", "b", "c"], ["a", "d"]], Counter()
        for seed in range(60):
            seeds = [seed, seed + 1000, seed + 2000, seed + 3000]
            first, second, third, fourth = words(
                processor, processor(image_features=FEATURES, retrieved=lists, seeds=seeds)
            )
            assert first != second and third != fourth
            seen.update([first, third])
        assert set(seen) == {"a", "b", "c", "d"} and min(seen.values()) > 8

    def test_a_list_that_is_too_short_repeats(self, processor):
        batch = processor(image_features=FEATURES, retrieved=[["a", "b"], ["c"]], seeds=range(6))
        first, second, third, *others = words(processor, batch)
        assert {first, second} == {"a", "b"} and third == first and others == ["c"] * 3

    def test_a_sentence_for_each_caption_stays(self, processor):
        batch = processor(image_features=FEATURES, retrieved=["a", "b", "c", "d"], seeds=range(4))
        assert words(processor, batch) == ["a", "b", "c", "d"]


SWIN = {"model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1]}
SWIN |= {"num_heads": [2, 2], "window_size": 4}
SIDE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    build_retriever(rows(), save_clip(folder / "clip"), folder / "retrieval", device="cpu")
    return folder / "retrieval"


@pytest.fixture(scope="module")
def folder(retrieval, tmp_path_factory):
    """A tiny SCD-Net that looks at pictures, with its retriever and its code."""
    folder = tmp_path_factory.mktemp("captioner")
    vocabulary = build_vocabulary([text for texts in CAPTIONS for text in texts], min_count=1)
    tokenizer = build_word_tokenizer(vocabulary, model_max_length=13)
    sizes = {"vocab_size": len(tokenizer), "num_bits": 6, "vision_config": SWIN, "feature_size": None}
    model = small_model(**sizes, **special_token_ids(tokenizer), retrieved_positions=13)
    processor = ScdnetProcessor(CaptionerImageProcessor(size=SIDE), tokenizer)
    processor.retriever = CaptionRetriever.from_pretrained(retrieval)
    model.save_pretrained(folder, ship_code=True)
    processor.save_pretrained(folder, ship_code=True)
    return folder


@pytest.fixture(scope="module")
def captioner(folder):
    return hf_captioners.pipeline(model=str(folder))


class TestRetriever:
    """A picture alone is enough where the captioner's folder has a retriever."""

    def test_it_is_saved_and_loaded_with_the_processor(self, folder, retrieval, tmp_path):
        names = {path.name for path in retrieval.iterdir()}
        assert {path.name for path in (folder / "retrieval").iterdir()} == names
        processor = AutoProcessor.from_pretrained(folder)
        processor.save_pretrained(tmp_path)
        for name in names:
            assert (tmp_path / "retrieval" / name).read_bytes() == (retrieval / name).read_bytes()
        (tmp_path / "retrieval" / "captions.jsonl").unlink()
        with pytest.raises(RetrieverError, match=r"captions\.jsonl: cannot be read"):
            AutoProcessor.from_pretrained(tmp_path)

    def test_rows_get_other_captions_and_keep_given_ones(self, captioner, retrieval):
        row = rows()[1]
        opened = captioner.processor.open_row(row)
        expected = CaptionRetriever.from_pretrained(retrieval)([row["image"]], 20, [row["image_id"]])[0]
        assert opened["retrieved"] == expected and not {"a cat sleeps on a mat", "A red dog ."} & set(expected)
        assert captioner.processor.open_row({**row, "retrieved": "waves"})["retrieved"] == "waves"
        with_features = captioner.processor.open_row({**row, "image_features": FEATURES[0]})
        assert with_features["retrieved"] == expected

    def test_all_ways_to_a_caption_see_the_same_sentence(self, captioner, tmp_path, capfd):
        model, processor, images = captioner.model, captioner.processor, [row["image"] for row in rows()]
        sentences = [found[0] for found in processor.retriever(images)]
        assert len(set(sentences)) > 1
        ids = model.generate(**processor(images=images, retrieved=sentences))
        expected = processor.batch_decode(ids)
        assert len(set(expected)) > 1
        assert processor.batch_decode(model.generate(**processor(images=images))) == expected
        assert [one[0]["generated_text"] for one in captioner(images, batch_size=2)] == expected
        records = caption_rows(model, processor, [{"image": image} for image in images], batch_size=3)
        assert [record["caption"] for record in records] == expected
        for number, image in enumerate(images):
            image.save(tmp_path / f"{number}.png")
        assert main(["caption", str(tmp_path), "--model", str(model.config.name_or_path), "--device", "cpu"]) == 0
        lines = capfd.readouterr().out.splitlines()
        assert [json.loads(line)["caption"] for line in lines] == expected

    def test_training_rows_need_a_picture_only(self, captioner):
        collator = CaptionCollator(captioner.processor, captions_per_image=2)
        batch = collator(rows())
        assert len(batch["labels"]) == len(batch["retrieved_ids"]) == 8
        own = [{"a red dog", "the dog runs"}, {"a cat sleeps on a mat", "a red dog"}]
        own += [{"waves on a beach", "the sea at night", "a red dog"}, {"two birds", "a man rides a horse"}]
        seen = captioner.processor.batch_decode(batch["retrieved_ids"])
        for place, sentence in enumerate(seen):
            assert sentence not in own[place // 2]
        assert all(first != second for first, second in zip(seen[::2], seen[1::2], strict=True))
        loss = captioner.model.train()(**batch).loss
        captioner.model.eval()
        assert torch.isfinite(loss)

    def test_where_the_package_is_missing(self, captioner, folder, tmp_path):
        """The folder's code finds sentences too."""
        image = rows()[0]["image"]
        image.save(tmp_path / "0.png")
        code = (
            "import sys, transformers\n"
            "sys.modules['hf_captioners'] = None\n"
            "folder, image = sys.argv[1:]\n"
            "pipe = transformers.pipeline('image-to-text', model=folder, trust_remote_code=True)\n"
            "print('caption:', pipe(image)[0]['generated_text'], '|', pipe.processor.retriever([image])[0][0])\n"
        )
        environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
        words = [sys.executable, "-c", code, str(folder), str(tmp_path / "0.png")]
        run = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert run.returncode == 0, run.stderr
        expected = captioner(image)[0]["generated_text"], captioner.processor.retriever([image])[0][0]
        assert run.stdout.splitlines()[-1] == f"caption: {expected[0]} | {expected[1]}"


class TestWithoutRetriever:
    @pytest.fixture()
    def bare(self, folder, tmp_path):
        shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("retrieval"))
        return tmp_path / "bare"

    def caption(self, tmp_path, folder, *more):
        rows()[0]["image"].save(tmp_path / "0.png")
        return main(["caption", str(tmp_path / "0.png"), "--model", str(folder), "--device", "cpu", *more])

    def test_the_error_says_what_to_do(self, bare, tmp_path, capfd):
        assert self.caption(tmp_path, bare) == 2
        error = capfd.readouterr().err
        for word in ("retrieval build", "retrieval lookup", "--sentences retrieved=FILE", "config.retrieval='none'"):
            assert word in error

    def test_a_folder_may_be_named(self, bare, retrieval, captioner, tmp_path, capfd):
        assert self.caption(tmp_path, bare, "--retrieval", str(retrieval)) == 0
        record = json.loads(capfd.readouterr().out)
        assert record["caption"] == captioner(rows()[0]["image"])[0]["generated_text"]
        assert self.caption(tmp_path, bare, "--retrieval", str(bare)) == 2
        assert "no caption retriever" in capfd.readouterr().err

    def test_without_a_sentence_there_is_a_warning(self, bare, tmp_path, caplog):
        logging.get_logger().warning_once.cache_clear()  # another test may have had it
        assert self.caption(tmp_path, bare, "--retrieval", "none") == 0
        assert "config.retrieval='none'" in caplog.text

    def test_another_captioner_has_no_use_for_one(self, tiny_captioner_dir, tmp_path, capfd):
        assert self.caption(tmp_path, tiny_captioner_dir, "--retrieval", "none") == 2
        assert "--retrieval is for captioners that see retrieved sentences" in capfd.readouterr().err

    def test_a_model_of_regions_names_the_detector(self, tmp_path, capfd):
        tokenizer = build_word_tokenizer(WORDS, model_max_length=13)
        model = small_model(vocab_size=len(tokenizer), num_bits=5, **special_token_ids(tokenizer))
        model.save_pretrained(tmp_path / "regions")
        ScdnetProcessor(CaptionerImageProcessor(size=SIDE), tokenizer).save_pretrained(tmp_path / "regions")
        assert self.caption(tmp_path, tmp_path / "regions") == 2
        error = capfd.readouterr().err
        assert "features --detector" in error and "--regions" in error
