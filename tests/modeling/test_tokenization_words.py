"""The word tokenizer: the original's rule by a second implementation, special tokens, files, and what it refuses."""

import random
import re
import shutil
import unicodedata

import pytest
from transformers import AutoProcessor, AutoTokenizer

from hf_captioners import CaptionerImageProcessor, ExpansionNetV2Processor, build_vocabulary, build_word_tokenizer
from hf_captioners.modeling.captioner_words import known_word_rule
from hf_captioners.modeling.tokenization_words import SPECIAL_TOKENS, split_words

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


def attached(character: str) -> bool:
    return any(unicodedata.category(one)[0] == "M" or one in "\u0e33\u0eb3\u200c\u200d" for one in character)


def marked_words(caption: str) -> list[str]:
    """The rule `"spaces"`, by the Unicode database."""
    words: list[str] = []
    inside = False  # of a word or symbol that goes on
    for character in unicodedata.normalize("NFC", caption.lower()).rstrip():
        if character == " " or character in MARKS:
            inside = False
        elif inside and (attached(character) or (is_letter(character) and is_letter(words[-1][0]))):
            words[-1] += character
        else:
            words.append(character)
            inside = True
    return words


def is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN" or character == "_"


class TestRule:
    def test_random_strings_split_as_the_original_splits_them(self):
        rng = random.Random(0)
        captions = ["".join(rng.choices(NASTY, k=rng.randrange(20))) for _ in range(5000)]
        captions = [caption.replace("Σ", "σ") for caption in captions]  # see the next test
        for caption, words in zip(captions, split_words(captions, "expansionnet_v2"), strict=True):
            assert words == original_words(caption), repr(caption)

    def test_without_marks_the_default_is_the_original(self):
        rng = random.Random(1)
        plain = [one for one in NASTY if not attached(one) and one not in ("Σ", "İ")]  # İ is longer in lower case
        captions = ["".join(rng.choices(plain, k=rng.randrange(20))) for _ in range(2000)]
        for caption, words in zip(captions, split_words(captions), strict=True):
            assert words == original_words(caption), repr(caption)

    def test_a_mark_belongs_to_what_stands_before_it(self):
        """By a second implementation, character by character with the Unicode database."""
        rng = random.Random(2)
        letters = [*"abЯकதগก狗7_ ('.!", "\u093f", "\u0bcd", "\u09be", "\u0e33", "\u0301", "\u200d", "\u200c", "\ufe0f"]
        captions = ["".join(rng.choices(letters, k=rng.randrange(12))) for _ in range(3000)]
        for caption, words in zip(captions, split_words(captions), strict=True):
            assert words == marked_words(caption), repr(caption)

    def test_the_one_difference_is_a_capital_sigma_at_the_end_of_a_word(self):
        assert original_words("ΟΔΟΣ ΣΑΣ") == ["οδος", "σας"]  # Python knows the final form of the letter
        assert split_words(["ΟΔΟΣ ΣΑΣ"], "expansionnet_v2") == split_words(["ΟΔΟΣ ΣΑΣ"]) == [["οδοσ", "σασ"]]

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

    @pytest.mark.parametrize(
        "caption",
        [
            "एक कुत्ता घास पर दौड़ रहा है",
            "একটি কুকুর ঘাসের উপর",
            "ஒரு நாய் புல்லில் ஓடுகிறது",
            "a chó đen đang chạy",
            "כֶּלֶב רָץ",
            "മലയാളം അവന്\u200d",
        ],
    )
    @pytest.mark.parametrize("rule", ["spaces", "unicode"])
    def test_words_of_scripts_with_spaces_stay_whole(self, caption, rule):
        composed = unicodedata.normalize("NFC", caption)
        tokenizer = build_word_tokenizer(build_vocabulary([caption], 1, rule), rule=rule)
        for form in (composed, unicodedata.normalize("NFD", caption)):
            ids = tokenizer(form).input_ids
            assert len(ids) == 2 + len(caption.split())
            assert tokenizer.decode(ids, skip_special_tokens=True) == composed

    def test_unknown_rule(self):
        message = "no rule of words 'words'; expected 'spaces', 'unicode', 'expansionnet_v2' or 'module:function'"
        with pytest.raises(ValueError, match=message):
            split_words(["a"], "words")
        with pytest.raises(ValueError, match=message):
            build_word_tokenizer(["PAD", "SOS", "EOS", "UNK"], rule="words")


def dictionary(text: str) -> list[str]:
    """Stands for a library's segmenter; at most two characters long, and with the punctuation that such ones return."""
    known = ("小狗", "草地", "蓝色")
    return re.findall("|".join([*known, r"[a-z-]+", r"\S"]), text)


class TestScriptsWithoutSpaces:
    CAPTIONS = ["一只小狗在草地上。", "草地上的狗 and a T-shirt", "蓝色的小狗！"]

    def test_characters(self):
        vocabulary = build_vocabulary(self.CAPTIONS, 1, rule="unicode")
        assert {"小", "狗", "t", "shirt"} <= set(vocabulary)
        tokenizer = build_word_tokenizer(vocabulary, rule="unicode")
        assert tokenizer.tokenize(self.CAPTIONS[0]) == list("一只小狗在草地上")

    @pytest.mark.parametrize("rule", [dictionary, f"{__name__}:dictionary"])
    def test_words_of_a_segmenter(self, rule):
        vocabulary = build_vocabulary(self.CAPTIONS, 1, rule=rule)
        assert set(vocabulary) - set(SPECIAL_TOKENS) == {*("一", "只", "小狗", "在", "草地", "上", "的", "狗", "蓝色"),
                                                        *("and", "a", "t", "shirt")}  # fmt: skip
        tokenizer = build_word_tokenizer(vocabulary, rule=rule)
        assert tokenizer.tokenize("狗在蓝色草地上") == ["狗", "在", "蓝色", "草地", "上"]
        assert tokenizer.tokenize("蓝草") == ["UNK", "UNK"]

    @pytest.mark.parametrize("rule", ["unicode", dictionary])
    def test_written_without_spaces_and_saved_with_the_rule(self, rule, tmp_path):
        build_word_tokenizer(build_vocabulary(self.CAPTIONS, 1, rule), rule=rule).save_pretrained(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        decoded = [tokenizer.decode(tokenizer(one).input_ids, skip_special_tokens=True) for one in self.CAPTIONS]
        assert decoded == ["一只小狗在草地上", "草地上的狗 and a t shirt", "蓝色的小狗"]

    def test_the_longest_word_does_not_tear_a_mark_off(self):
        rule = known_word_rule(["กา", "กาน"])
        assert [word for word, _ in rule.pre_tokenize_str("กานกา")] == ["กาน", "กา"]
        assert [word for word, _ in rule.pre_tokenize_str("กา\u0e48")] == ["ก", "า\u0e48"]

    def test_a_function_that_makes_no_words(self):
        with pytest.raises(TypeError, match="expected words"):
            split_words(["狗"], lambda text: text)


class TestVocabulary:
    @pytest.mark.parametrize(("unknown", "level"), [(4, "INFO"), (6, "WARNING")])
    def test_the_share_of_unknown_words_is_reported(self, unknown, level, caplog):
        captions = ["a dog " * 25] * 2 + [" ".join(f"rare{index}" for index in range(unknown))]
        captions[0] = " ".join(captions[0].split()[:-unknown])
        with caplog.at_level("INFO"):
            build_vocabulary(captions, min_count=5)
        assert [record.levelname for record in caplog.records] == [level]
        assert f"{unknown}.0 % of the 100 words of the captions are unknown" in caplog.text

    def test_words_seen_often_enough_and_the_special_tokens_by_code_point(self):
        captions = ["a é wave", "a wave (", "A cat (", "zebra é"]
        assert build_vocabulary(captions, min_count=2) == ["(", "EOS", "PAD", "SOS", "UNK", "a", "wave", "é"]
        assert "zebra" in build_vocabulary(captions, min_count=1)

    def test_words_by_frequency(self):
        captions = ["a b b", "c c c b", "a d"]
        words = build_vocabulary(captions, 1, order="frequency")
        assert words == ["EOS", "PAD", "SOS", "UNK", "b", "c", "a", "d"]
        assert sorted(words) == build_vocabulary(captions, 1)
        with pytest.raises(ValueError, match="order must be one of code_point, frequency, not 'rank'"):
            build_vocabulary(captions, 1, order="rank")

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
