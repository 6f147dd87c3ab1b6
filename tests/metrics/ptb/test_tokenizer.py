from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from contracts.metric import SETS, MetricCase

from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.ptb.rules import token_rules
from hf_captioners.metrics.ptb.tokenizer import REMOVED, ptb_tokenize, ptb_tokens

# what Stanford's PTBTokenizer (stanford-corenlp 3.4.1, -preserveLines -lowerCase) gives for a line before "A zqx"
REFERENCE = [
    # abbreviations
    ("Mr. Smith of Smith Co. Ltd. met Dr. Who.", "mr. smith of smith co. ltd. met dr. who ."),
    ("No. 5 and no. x, pp. 3", "no. 5 and no . x , pp. 3"),
    ("The U.S. The end of the U.K., etc.", "the u.s. . the end of the u.k. , etc. ."),
    ("plan B. The end", "plan b . the end"),
    ("Canada-U.S. and non-U.S. trade", "canada-u.s. and non-u.s. trade"),
    ("A dog on Main St. and 5th Ave. Zoe", "a dog on main st. and 5th ave. zoe"),
    ("Ark. ark. MFG. mfg. Inc. A", "ark. ark . mfg . mfg. inc. . a"),
    ("dog., cat.; A&B., 1a., x-y.:", "dog. , cat. ; a&b. , 1a. , x-y. :"),
    # contractions
    ("I can't, you'd've, we're he's", "i ca n't , you 'd 've , we 're he 's"),
    ("cannot gonna gotta gimme lemme wanna cannots", "can not gon na got ta gim me lem me wan na cannots"),
    ("'tis 'twas 'twere 'em 'til 'cause", "'t is 't was ` twere 'em 'til 'cause"),
    ("rock'n'roll 'n' fish 'n chips", "rock 'n' roll 'n' fish 'n chips"),
    ("d'you o'clock O'Reilly l'eau c'mon C’mon y'all", "d'you o'clock o'reilly l'eau c'mon c’mon y' all"),
    ("isn’t don‘t it`s it´s DON'T", "is n't do n`t it ` s it ´ s do n't"),
    ("the '80s, '90 and 1980's, '13.", "the '80s , '90 and 1980 's , ' 13 ."),
    ("Hawai'i Qur'an ma'am ev'ry li'l cont'd.", "hawai'i qur ` an ma'am ev'ry li'l cont'd."),
    # quotes
    ('a "b" \'cd\' `e\' "$5" "é" ""', "a `` b '' ` cd ' ` e ' `` $ 5 '' '' é '' '' ''"),
    ("“a” ‘b’ „c“ «d» ‹e› “‘f’”", "`` a '' ` b ' „ c `` `` d '' ` e ' ``` f '''"),
    ("''a'' ``b'' '''c", "'' a '' `` b '' '' ' c"),
    ("5'10\" tall", "5 ' 10 '' tall"),
    # numbers
    ("1 1/2 1-1/2 ½ 2⅓ ¼¾ ⅛ 1⁄2", "1\xa01/2 1-1/2 1/2 2 1/3 1/4 3/4 ⅛ 1⁄2"),
    ("$5 US$5 £5 €5 5¢ ¥5 #1 5% -5 +5 .5", "$ 5 us$ 5 # 5 $ 5 5 cents ¥ 5 # 1 5 % -5 +5 .5"),
    (
        "(555) 123-4567 and 555-1234 and +1 555 123 4567",
        "-lrb-555-rrb-\xa0123-4567 and 555-1234 and +1 555\xa0123\xa04567",
    ),
    ("12/25/2013 2013-11-14 3:30pm 15:45", "12/25/2013 2013-11-14 3:30 pm 15:45"),
    ("1,000.50 1.5a 10x10 1.2.3.", "1,000.50 1.5 a 10x10 1.2.3 ."),
    ("m² x⁻³ H₂O ٣٤ １２", "m ² x ⁻³ h ₂ o ٣٤ １２"),
    # addresses
    (
        "http://a.com/b?c=d. www.A.Com/Path.x, foo.com/x foo.io",
        "http://a.com/b?c=d . www.a.com/path.x , foo.com / x foo.io",
    ),
    ("me@example.com, <a@b.org> @user_1 #tag1 # 1", "me@example.com, <a@b.org> @user_1 #tag 1 # 1"),
    ("file.jpg 1.jpg. 1.jpg) a.b.c c++ C# F#", "file.jpg 1.jpg . 1 . jpg -rrb- a.b.c c++ c# f#"),
    # markup
    (
        '<b>x</b> <br /> <a href="x y"> <a b=c> < b > <3 <unk> </s>',
        '<b> x </b> <br\xa0/> <a\xa0href="x\xa0y"> < a b = c > < b > < 3 <unk> </s>',
    ),
    (
        "&amp; &lt;b&gt; caf&eacute; dog&apos;s &quot;x&quot; &mdash; &#39; &nbsp;x &copy;",
        "& < b > caf&eacute; dog 's `` x '' -- &#39; x & copy ;",
    ),
    ("AT&amp;T R&B a&b S&P-500", "at&t r&b a & b s&p-500"),
    # joined words
    ("state-of-the-art a,b-c a_b x- -y --z anti-", "state-of-the-art a,b-c a_b x - - y -- z anti-"),
    ("and/or w/ w/o a/b/c/d tub\\/shower", "and/or w / w/o a/b/c / d tub\\/shower"),
    ("dog.cat dog!cat dog...cat dog,cat dog;cat dog:cat", "dog.cat dog!cat dog ... cat dog , cat dog ; cat dog : cat"),
    # punctuation
    ("... .... ...... . . . .. … !!! ?! --- ----- – —", "... ... ... ... . ... !!! ?! -- ----- -- --"),
    (
        "(a) [b] {c} -LRB- * ** \\* ^ ~ | _ __ << >>",
        "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- -lrb- * ** \\* ^ ~ | _ __ << >>",
    ),
    (":-) :) ;( :D =P :/ ^_^ (-_-) D:", ":--rrb- :-rrb- ;-lrb- :d =p : / ^_^ -lrb--_--rrb- d :"),
    # characters
    ("naïve Straße ΣΟΦΟΣ Москва 中文 أهل हिन्दी ไทย", "naïve straße σοφος москва 中文 أهل हिन्दी ไทย"),
    ("so\xadft \xad a\xa0b a\u3000b a\u200bb a\x01b a\x85b", "soft - a b a b a b a b a ... b"),
    ("😀 dog😀 👩\u200d👩 ❤\ufe0f http://😀 ②Ⅳ ♥ ™", "dog ❤ http://😀 ② ♥ ™"),
    ("e\u0301té １é ＡＢ，（ＣＤ）", "e\u0301té １é ａｂ ， （ ｃｄ ）"),
]

# what hostile lines are made of, for the comparison with a running reference
PIECES = re.split(
    r"[ \n]+",
    """
    Mr. Dr. St. Co. Ltd. Inc. etc. e.g. U.S. U.K. non-U.S. Ph.D. p.m. J. x. No. no. pp. fig. art. Ark. ark. Jan.
    t.v. dog. The A I
    can't DON'T isn’t it's dogs' I'm cannot gonna lemme 'tis 'twas 'em 'n' rock'n'roll d'you o'clock O'Reilly l'eau
    y'all c'mon ma'am
    '80s '90 1980s 80's 's 'll n't "a" 'ab' `b' “c” ‘d’ «e» „f“ '' `` " ' ` ’ ‘
    1 10 1,000 3.14 .5 -5 +5 5% $5 US$ £5 €5 5¢ #1 1st 1/2 3/4 ½ ⅓ 1⁄2 24/7 12/25/13 2013-11-14 555-1234 (555) 3:30
    3:30pm 10am 5'10"
    http://a.com/b?c=d www.a.com a.com/x.html foo.org me@ex.com <a@b.c> @user #tag #tag1 file.jpg 1.jpg index.html
    C++ F#
    &amp; &lt; &quot; &apos; &#39; &eacute; caf&eacute; AT&amp;T R&B a&b <b> </b> <br/> <unk> <3 < >
    t-shirt x-ray state-of-the-art and/or w/o a/b/c a,b a.b a_b a!b a;b -x x- -- --- - / | \\ * ** _ ~ ^ = + @ # $ %
    . .. ... .... , ; : ! ? !! ?! ( ) [ ] { } … – — · • ° © ™ ♥ ★ :-) :) ;( :D ^_^
    café naïve Straße Ελλάδα Москва 中文 日本 한국 عربي हिन्दी é e\u0301 so\u00adft \u00ad a\u00a0b \u3000 \u200b 😀 ❤️ ①
    １２ ＡＢ （ ， 。
    """.strip(" \n"),
)
JOINTS = [" "] * 10 + ["", "", "", ".", ",", ". ", ", ", "-", "/", "'", '"', "'s ", " (", ") ", "...", "  ", "\t", ": "]


def run_reference(lines: list[str], folder: Path) -> list[str]:
    """The reference's tokens of each line, all lines in one process."""
    package = pytest.importorskip("pycocoevalcap", reason="the reference tokenizer comes with pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("the reference tokenizer needs Java")
    jar = Path(next(iter(package.__path__))) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    (folder / "captions.txt").write_bytes("\n".join(lines).encode())
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    run = subprocess.run(
        [*command, str(folder / "captions.txt")],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        check=True,
    )
    return [line.rstrip(" ") for line in run.stdout.decode().split("\n")][: len(lines)]


@pytest.mark.parametrize(("caption", "expected"), REFERENCE, ids=range(len(REFERENCE)))
def test_tokens_of_the_reference(caption: str, expected: str) -> None:
    assert ptb_tokens(caption) == expected.split(" ")
    assert ptb_tokenize([caption]) == [" ".join(token for token in expected.split(" ") if token not in REMOVED)]


def test_weird_captions(shared_parity: Path) -> None:
    entries = json.loads((shared_parity / "metrics/tokenizer/weird.json").read_text())
    wrong = []
    for entry, tokens in zip(entries, ptb_tokenize([entry["raw"] for entry in entries]), strict=True):
        raw = " ".join(ptb_tokens(entry["raw"]))
        if tokens not in [entry["out"], *entry.get("alt_out", [])] or raw not in [
            entry["java"],
            *entry.get("alt_java", []),
        ]:
            wrong.append((entry["raw"], raw, entry["java"]))
    assert wrong == []


def test_captions_of_val2017(shared_parity: Path) -> None:
    with gzip.open(shared_parity / "metrics/tokenizer/coco_val2017_25014.json.gz", "rt") as file:
        both = json.load(file)
    alone = ptb_tokenize(both["raw"])
    allowed = both["context_sensitive"]
    wrong = [
        (caption, tokens, expected)
        for position, (caption, tokens, expected) in enumerate(zip(both["raw"], alone, both["out"], strict=True))
        if tokens != expected and tokens not in allowed.get(str(position), {"alt_out": []})["alt_out"]
    ]
    assert wrong == []
    assert ptb_tokenize(both["raw"], in_sequence=True) == both["out"]  # made in one run, in this order
    following = [*both["raw"][1:], None]
    raw = [" ".join(ptb_tokens(one, after)) for one, after in zip(both["raw"], following, strict=True)]
    assert raw == both["java"]


@pytest.mark.parametrize("name", SETS)
def test_captions_of_the_metric_sets(metric_case: Callable[[str], MetricCase], name: str) -> None:
    case = metric_case(name)
    assert ptb_tokenize(case.predictions) == case.tokens[0]
    assert [ptb_tokenize(several) for several in case.references] == case.tokens[1]


def test_short_cut_for_plain_captions(shared_parity: Path) -> None:
    """Plain captions never meet the rules; the rules give the same."""
    with gzip.open(shared_parity / "metrics/tokenizer/coco_val2017_25014.json.gz", "rt") as file:
        captions = json.load(file)["raw"][::5]
    by_rules = [" ".join(token for token in ptb_tokens(caption) if token not in REMOVED) for caption in captions]
    assert ptb_tokenize(captions) == by_rules


def test_hostile_captions_against_the_running_reference(tmp_path: Path) -> None:
    rng = random.Random(20)
    lines = []
    for _ in range(4000):
        pieces = rng.choices(PIECES, k=rng.randint(1, 6))
        lines.append("".join(piece + rng.choice(JOINTS) for piece in pieces))
        lines.append(rng.choice(["the next", "A next", "Next one", "5 next"]))
    expected = run_reference(lines, tmp_path)
    wrong = [
        (line, tokens, token_line)
        for line, after, token_line in zip(lines[::2], lines[1::2], expected[::2], strict=True)
        if (tokens := " ".join(ptb_tokens(line, after)).rstrip()) != token_line
    ]
    assert wrong == []


@pytest.mark.slow
def test_all_captions_of_val2014(shared_data: Path, tmp_path: Path) -> None:
    with gzip.open(shared_data / "coco_captions/captions_val2014.json.gz", "rt") as file:
        captions = [one["caption"] for one in json.load(file)["annotations"]]
    lines = run_reference([caption.replace("\n", " ") for caption in captions], tmp_path)
    expected = [" ".join(token for token in line.split(" ") if token not in REMOVED) for line in lines]
    assert ptb_tokenize(captions, in_sequence=True) == expected
    alone = ptb_tokenize(captions)
    assert sum(one != other for one, other in zip(alone, expected, strict=True)) <= len(captions) // 5000


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029"])
def test_line_breaks_are_spaces(line_break: str) -> None:
    captions = [f"A dog{line_break}runs.", f"{line_break}It's{line_break}", "Two cats"]
    for in_sequence in (False, True):
        assert ptb_tokenize(captions, in_sequence=in_sequence) == ["a dog runs", "it 's", "two cats"]


def test_no_token_is_longer_than_its_caption() -> None:
    captions = ['see <a b="c', 'd"> there', "and </p", "> here"]
    expected = ["see < a b = c", "d > there", "and < / p", "> here"]
    assert ptb_tokenize(captions) == ptb_tokenize(captions, in_sequence=True) == expected


def test_next_caption_decides_about_abbreviations() -> None:
    # from the reference: an acronym before one of some words, "Co." before any capital, "No." before a number
    assert ptb_tokens("the U.S.", "A dog") == ["the", "u.s.", "."]
    assert ptb_tokens("the U.S.", "Dogs") == ["the", "u.s."]
    assert ptb_tokens("by Smith & Co.", "Dogs")[-2:] == ["co.", "."]
    assert ptb_tokens("by Smith & Co.", "dogs")[-1] == "co."
    assert ptb_tokens("bus No.", "5 dogs")[-1] == "no."
    assert ptb_tokens("bus No.", "Dogs")[-2:] == ["no", "."]
    assert ptb_tokenize(["plan B.", "the dog"], in_sequence=True) == ["plan b.", "the dog"]
    assert ptb_tokenize(["plan B.", "The dog"], in_sequence=True) == ["plan b", "the dog"]
    assert ptb_tokenize(["plan B.", "", "  ", "The dog"], in_sequence=True)[0] == "plan b"
    assert ptb_tokenize(["plan B."]) == ["plan b"]


def test_each_caption_by_itself() -> None:
    rng = random.Random(3)
    captions = [" ".join(rng.choices(PIECES, k=3)) for _ in range(300)]
    assert ptb_tokenize(captions) == [ptb_tokenize([caption])[0] for caption in captions]


@pytest.mark.parametrize("caption", ["", " ", "\n", ".", "...", "😀", "\ud83d", "\x00"])
def test_captions_without_words(caption: str) -> None:
    assert ptb_tokenize([caption, "a dog"]) == ["", "a dog"]


def test_long_captions_take_no_long_time() -> None:
    for piece in ["a,", "a.", "<a ", '<a b="', "a@", "1/", "-a", "'", "😀"]:
        ptb_tokens((piece * 3000)[:3000])  # quadratic at worst


def test_captions_that_are_not_strings() -> None:
    with pytest.raises(MetricInputError, match=r"caption 1: expected a string, not 5 \(int\)"):
        ptb_tokenize(["a dog", 5])  # type: ignore[list-item]
    with pytest.raises(MetricInputError, match="caption 1: expected a string, not None"):
        ptb_tokenize(["plan B.", None], in_sequence=True)  # type: ignore[list-item]
    with pytest.raises(MetricInputError, match="expected a list of strings, not one str"):
        ptb_tokenize("a dog")
    with pytest.raises(MetricInputError, match="expected a string"):
        ptb_tokens(["a dog"])  # type: ignore[arg-type]


@pytest.mark.parametrize("ascii_only", [False, True])
def test_rules_have_at_most_one_group(ascii_only: bool) -> None:
    assert all(rule.pattern.groups <= 1 for rule in token_rules(ascii_only))


def test_rules_for_ascii_match_what_all_rules_match() -> None:
    rng = random.Random(4)
    pieces = [piece for piece in PIECES if piece.isascii()] + [chr(code) for code in range(128)]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(300)]
    for rule, ascii_rule in zip(token_rules(), token_rules(True), strict=True):
        assert (rule.needs, rule.write("a's")) == (ascii_rule.needs, ascii_rule.write("a's"))
        for text in texts:
            for start in range(len(text)):
                match, ascii_match = rule.pattern.match(text, start), ascii_rule.pattern.match(text, start)
                assert (match and match.span(rule.pattern.groups)) == (
                    ascii_match and ascii_match.span(rule.pattern.groups)
                )
