"""Captions become the words that metrics compare."""

import gzip
import json
import subprocess
import sys
import textwrap
import unicodedata
import warnings

import pytest

from hf_captioners.metrics import CaptionMetrics, DocumentFrequencies, bleu, cider_d, diversity, ptb_tokenize, tokenize
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.tokens import prepare_pairs, tokenizer_name
from hf_captioners.rewards import BleuReward, CiderDReward, LengthReward, RepetitionReward
from hf_captioners.rewards.cider import default_reward

# of languages that the reference knows the letters of
KNOWN = {
    "Hindi": "एक कुत्ता घास पर दौड़ रहा है",
    "Bengali": "একটি কুকুর ঘাসের উপর",
    "Tamil": "ஒரு நாய் புல்லில் ஓடுகிறது",
    "Vietnamese": "một con chó chạy trên bãi cỏ",
    "Arabic": "كَلْبٌ يركض على العشب",
    "Korean": "개가 잔디 위를 달리고",
    "Russian": "Собака бежит по траве",
}
# in which the reference loses letters, or tears marks and joiners off them
LOST = {
    "Sinhala": "බල්ලා තණකොළ මත දුවනවා",
    "Burmese": "ခွေးတစ်ကောင် ပြေးနေသည်",
    "Khmer": "ឆ្កែ រត់ លើ ស្មៅ",
    "Persian": "سگ می‌دود روی چمن",
    "Adlam": "𞤀𞤁𞤂 𞤃𞤄",
    "Chinese beyond the basic plane": "𠀀 𠀁 狗",
}


def letters(text):
    return [one for one in unicodedata.normalize("NFC", text).lower() if unicodedata.category(one)[0] in "LM"]


class TestPtb:
    def test_english_is_byte_exact(self, shared_parity):
        with gzip.open(shared_parity / "metrics/tokenizer/coco_val2017_25014.json.gz", "rt") as file:
            both = json.load(file)
        assert tokenize(both["raw"], in_sequence=True) == both["out"]

    @pytest.mark.parametrize("language", KNOWN)
    def test_known_letters(self, language):
        assert tokenize([KNOWN[language]]) == ptb_tokenize([KNOWN[language]]) == [KNOWN[language].lower()]

    @pytest.mark.parametrize("language", LOST)
    def test_no_letter_is_lost(self, language):
        assert letters(ptb_tokenize([LOST[language]])[0]) != letters(LOST[language]) or "\u200c" in LOST[language]
        assert letters(tokenize([LOST[language]])[0]) == letters(LOST[language])
        assert tokenize([LOST[language]]) == tokenize([LOST[language]], "unicode")

    def test_a_neighbour_changes_nothing(self):
        captions = ["A dog (new).", LOST["Sinhala"], "the cat's hat"]
        assert tokenize(captions) == [tokenize([one])[0] for one in captions]
        assert tokenize(captions)[0] == "a dog -lrb- new -rrb-"

    @pytest.mark.parametrize("language", [*KNOWN, *LOST])
    def test_one_form(self, language):
        text = (KNOWN | LOST)[language]
        assert tokenize([unicodedata.normalize("NFD", text)]) == tokenize([unicodedata.normalize("NFC", text)])

    @pytest.mark.parametrize("caption", ["I ❤️ dogs", "a 👨‍👩‍👧 walks", "ℹ️ sign", "𝐁𝐨𝐥𝐝 dog", "ﬁve dogs"])
    def test_emoji_and_dressed_up_letters_are_left_to_the_reference(self, caption):
        assert tokenize([caption]) == ptb_tokenize([caption])

    @pytest.mark.parametrize("caption", ["一只狗在草地上奔跑。", "犬が草の上を走っています。", "สุนัขกำลังวิ่งบนสนามหญ้า"])
    def test_a_caption_that_is_one_word_is_warned_about(self, caption):
        with pytest.warns(UserWarning, match="have no spaces between words, .* give tokenizer='unicode'"):
            assert len(tokenize([caption])[0].split()[0]) > 8

    @pytest.mark.parametrize(
        "caption", ["一 只 狗 在 草地 上 奔跑", "犬 が 草 の 上 を 走っています", KNOWN["Arabic"], "a dog"]
    )
    def test_no_warning_where_words_are_apart(self, caption):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokenize([caption])


def cut_at_hyphens(text):
    return text.split("-")


class TestFunctions:
    def test_words(self):
        captions = ["Two-Word Caption.", "e\u0301-", "-"]
        expected = ["two word caption.", "é", ""]
        assert tokenize(captions, cut_at_hyphens) == expected
        assert tokenize(captions, f"{__name__}:cut_at_hyphens") == expected

    def test_names(self):
        assert tokenizer_name(cut_at_hyphens) == tokenizer_name(f"{__name__}:cut_at_hyphens")
        assert tokenizer_name(cut_at_hyphens).endswith("test_tokens:cut_at_hyphens")
        assert tokenizer_name("tokenizers:Regex").startswith("tokenizers:Regex-0.")

    @pytest.mark.parametrize(
        ("tokenizer", "message"),
        [
            ("jieba", "no tokenizer 'jieba'; expected 'ptb', 'unicode' or 'module:function'"),
            ("no_such_module:cut", "tokenizer 'no_such_module:cut' cannot be imported: No module named"),
            ("json:nothing", "tokenizer 'json:nothing' cannot be imported: .* no attribute 'nothing'"),
            ("json:decoder", "is a module, expected a function"),
            (lambda text: [text], "has no name by which the evaluation signature could tell it from others"),
            (json.JSONDecoder().decode, "has no name by which"),
        ],
    )
    def test_refused(self, tokenizer, message):
        with pytest.raises(ValueError, match=message):
            CaptionMetrics(["bleu"], tokenizer=tokenizer)

    def test_refused_by_functions(self):
        with pytest.raises(ValueError, match="has no name by which"):
            bleu(["a"], [["a"]], tokenizer=lambda text: [text])

    @pytest.mark.parametrize("words", ["a dog", 3, [1, 2], None])
    def test_results_that_are_no_words(self, words):
        with pytest.raises(MetricInputError, match=r"makes .* of 'a' .*, expected words"):
            tokenize(["a"], lambda text: words)

    def test_in_sequence_is_of_ptb(self):
        with pytest.raises(ValueError, match="in_sequence=True is about the tokenizer 'ptb', not 'unicode'"):
            CaptionMetrics(["bleu"], in_sequence=True, tokenizer="unicode")
        with pytest.raises(ValueError, match="in_sequence=True is about"):
            tokenize(["a"], "unicode", in_sequence=True)

    def test_functions_of_a_script(self, tmp_path):
        code = """
            import sys, types
            from hf_captioners.metrics.tokens import tokenizer_name
            def cut(text):
                return text.split({separator!r})
            print(tokenizer_name(cut))
        """
        names = []
        for number, separator in enumerate(["-", "-", "+"]):
            path = tmp_path / f"{number}.py"
            path.write_text(textwrap.dedent(code.format(separator=separator)))
            run = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
            names.append(run.stdout.strip())
        assert names[0] == names[1] != names[2]
        assert names[0].startswith("__main__:cut-")


class TestMetrics:
    PREDICTIONS = ["一只狗在草地上跑", "两只猫"]
    REFERENCES = [["一只狗跑在草地", "狗在草地"], ["两只白猫"]]

    def test_the_choice_is_used_and_in_the_signature(self):
        spaced = [" ".join(one) for one in self.PREDICTIONS], [[" ".join(one) for one in r] for r in self.REFERENCES]
        suite = CaptionMetrics(["bleu", "cider_d", "diversity"], tokenizer="unicode")
        scores = suite(self.PREDICTIONS, self.REFERENCES)
        assert "|tokenizer:unicode-lowercase-nopunct|" in scores.signature_text
        assert scores.corpus == {
            **bleu(*spaced, tokenized=True).corpus,
            **cider_d(*spaced, tokenized=True).corpus,
            **diversity(spaced[0], tokenized=True).corpus,
        }

    def test_functions_say_what_cut_their_captions(self):
        scores = cider_d(self.PREDICTIONS, self.REFERENCES, tokenizer="unicode")
        assert scores.settings["tokenizer"] == "unicode-lowercase-nopunct"
        assert cider_d(["a b", "c"], [["a"], ["c"]]).settings["tokenizer"] == "ptb-lowercase-nopunct"
        assert "tokenizer" not in cider_d(["a b", "c"], [["a"], ["c"]], tokenized=True).settings

    def test_document_frequencies(self, tmp_path):
        frequencies = DocumentFrequencies.from_references(self.REFERENCES, tokenizer="unicode")
        assert (frequencies.count("狗"), frequencies.count("草 地")) == (1, 1)
        kept = DocumentFrequencies.cached(tmp_path, self.REFERENCES, tokenizer="unicode")
        assert kept.content_hash == frequencies.content_hash
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert DocumentFrequencies.cached(tmp_path, self.REFERENCES).content_hash != frequencies.content_hash
        with pytest.raises(ValueError, match="tokenizer='unicode' is about texts"):
            DocumentFrequencies.from_references(self.REFERENCES, tokenizer="unicode", tokenized=True)

    def test_rewards(self):
        frequencies = DocumentFrequencies.from_references(self.REFERENCES, tokenizer="unicode")
        reward = CiderDReward(frequencies, tokenizer="unicode")
        expected = cider_d(self.PREDICTIONS, self.REFERENCES, tokenizer="unicode").per_image["cider_d"]
        assert reward(self.PREDICTIONS, captions=self.REFERENCES) == pytest.approx(expected.tolist())
        expected = bleu(self.PREDICTIONS, self.REFERENCES, tokenizer="unicode").per_image["bleu_2"]
        assert BleuReward(2, tokenizer="unicode")(self.PREDICTIONS, captions=self.REFERENCES) == pytest.approx(expected)
        assert LengthReward(maximum=5, tokenizer="unicode")(self.PREDICTIONS) == [-3.0, 0.0]
        assert RepetitionReward(n=1, tokenizer="unicode")(["狗狗猫"]) == [pytest.approx(-1 / 3)]
        rows = [{"image_id": number, "captions": several} for number, several in enumerate(self.REFERENCES)]
        assert default_reward(rows, tokenizer="unicode").scorer.document_frequencies.count("狗 </s>") == 0
        assert default_reward(rows, tokenizer="unicode").scorer.document_frequencies.count("猫 </s>") == 1


def test_raw_captions_are_tokenised_each_for_itself():
    tokens = prepare_pairs(["A dog,\nrunning.", "The cat's hat!"], [["One."], ["Two", "Three; four"]])
    assert tokens == (["a dog running", "the cat 's hat"], [["one"], ["two", "three four"]])


def test_tokenized_captions_stay_as_they_are():
    assert prepare_pairs(["A dog ."], [["x  y"]], tokenized=True) == (["A dog ."], [["x  y"]])


def test_what_is_no_list_of_captions():
    with pytest.raises(MetricInputError, match="expected a list of strings, not one str"):
        tokenize("a dog", "unicode")
    with pytest.raises(MetricInputError, match="caption 1: expected a string, not None"):
        tokenize(["a", None])
