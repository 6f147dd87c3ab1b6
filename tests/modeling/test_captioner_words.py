"""Words of any language, against another implementation of Unicode Standard Annex #29 and by hand."""

import unicodedata

import pytest

from hf_captioners.modeling.captioner_words import split_unicode_words

SENTENCES = {
    "English": "A dog's bone (new), 3.5 kg; it's 1,000 m away!",
    "French": "L'homme n'est pas là, aujourd'hui.",
    "Catalan": "El gos fa un col·lapse.",
    "Hindi": "एक कुत्ता घास पर दौड़ रहा है। क़लम",
    "Bengali": "একটি কুকুর ঘাসের উপর দৌড়াচ্ছে।",
    "Tamil": "ஒரு நாய் புல்லில் ஓடுகிறது.",
    "Telugu": "కుక్క గడ్డి మీద",
    "Sinhala": "බල්ලා දුවනවා",
    "Vietnamese": "một con chó chạy trên bãi cỏ",
    "Arabic": "كَلْبٌ يركض على العشب.",
    "Persian": "او می‌رود",
    "Hebrew": "כֶּלֶב של צה״ל רץ",
    "Korean": "개가 잔디 위를 달리고 있다.",
    "Russian": "Собака бежит по траве.",
    "Amharic": "ውሻ፡ይሮጣል",
    "Adlam": "𞤀𞤁𞤂 𞤃",
    "Chinese": "一只狗在草地上奔跑，3只𠀀。",
    "Japanese": "犬がボールを追う。コーヒーも飲む",
}
# without a dictionary a letter with its marks stands alone
THAI = {"สุนัขวิ่ง": ["สุ", "นั", "ข", "วิ่", "ง"], "น้ำ": ["น้ำ"]}


@pytest.mark.parametrize("language", SENTENCES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_of_another_implementation(language: str, form: str) -> None:
    regex = pytest.importorskip("regex", reason="the other implementation; transformers brings it")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", SENTENCES[language]).lower())
    pieces = regex.split(r"(?w)\b", text, flags=regex.V1)
    expected = [piece for piece in pieces if any(map(str.isalnum, piece))]
    assert split_unicode_words([unicodedata.normalize(form, SENTENCES[language])]) == [expected]


@pytest.mark.parametrize("text", THAI)
def test_scripts_without_spaces(text: str) -> None:
    assert split_unicode_words([text]) == [THAI[text]]


def test_one_form() -> None:
    assert split_unicode_words(["L’ÉTÉ", "l'e\u0301te\u0301"]) == [["l'été"], ["l'été"]]


def test_what_is_no_word_vanishes() -> None:
    assert split_unicode_words(["", " \u3000\n", "👨‍👩‍👧 … «»!?؟。、 ❤️"]) == [[], [], []]


def test_a_point_between_letters_separates() -> None:
    assert split_unicode_words(["on grass.Two dogs: red:blue"]) == [["on", "grass", "two", "dogs", "red", "blue"]]


def test_scripts_that_meet() -> None:
    assert split_unicode_words(["Tシャツの犬2匹abc"]) == [["t", "シャツ", "の", "犬", "2", "匹", "abc"]]
