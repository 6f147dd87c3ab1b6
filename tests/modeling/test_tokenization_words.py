"""The word tokenizer: the original's rule by a second implementation, special tokens, files, and what it refuses."""

import random
import re
import shutil

import pytest
from transformers import AutoProcessor, AutoTokenizer

from hf_captioners import CaptionerImageProcessor, ExpansionNetV2Processor, build_vocabulary, build_word_tokenizer
from hf_captioners.modeling.tokenization_words import split_words

MARKS = set("'`.?!,:-;")

# letters whose lower case is longer or elsewhere, combining marks, digits that are no decimal digits, all kinds of
# space and line ends, the separators that only Python calls white space, symbols beyond the basic plane
NASTY = [
    *"aBz_09 '`.?!,:-;\"()[]{}<>&/\\@#$%^*+=|~",
    *"éÉßẞİıſŒǅÅΩσΣςаЯ中文あア한نم",
    *"½²Ⅷ٣०",
    "e\u0301",
    "\u0300",
    "\u200d",
    "\u200b",
    *"\t\n\r\v\f\x1c\x1d\x1e\x1f\x00\x7f\x85\xa0\u2003\u2028\u2029\u3000\ufeff",
    *"’“”–—…€°🐈👩🏽",
    *("PAD", "SOS", "EOS", "UNK"),
]


def original_words(caption: str) -> list[str]:
    """The specification of the original, section 11, with Python's `re`."""
    spaced = re.sub(r"(\W)", r" \1 ", caption.lower().rstrip())
    return [word for word in spaced.split(" ") if word and word not in MARKS]


@pytest.fixture()
def vocabulary():
    return build_vocabulary(["a red wave", "a man's T-shirt (blue)"], min_count=1)


@pytest.fixture()
def tokenizer(vocabulary):
    return build_word_tokenizer(vocabulary, model_max_length=8)


class TestRule:
    def test_random_strings_split_as_the_original_splits_them(self):
        rng = random.Random(0)
        captions = ["".join(rng.choices(NASTY, k=rng.randrange(20))) for _ in range(5000)]
        captions = [caption.replace("Σ", "σ") for caption in captions]  # see the next test
        for caption, words in zip(captions, split_words(captions), strict=True):
            assert words == original_words(caption), repr(caption)

    def test_the_one_difference_is_a_capital_sigma_at_the_end_of_a_word(self):
        assert original_words("ΟΔΟΣ ΣΑΣ") == ["οδος", "σας"]  # Python knows the final form of the letter
        assert split_words(["ΟΔΟΣ ΣΑΣ"]) == [["οδοσ", "σασ"]]

    @pytest.mark.parametrize(
        ("caption", "words"),
        [
            ("A man's T-shirt.", ["a", "man", "s", "t", "shirt"]),
            ('the sign says "STOP" (& go)', ["the", "sign", "says", '"', "stop", '"', "(", "&", "go", ")"]),
            ("two\nlines\tand a tab \n", ["two", "\n", "lines", "\t", "and", "a", "tab"]),
            ("\n leading", ["\n", "leading"]),
            ("snake_case 3rd ½ naïve", ["snake_case", "3rd", "½", "naïve"]),
            ("...", []),
            (" \t\n", []),
            ("", []),
        ],
    )
    def test_examples(self, caption, words):
        assert original_words(caption) == words
        assert split_words([caption]) == [words]

    def test_takes_any_iterable(self):
        assert split_words(caption for caption in ("a b", "c")) == [["a", "b"], ["c"]]


class TestVocabulary:
    def test_words_seen_often_enough_and_the_special_tokens_by_code_point(self):
        captions = ["a é wave", "a wave (", "A cat (", "zebra é"]
        assert build_vocabulary(captions, min_count=2) == ["(", "EOS", "PAD", "SOS", "UNK", "a", "wave", "é"]
        assert "zebra" in build_vocabulary(captions, min_count=1)

    def test_no_frequent_word(self):
        with pytest.raises(ValueError, match=r"min_count=3 times \(4 different words\)"):
            build_vocabulary(["a b", "c d"], min_count=3)
        with pytest.raises(ValueError, match=r"\(0 different words\)"):
            build_vocabulary([])


class TestTokenizer:
    def test_start_words_end(self, tokenizer, vocabulary):
        ids = tokenizer("A  RED wave!").input_ids
        assert [vocabulary[index] for index in ids] == ["SOS", "a", "red", "wave", "EOS"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "a red wave"
        assert tokenizer("A RED wave", add_special_tokens=False).input_ids == ids[1:-1]

    def test_the_index_of_a_word_is_its_id(self, tokenizer, vocabulary):
        assert tokenizer.get_vocab() == {word: index for index, word in enumerate(vocabulary)}
        assert len(tokenizer) == len(vocabulary)

    def test_unknown_words(self, tokenizer):
        assert tokenizer("a giraffe").input_ids[2] == tokenizer.unk_token_id

    @pytest.mark.parametrize("word", ["EOS", "eos", "PAD", "SOS", "UNK", "aEOS", "EOS EOS"])
    def test_a_caption_cannot_write_special_tokens(self, tokenizer, word):
        inner = tokenizer(f"a {word} camera").input_ids[1:-1]
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} & set(inner)

    def test_a_word_that_reads_like_a_special_token_has_an_id_of_its_own(self):
        vocabulary = build_vocabulary(["an EOS camera"], min_count=1)
        tokenizer = build_word_tokenizer(vocabulary)
        assert [vocabulary[index] for index in tokenizer("an EOS camera").input_ids] == [
            *("SOS", "an", "eos", "camera", "EOS")
        ]

    def test_truncation_keeps_the_end(self, tokenizer):
        ids = tokenizer("a red wave " * 5, truncation=True).input_ids
        assert len(ids) == 8
        assert ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert ids[1:-1] == tokenizer("a red wave a red wave").input_ids[1:-1]

    def test_padding_on_the_right(self, tokenizer):
        batch = tokenizer(["a red wave", "a", ""], padding=True)
        pad, bos, eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
        assert [len(row) for row in batch.input_ids] == [5, 5, 5]
        assert batch.input_ids[1][2:] == [eos, pad, pad]
        assert batch.input_ids[2] == [bos, eos, pad, pad, pad]
        assert batch.attention_mask == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


class TestGivenIds:
    WORDS = ["<stop>", "a", "<none>", "wave", "<go>", "<what>"]
    IDS = {"PAD": 2, "SOS": 4, "EOS": 0, "UNK": 5}

    def test_special_tokens_of_other_names(self):
        tokenizer = build_word_tokenizer(self.WORDS, special=self.IDS)
        assert (tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 4)
        assert (tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 5)
        assert tokenizer("a big wave").input_ids == [4, 1, 5, 3, 0]
        assert tokenizer("a <stop> wave").input_ids == [4, 1, 5, 5, 5, 3, 0]  # "<", "stop" and ">"

    def test_they_win_over_the_usual_names(self):
        tokenizer = build_word_tokenizer([*self.WORDS, "PAD", "SOS", "EOS", "UNK"], special=self.IDS)
        assert tokenizer("a").input_ids == [4, 1, 0]

    @pytest.mark.parametrize(
        ("words", "special", "message"),
        [
            (["a", "b", "a", "PAD", "SOS", "EOS", "UNK"], None, r"words that stand twice: \['a'\]"),
            (["a", "PAD", "SOS", "UNK"], None, "no word 'EOS'; give special={'EOS': id"),
            (WORDS, {"PAD": 2, "SOS": 4, "EOS": 0}, "special has no id for 'UNK'; it needs PAD, SOS, EOS, UNK"),
            (WORDS, {**IDS, "PAD": 6}, r"special\['PAD'\]=6 is not an id of the 6 words"),
            (WORDS, {**IDS, "PAD": -1}, r"special\['PAD'\]=-1 is not an id"),
            (WORDS, {**IDS, "PAD": 0}, "must be four different words"),
            ([], None, "no word 'PAD'"),
        ],
    )
    def test_errors(self, words, special, message):
        with pytest.raises(ValueError, match=message):
            build_word_tokenizer(words, special=special)


class TestFiles:
    CAPTIONS = ["A man's EOS (blue)…", "½ red\nwave\x1f", "a giraffe " * 9, ""]

    def same(self, loaded, tokenizer):
        for options in ({}, {"truncation": True}, {"padding": True}, {"add_special_tokens": False}):
            assert loaded(self.CAPTIONS, **options).input_ids == tokenizer(self.CAPTIONS, **options).input_ids
        assert loaded.model_max_length == tokenizer.model_max_length
        assert loaded.special_tokens_map == tokenizer.special_tokens_map
        assert loaded.decode([5, 6, 7]) == tokenizer.decode([5, 6, 7])

    def test_auto_tokenizer(self, tokenizer, tmp_path):
        tokenizer.save_pretrained(tmp_path / "once")
        loaded = AutoTokenizer.from_pretrained(tmp_path / "once")
        self.same(loaded, tokenizer)
        loaded.save_pretrained(tmp_path / "twice")
        self.same(AutoTokenizer.from_pretrained(tmp_path / "twice"), tokenizer)

    def test_auto_processor(self, tiny_captioner_dir, tokenizer, tmp_path):
        shutil.copy(tiny_captioner_dir / "config.json", tmp_path)  # tells transformers which processor it is
        ExpansionNetV2Processor(CaptionerImageProcessor(), tokenizer).save_pretrained(tmp_path)
        self.same(AutoProcessor.from_pretrained(tmp_path).tokenizer, tokenizer)
