"""Rows of a training: their names, their captions, and what is refused before the first step."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from contracts.reward_policies import reward_trainer, tiny_policy, tiny_processor, tiny_rows
from contracts.tiny_clip_gpt2 import bpe_tokenizer
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from hf_captioners import DiCOConfig, SCSTConfig, XEConfig, XETrainer, build_vocabulary, build_word_tokenizer
from hf_captioners.training.collator import CaptionCollator, RewardCollator
from hf_captioners.training.rows import chance, check_captions, check_vocabulary, row_name

BROKEN = [
    (None, "must be a list of captions, not None"),
    ([], r"must be a list of captions, not \[\]"),
    ("a dog", "must be a list of captions, not 'a dog'"),
    ({"a": 1}, "must be a list of captions, not {'a': 1}"),
    (5, "must be a list of captions, not 5"),
    ([None], "must be a text with words, not None"),
    (["a", 5], "must be a text with words, not 5"),
    ([["a"]], r"must be a text with words, not \['a'\]"),
    ([b"a"], "must be a text with words, not b'a'"),
    (["a", ""], "must be a text with words, not ''"),
    ([" \n"], r"must be a text with words, not ' \\n'"),
    (["a \ud800"], r"the caption 'a \\ud800' has half of a character \(a surrogate\) at 2"),
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"image_id": 7}, "image_id 7"),
        ({"image_id": 7, "image": {"path": "a/cat.png", "bytes": None}}, "image_id 7 (a/cat.png)"),
        ({"image_id": "cat.png", "image": "cat.png"}, "image_id 'cat.png'"),
        ({"image_id": "\x1b[2J", "image": object()}, r"image_id '\x1b[2J'"),
        ({"image": "cat\r.png"}, r"cat\r.png"),
        ({}, "image_id None"),
    ],
)
def test_names(row, name):
    assert row_name(row) == name


def test_chance_is_that_of_a_name_as_text():
    assert chance("1 2 dog").random() == random.Random("1 2 dog").random()
    assert chance("\ud800").random() != chance("\ud801").random()


@pytest.mark.parametrize("collator", [CaptionCollator, RewardCollator])
@pytest.mark.parametrize(("captions", "message"), BROKEN)
def test_captions_that_are_none(rows, collator, captions, message):
    broken = {**rows[1], "captions": captions}
    with pytest.raises(ValueError, match=rf"image_id 1 \(.*1\.png\): .*{message}"):
        collator(tiny_processor("satic"))([rows[0], broken])


@pytest.mark.parametrize("captions", [["..."], [" !?"]])
def test_captions_without_words(rows, captions):
    broken = {**rows[1], "captions": captions}
    with pytest.raises(ValueError, match=r"image_id 1 .*has no words that the tokenizer knows of"):
        CaptionCollator(tiny_processor("satic"), captions_per_image=2)([rows[0], broken])


def test_labels_beyond_the_vocabulary(rows, tmp_path):
    processor, model = tiny_processor("satic"), tiny_policy("satic")
    size = model.config.vocab_size
    last = processor.tokenizer.convert_ids_to_tokens(size - 1)
    broken = {**rows[1], "captions": [f"a {last}"]}
    message = rf"image_id 1 .*'a {last}' has the token {size - 1}, '{last}', but the model knows {size - 1} tokens"
    with pytest.raises(ValueError, match=message):
        CaptionCollator(processor, vocab_size=size - 1)([rows[0], broken])
    run = XETrainer(model, XEConfig(output_dir=str(tmp_path), use_cpu=True), rows, processing_class=processor)
    assert run.data_collator.vocab_size == size
    assert run.data_collator([rows[0], broken])["labels"].max() == size - 1


@pytest.mark.parametrize("make", [list, Dataset.from_list], ids=["list", "dataset"])
def test_checked_without_opening_a_picture(rows, make):
    few = [{"image_id": row["image_id"], "image": "none.png", "captions": row["captions"]} for row in rows]
    check_captions(make(few))
    with pytest.raises(ValueError, match="image_id 0"):
        check_captions(make([*few[1:], {**few[0], "captions": ["a", None]}]))


@pytest.mark.parametrize("where", ["train", "evaluation", "named"])
@pytest.mark.parametrize("config", [XEConfig, SCSTConfig, DiCOConfig])
def test_before_the_first_step(rows, tmp_path, config, where):
    broken = [*rows[:7], {**rows[7], "captions": ["a", None]}]
    train, evaluation = (broken, None) if where == "train" else (rows, broken)
    evaluation = {"one": rows[:1], "two": broken} if where == "named" else evaluation
    if config is XEConfig:
        args = XEConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
        run = XETrainer(tiny_policy("satic"), args, train, evaluation, processing_class=tiny_processor("satic"))
    else:
        run = reward_trainer(config, tmp_path, train, evaluation=evaluation)
    with pytest.raises(ValueError, match=r"image_id 7 .*must be a text with words, not None"):
        run.train()
    assert run.state.global_step == 0
    assert run.optimizer is None


class TestVocabulary:
    """The tokenizer knows `a` and `dog`."""

    @pytest.fixture()
    def tokenizer(self):
        return build_word_tokenizer(build_vocabulary(["a dog"], 1))

    @pytest.mark.parametrize(("known", "unknown", "level"), [(8, 0, None), (98, 2, "INFO"), (2, 1, "WARNING")])
    def test_unknown_words_are_said(self, tokenizer, known, unknown, level, caplog):
        caplog.set_level(logging.INFO)
        captions = ["a dog"] * known + ["a cat"] * unknown
        check_vocabulary(tokenizer, [{"captions": captions}], 0.25)
        assert [record.levelname for record in caplog.records] == ([] if level is None else [level])
        if level == "INFO":
            assert "1.0% of the words of the training captions are unknown to the captioner, such as 'c" in caplog.text

    @pytest.mark.parametrize("kind", [list, Dataset.from_list])
    def test_too_many_are_refused(self, tokenizer, kind):
        rows = kind([{"captions": ["a cat", "a cow"]}])
        with pytest.raises(ValueError, match=r"50.0% .*at most 25% .*--extend_vocabulary .*--max_unknown_words"):
            check_vocabulary(tokenizer, rows, 0.25)
        check_vocabulary(tokenizer, rows, 0.5)

    @pytest.mark.parametrize(
        ("captions", "extended", "advice"),
        [
            (
                ["a cat", "a cow"],
                3,
                r"given the words that are seen 3 times or more: lower --extend_min_count, or raise",
            ),
            (
                ["一只狗在草地上跑", "两个孩子在水里玩"],
                3,
                r"whole sentences, .* \(--backbone .*\"word_rule\": \"unicode\"",
            ),
            (["小狗在草地上", "两个孩子"], None, r"whole sentences, .* \(--backbone .*\"word_rule\": \"unicode\""),
        ],
    )
    def test_the_advice_is_not_what_was_done_already(self, tokenizer, captions, extended, advice):
        with pytest.raises(ValueError, match=advice) as refused:
            check_vocabulary(tokenizer, [{"captions": captions}], 0.25, extended)
        assert "--extend_vocabulary" not in str(refused.value)

    def test_pieces_of_words_make_any_word(self):
        check_vocabulary(bpe_tokenizer(), [{"captions": ["zebra"]}], 0.0)

    def test_training_does_not_begin(self, rows, tmp_path):
        args = XEConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
        strange = [{**row, "captions": ["zebra crossing"]} for row in rows]
        trainer = XETrainer(
            tiny_policy("expansionnet_v2"), args, strange, processing_class=tiny_processor("expansionnet_v2")
        )
        with pytest.raises(ValueError, match=r"100.0% of the words of the training captions"):
            trainer.train()
        assert list(tmp_path.iterdir()) == []

    def test_training_with_new_words(self, rows, tmp_path):
        options = {"report_to": "none", "use_cpu": True, "max_steps": 1, "save_strategy": "no", "disable_tqdm": True}
        args = XEConfig(output_dir=str(tmp_path), extend_vocabulary=True, extend_min_count=len(rows), **options)
        model, processor = tiny_policy("expansionnet_v2"), tiny_processor("expansionnet_v2")
        size = len(model.get_input_embeddings().weight)
        old = model.get_input_embeddings().weight[0].clone()
        strange = [{**row, "captions": [f"zebra crossing {row['image_id']}"]} for row in rows]  # numbers are seen once
        args.max_unknown_words = 0.4
        trainer = XETrainer(model, args, strange, processing_class=processor)
        trainer.train()
        trainer.save_model()
        loaded = type(model).from_pretrained(tmp_path)
        assert len(loaded.get_input_embeddings().weight) == size + 2 == loaded.config.vocab_size
        assert torch.equal(loaded.get_input_embeddings().weight[0], old)  # of a word that no caption had
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert tokenizer.convert_ids_to_tokens([size, size + 1]) == ["crossing", "zebra"]

    def test_adapters_hold_no_new_words(self, rows, tmp_path):
        args = XEConfig(output_dir=str(tmp_path), extend_vocabulary=True, report_to="none", use_cpu=True)
        model, processor = tiny_policy("expansionnet_v2"), tiny_processor("expansionnet_v2")
        with pytest.raises(ValueError, match=r"with new adapters: .* Extend the captioner first"):
            XETrainer(model, args, rows, processing_class=processor, peft_config=LoraConfig())

    @pytest.mark.parametrize("share", [-0.1, 1.1])
    def test_a_share(self, share, tmp_path):
        with pytest.raises(ValueError, match="max_unknown_words must be from 0 to 1"):
            XEConfig(output_dir=str(tmp_path), max_unknown_words=share)
