"""The processor of CLIP-GPT2: byte pairs and words, prompts, features, anchors, tags, training extras, files."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessorPil,
    PreTrainedTokenizerFast,
)

from hf_captioners import (
    CaptionCollator,
    CaptionerImageProcessor,
    ClipGpt2Config,
    ClipGpt2ForImageCaptioning,
    ClipGpt2Processor,
    build_tags,
    build_vocabulary,
    build_word_tokenizer,
    pipeline,
)
from hf_captioners.modeling.tags_clip_gpt2 import NO_CONTENT_WORDS, content_words

CAPTIONS = ["A dog barks at two men.", "Two men ride a big red wave, quickly.", "The dog rides a wave."]
TAGS = ["dog", "men", "wave", "barks", "ride"]


def bpe() -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(CAPTIONS, vocab_size=320, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, bos_token=end, eos_token=end, unk_token=end)


def words(**options) -> PreTrainedTokenizerFast:
    return build_word_tokenizer(build_vocabulary(CAPTIONS, min_count=1), **options)


@pytest.fixture(params=[bpe, words], ids=["byte pairs", "words"])
def processor(request):
    image_processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
    return ClipGpt2Processor(image_processor, request.param(), caption_length=40, tags=TAGS)


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False).input_ids


class TestCaptions:
    def test_labels_are_the_tokens_and_the_end(self, processor):
        labels = processor(text_target=CAPTIONS[:2])["labels"]
        end = processor.tokenizer.eos_token_id
        for row, caption in zip(labels.tolist(), CAPTIONS[:2], strict=True):
            expected = [*ids_of(processor, caption), end]
            assert row == expected + [-100] * (labels.shape[1] - len(expected))
        first = [token for token in labels[0].tolist() if token >= 0]
        assert processor.batch_decode([[processor.tokenizer.bos_token_id, *first, end, end]]) == [
            "A dog barks at two men." if processor.tokenizer.bos_token == "<|endoftext|>" else "a dog barks at two men"
        ]

    def test_a_tokenizer_without_padding_pads_with_its_end(self):
        tokenizer = bpe()
        assert tokenizer.pad_token is None
        processor = ClipGpt2Processor(CaptionerImageProcessor(), tokenizer)
        assert processor.tokenizer.pad_token_id == processor.tokenizer.eos_token_id == 0

    def test_long_captions_are_cut_and_end_all_the_same(self, processor):
        processor.caption_length = 4
        labels = processor(text_target="a dog barks at two men")["labels"]
        ids = ids_of(processor, "a dog barks at two men")
        assert labels.tolist() == [[*ids[:4], processor.tokenizer.eos_token_id]]
        short = ClipGpt2Processor(CaptionerImageProcessor(), words(model_max_length=5))
        assert short(text_target="a dog barks at two men")["labels"].shape == (1, 4)  # start, 3 words, end

    def test_white_space_and_special_tokens_in_a_caption_are_text(self, processor):
        plain = processor(text_target=CAPTIONS[0])["labels"]
        assert torch.equal(processor(text_target=" A dog  barks\nat two men. \n")["labels"], plain)
        for special in set(processor.tokenizer.all_special_tokens):
            inside = processor(text_target=f"a dog {special} barks")["labels"][0]
            assert (inside[:-1] != processor.tokenizer.eos_token_id).all()

    def test_prompts_begin_with_the_start_token(self, processor):
        prompt = processor(text="a dog barks")["decoder_input_ids"]
        assert prompt.tolist() == [[processor.tokenizer.bos_token_id, *ids_of(processor, "a dog barks")]]
        assert torch.equal(processor(text="a dog barks ")["decoder_input_ids"], prompt)
        assert processor(text=["", ""])["decoder_input_ids"].shape == (2, 1)

    def test_refuses_what_cannot_be(self):
        with pytest.raises(ValueError, match="caption_length must be at least 1, not 0"):
            ClipGpt2Processor(CaptionerImageProcessor(), bpe(), caption_length=0)
        with pytest.raises(ValueError, match="max_anchors must be at least 0, not -1"):
            ClipGpt2Processor(CaptionerImageProcessor(), bpe(), max_anchors=-1)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe()._tokenizer)
        with pytest.raises(ValueError, match="the tokenizer has no end token"):
            ClipGpt2Processor(CaptionerImageProcessor(), tokenizer)


class TestFeatures:
    @pytest.mark.parametrize(
        "features",
        [
            torch.ones(3, 5),
            torch.ones(3, 1, 5),
            np.ones((3, 5), dtype=np.float32),
            [torch.ones(5)] * 3,
            [np.ones(5)] * 3,
            [torch.ones(1, 5)] * 3,
            [[1.0] * 5] * 3,
        ],
        ids=["B D", "B 1 D", "array", "list of D", "list of arrays", "list of 1 D", "nested list"],
    )
    def test_embeddings_are_pictures(self, processor, features):
        batch = processor(image_features=features)
        assert batch["image_features"].shape == (3, 1, 5)
        assert batch["image_attention_mask"].tolist() == [[1]] * 3

    def test_regions_are_padded(self, processor):
        batch = processor(image_features=[torch.ones(2, 5), torch.ones(4, 5), torch.ones(5)])
        assert batch["image_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
        assert processor(image_features=torch.ones(2, 7, 5))["image_features"].shape == (2, 7, 5)
        assert processor(image_features=torch.ones(5))["image_features"].shape == (1, 1, 5)
        with pytest.raises(ValueError, match="contains NaN"):
            processor(image_features=torch.full((3, 5), torch.nan))


class TestAnchors:
    def test_each_word_is_its_tokens(self, processor):
        batch = processor(image_features=torch.ones(3, 5), anchors=[["dog", "barks"], [], ["Wave"]])
        expected = [[*ids_of(processor, " dog"), *ids_of(processor, " barks")], [], ids_of(processor, " Wave")]
        width = max(map(len, expected))
        assert batch["anchor_ids"].tolist() == [one + [-100] * (width - len(one)) for one in expected]
        assert processor(text="", anchors=[[]])["anchor_ids"].shape == (1, 0)

    def test_a_word_is_tokenised_as_inside_a_sentence(self):
        processor = ClipGpt2Processor(CaptionerImageProcessor(), bpe())
        sentence = ids_of(processor, "The dog rides a wave.")
        anchor = processor(text="", anchors=[["dog"]])["anchor_ids"][0].tolist()
        assert any(sentence[i : i + len(anchor)] == anchor for i in range(len(sentence)))

    @pytest.mark.parametrize(
        ("anchors", "message"),
        [
            (["dog", "bark"], r"anchors\[0\] must be a list of words, as in anchors=\[\['dog', 'bark'\]\], not 'dog'"),
            ("dog", r"anchors\[0\] must be a list of words"),
            ([["dog"], ["a", "b", "c", "d", "e", "f"]], r"anchors\[1\] has 6 words, more than max_anchors=5"),
            ([["dog", " "]], r"anchors\[0\]: ' ' is not in the tokenizer's vocabulary"),
            ([], "anchors is empty"),
        ],
    )
    def test_refuses_other_things(self, processor, anchors, message):
        with pytest.raises(ValueError, match=message):
            processor(text="", anchors=anchors)

    def test_refuses_words_that_a_word_vocabulary_lacks(self):
        processor = ClipGpt2Processor(CaptionerImageProcessor(), words())
        with pytest.raises(ValueError, match=r"anchors\[0\]: 'zebra' is not in the tokenizer's vocabulary"):
            processor(text="", anchors=[["dog", "zebra"]])

    def test_generate_takes_what_the_processor_made(self, processor):
        torch.manual_seed(0)
        config = ClipGpt2Config(
            features_only=True,
            feature_size=5,
            text_config={"vocab_size": len(processor.tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 2},
            **{f"{name}_token_id": getattr(processor.tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")},
        )
        model = ClipGpt2ForImageCaptioning(config).eval()
        features = torch.randn(2, 5)
        batch = processor(image_features=features, text=["a dog"] * 2, anchors=[["dog", "men"], []])
        out = model.generate(**batch, num_beams=2, max_length=9)
        assert all(one.startswith("a dog") for one in processor.batch_decode(out))
        loss = model(**processor(image_features=features, text_target=CAPTIONS[:2], anchors=[["dog"], []])).loss
        assert loss.isfinite()


class TestTags:
    def test_content_words(self):
        assert content_words("The DOG's dog, barks: dogs!", set(TAGS)) == ["dog", "barks"]

    def test_the_most_frequent_nouns_and_verbs(self):
        counts = {"men": 2, "wave": 2, "dog": 2, "barks": 1, "ride": 1, "rides": 1, "quickly": 1}
        assert build_tags(CAPTIONS, min_count=1) == sorted(counts, key=lambda word: (-counts[word], word))
        assert build_tags(CAPTIONS, size=2, min_count=2) == ["dog", "men"]
        assert not NO_CONTENT_WORDS & set(counts)
        with pytest.raises(ValueError, match="no content word of the captions is seen min_count=9 times"):
            build_tags(CAPTIONS, min_count=9)
        with pytest.raises(ValueError, match="size must be at least 1"):
            build_tags(CAPTIONS, size=0)

    def test_targets_are_the_words_of_any_caption(self, processor):
        batch = processor(image_features=torch.ones(2, 5), tag_captions=[CAPTIONS[:2], ["nothing"]])
        assert batch["tag_targets"].tolist() == [[1.0, 1.0, 1.0, 1.0, 1.0], [0.0] * 5]
        batch = processor(image_features=torch.ones(1, 5), tag_captions=[CAPTIONS[2:]])
        assert batch["tag_targets"].tolist() == [[1.0, 0.0, 1.0, 0.0, 0.0]]

    def test_tokens_of_the_tags(self, processor):
        assert processor.tag_token_ids() == [ids_of(processor, f" {tag}") for tag in TAGS]
        plain = ClipGpt2Processor(CaptionerImageProcessor(), bpe())
        for call in (plain.tag_token_ids, lambda: plain(text="", tag_captions=[[]])):
            with pytest.raises(ValueError, match="tags=build_tags"):
                call()


class TestTraining:
    def row(self, image_id, captions=CAPTIONS):
        return {"image_id": image_id, "image_features": torch.ones(1, 5), "captions": captions}

    def anchors_of(self, processor, batch):
        table = {tuple(tokens): tag for tag, tokens in zip(TAGS, processor.tag_token_ids(), strict=True)}

        def parse(ids):
            for size in range(1, len(ids) + 1):
                if tuple(ids[:size]) in table:
                    return [table[tuple(ids[:size])], *parse(ids[size:])]
            assert not ids
            return []

        return [parse([token for token in row if token >= 0]) for row in batch["anchor_ids"].tolist()]

    def test_a_caption_shows_its_own_words_half_the_time(self, processor):
        collator = CaptionCollator(processor, captions_per_image=3)
        batch = collator([self.row(index) for index in range(200)])
        anchors, captions = self.anchors_of(processor, batch), processor.batch_decode(batch["labels"].clamp(min=0))
        assert len(anchors) == len(captions) == 600
        orders = collections.defaultdict(set)
        for mine, caption in zip(anchors, captions, strict=True):
            if mine:
                assert sorted(mine) == sorted(content_words(caption, TAGS))
                orders[caption].add(tuple(mine))
        assert all(len(one) > 1 for one in orders.values())  # in any order
        assert 240 < sum(not one for one in anchors) < 360  # 300 expected, standard deviation 12
        assert batch["tag_targets"].shape == (200, 5)

    def test_tag_targets_alone(self, processor):
        processor.max_anchors = 0
        batch = CaptionCollator(processor)([self.row(0), self.row(1)])
        assert batch["anchor_ids"].shape == (2, 0) and batch["tag_targets"].shape == (2, 5)

    def test_at_most_so_many(self, processor):
        processor.max_anchors = 1
        batch = CaptionCollator(processor, captions_per_image=3)([self.row(index) for index in range(40)])
        anchors = self.anchors_of(processor, batch)
        assert {len(one) for one in anchors} == {0, 1}
        assert {one[0] for one in anchors if one} == set(TAGS)

    def test_chance_is_a_function_of_seed_epoch_and_picture(self, processor):
        collator = CaptionCollator(processor, seed=3)
        rows = [self.row(index) for index in range(30)]
        together = self.anchors_of(processor, collator(rows))
        assert [self.anchors_of(processor, collator([one]))[0] for one in rows] == together
        collator.epoch = 1
        assert self.anchors_of(processor, collator(rows)) != together

    def test_the_choice_of_captions_is_that_without_anchors(self, processor):
        rows = [self.row(index) for index in range(30)]
        with_tags = CaptionCollator(processor)(rows)["labels"]
        processor.tags = None
        assert processor.training_extras([["a dog"]], [["a dog"]], [random.Random(0)]) == {}
        batch = CaptionCollator(processor)(rows)
        assert torch.equal(batch["labels"], with_tags)
        assert set(batch) == {"image_features", "image_attention_mask", "labels"}

    def test_evaluation_is_without(self, processor):
        collator = CaptionCollator(processor)
        collator.training = False
        assert set(collator([self.row(0)])) == {"image_features", "image_attention_mask", "labels"}


class TestFiles:
    def test_saved_and_loaded(self, processor, tmp_path):
        processor.caption_length, processor.max_anchors = 7, 3
        ClipGpt2Config(features_only=True).save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert type(loaded) is ClipGpt2Processor
        assert (loaded.caption_length, loaded.max_anchors, loaded.tags) == (7, 3, TAGS)
        inputs = {"text_target": CAPTIONS, "anchors": [["dog"]], "images": Image.new("RGB", (40, 30), "red")}
        ours, theirs = processor(**inputs), loaded(**inputs)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert AutoTokenizer.from_pretrained(tmp_path)(CAPTIONS).input_ids == processor.tokenizer(CAPTIONS).input_ids
        assert type(AutoImageProcessor.from_pretrained(tmp_path)) is type(processor.image_processor)

    def test_from_two_folders(self, shared_data, tmp_path):
        """GPT-2's real tokenizer beside CLIP's preprocessing, its files as on the Hub."""
        CLIPImageProcessorPil().save_pretrained(tmp_path / "clip")
        gpt2 = shared_data / "gpt2_tokenizer"
        processor = ClipGpt2Processor.from_encoder_decoder_pretrained(
            tmp_path / "clip", gpt2, tags=["dog", "surfboard"]
        )
        ClipGpt2Config(features_only=True).save_pretrained(tmp_path / "captioner")
        processor.save_pretrained(tmp_path / "captioner")
        for one in (processor, AutoProcessor.from_pretrained(tmp_path / "captioner")):
            assert type(one.image_processor) is CLIPImageProcessorPil
            labels = one(text_target="A dog runs.")["labels"]
            assert labels.tolist() == [[32, 3290, 4539, 13, 50256]]
            assert one.tag_token_ids() == [[3290], [9053, 3526]]
            assert one(images=Image.new("L", (300, 200)), text="a photo of ")["pixel_values"].shape == (1, 3, 224, 224)
            assert one.batch_decode([[50256, 32, 3290, 4539, 13, 50256, 50256]]) == ["A dog runs."]
            assert one(text="a photo of")["decoder_input_ids"].tolist() == [[50256, 64, 4590, 286]]
        assert type(AutoImageProcessor.from_pretrained(tmp_path / "captioner")) is CLIPImageProcessorPil
        assert AutoTokenizer.from_pretrained(tmp_path / "captioner")("A dog runs.").input_ids == [32, 3290, 4539, 13]

    @pytest.mark.parametrize("processor", [bpe], indirect=True)
    def test_pipeline_takes_embeddings_regions_and_pictures(self, processor, tmp_path):
        torch.manual_seed(0)
        ids = {name: getattr(processor.tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        config = ClipGpt2Config(
            vision_config={"model_type": "mobilenet_v2", "image_size": 32, "depth_multiplier": 0.1, "min_depth": 8},
            feature_size=1280,
            text_config={"vocab_size": len(processor.tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 2},
            **ids,
        )
        model = ClipGpt2ForImageCaptioning(config).eval()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        captioner = pipeline(model=str(tmp_path), max_new_tokens=5, num_beams=2)
        picture = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        embedding = model.extract_image_features(processor(images=picture)["pixel_values"])[0]
        assert captioner(embedding) == captioner(picture)
        assert len(captioner(torch.randn(7, 1280))) == 1  # seven regions of one picture
        several = captioner([embedding, torch.randn(7, 1280)], batch_size=2)
        assert several[0] == captioner(picture)
        prompted = captioner(picture, prompt="a dog")[0]["generated_text"]
        assert prompted.startswith("a dog")
