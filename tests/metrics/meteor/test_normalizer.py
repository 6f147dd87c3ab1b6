"""The words of METEOR's tokenizer. Expected words are those of the published program (`-norm -writeAlignments`)."""

import pytest

from hf_captioners.metrics.meteor.normalizer import MeteorNormalizer

ABBREVIATIONS = ["Mr", "MR", "St", "Inc", "Nos", "v", "rev", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]
BEFORE_NUMBERS = ["No", "Art", "pp"]


@pytest.fixture(scope="module")
def normalizer():
    return MeteorNormalizer(ABBREVIATIONS, BEFORE_NUMBERS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (" ", ""),
        ("\t", ""),
        ("\u3000", ""),
        ("  a   b  ", "a b"),
        ("A|B", "a | b"),
        ("don't", "don 't"),
        ("do n't", "do n 't"),
        ("woman 's", "woman ' s"),
        ("dogs '", "dogs '"),
        ("'s'", "' s '"),
        ("'''", "\" '"),
        ("''''", '" "'),
        ("``a''", '" a "'),
        ("`a'", "' a '"),
        ("a'b'c", "a 'b'c"),
        ("1's", "1 's"),
        ("90'S", "90's"),
        ("1'x", "1'x"),
        ("a'1", "a ' 1"),
        ("“x”", '" x "'),
        ("x–y", "x - y"),
        ("x—y", "x — y"),
        ("-lrb-", "-lrb-"),
        ("a-b-c", "a b-c"),
        ("a--b", "a b"),
        ("a---b", "a--b"),
        ("a- b", "a- b"),
        ("a.-b", "a. b"),
        ("a-.b", "a-.b"),
        ("..-a", ".. -a"),
        ("1,000.50", "1,000.50"),
        ("1,,2", "1 , , 2"),
        ("1,2,a", "1,2 , a"),
        ("a,.b", "a , .b"),
        (",--,", ", - ,"),
        ("a...b", "a ... b"),
        ("...a", "... a"),
        ("a. . b", "a . . b"),
        ("a.b", "a.b"),
        ("a.b.c.", "abc"),
        ("U.S. X", "us x"),
        ("1.2.", "1.2 ."),
        ("a.1.", "a1"),
        ("é.a.", "éa"),
        ("É. B", "é . b"),
        ("Mr. X", "mr. x"),
        ("mr. X", "mr . x"),
        ("mr. x", "mr. x"),
        ("mr.", "mr ."),
        ("Mr.", "mr."),
        ("No. 5", "no. 5"),
        ("no. 5", "no . 5"),
        ("No. X", "no . x"),
        ("No. (5)", "no . ( 5 )"),
        ("a-b.", "a b ."),
        ("a/b.", "a / b ."),
        ("&amp;", "& amp ;"),
        ("3:30", "3 : 30"),
        ("50% £5 ½", "50 % £ 5 ½"),
        ("a\u00a0b\u3000c", "a b c"),
        ("é.\u00a0a", "é . a"),
        ("a\u200bb", "a \u200b b"),
        ("日本。", "日 本 。"),
        ("a😀b", "a 😀 b"),
        ("ЖÅÉ", "жåé"),
        ("\u212ax", "k x"),  # the Kelvin sign is no letter here, though its lower case is
        ("a.\x0b", "a."),
        (".\x0bЖ.日\x0bé", "ж 日 \x0bé"),
    ],
)
def test_words_are_those_of_the_program(normalizer, text, words):
    assert normalizer(text) == words.split(" ") * bool(words)


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", " a\r b\n"])
def test_line_breaks_are_spaces(normalizer, text):
    assert normalizer(text) == ["a", "b"]


def test_plain_captions_take_the_short_way_to_the_same_words(normalizer):
    plain = "two dogs  run on 3 beaches"
    assert normalizer(plain) == normalizer(plain + " \u3000") == plain.split()
