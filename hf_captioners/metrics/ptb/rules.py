"""The rules by which a caption is cut into tokens, as a table of regular expressions.

Written from general knowledge of Penn Treebank tokenisation and from the behaviour of the reference (stanford-corenlp
3.4.1) on systematic probes. A rule is a pattern and how the text it takes is written. Group 1, where a pattern has one,
is the token; what follows it is only looked at, but counts when the longest match wins. Each pattern is built so that
its first match is also its longest.

Upper-case names in braces stand for the building blocks of `_BLOCKS`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .characters import DIGITS, LETTERS, MARKS, SYMBOLS

Write = Callable[[str], str]


class Rule(NamedTuple):
    """A rule of the tokenizer.

    Attributes:
        needs (`str`): a character without which a text has no such token; empty if there is none.
        pattern (`re.Pattern[str]`): what it matches; group 1, if any, is the token, otherwise all of it.
        write (`Callable[[str], str]`): from the matched text to the token; an empty string is no token.
    """

    needs: str
    pattern: re.Pattern[str]
    write: Write


# ---- how a token is written


def _plain(text: str) -> str:
    return text.replace("\u00ad", "") or "-"  # soft hyphens vanish


def _as_is(text: str) -> str:
    return text


def _with_stop(text: str) -> str:
    return text + "."  # the stop is part of the abbreviation, and read once more as the end of the sentence


def _always(token: str) -> Write:
    return lambda text: token


def _brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _dashes(text: str) -> str:
    return "--" if 2 < len(text) < 5 else text


_APOSTROPHES = str.maketrans(dict.fromkeys("\u0092\u2019", "'") | dict.fromkeys("\u0091\u2018\u201b", "`"))
_QUOTES = str.maketrans(
    dict.fromkeys("\u0091\u2018\u201b\u2039", "`")
    | dict.fromkeys("\u0092\u2019\u203a", "'")
    | dict.fromkeys("\u0093\u201c\u00ab", "``")
    | dict.fromkeys("\u0094\u201d\u00bb", "''")
)


def _ascii(text: str) -> str:
    return text.replace("&apos;", "'").translate(_APOSTROPHES)


def _ampersands(text: str) -> str:
    return re.sub("(?i:&amp;)", "&", text)


def _double(token: str) -> Write:
    return lambda text: token if text in ('"', "&quot;") else text  # &QUOT; is taken, but left as it is


def _quotes(text: str) -> str:
    return text.translate(_QUOTES)


# ---- building blocks

_UPPERS = "\uff21-\uff3a" + "".join(c for c in map(chr, range(0x80, 0xD800)) if c.isupper())
_BLOCKS = {
    **{"LETTERS": LETTERS, "MARKS": MARKS, "DIGITS": DIGITS, "UPPERS": _UPPERS},  # beyond ASCII, inside of brackets
    "SPACE": r"[ \t\u00a0\u2000-\u200a\u3000]",
    "GAP": r"[ \t\u00a0\u2000-\u200a\u3000\n\x85]",
    "UPPER": "[A-Z{UPPERS}]",
    "LETTER": "[A-Za-z{LETTERS}]",
    "DIGIT": "[0-9{DIGITS}]",
    "ALNUM": "[A-Za-z{LETTERS}0-9{DIGITS}]",
    # words take marks, soft hyphens and entities of letters as well
    "ACCENTED": "&[aeiouAEIOU](?i:acute|grave|uml);",
    "FIRST": r"(?:[A-Za-z{LETTERS}{MARKS}\u00ad]|{ACCENTED})",
    "NEXT": r"(?:[A-Za-z{LETTERS}0-9{DIGITS}{MARKS}\u00ad]|{ACCENTED})",
    "WORD": "{FIRST}{NEXT}*(?:[.!?]{FIRST}{NEXT}*)*",
    "APOS": r"(?:['\u0092\u2019]|(?i:&apos;))",
    "QUOTE": r"(?:['\u0092\u2019`\u0091\u2018\u201b]|(?i:&apos;))",  # an apostrophe, or what is used for one
    "VERB": "{APOS}(?:[dmsDMS]|(?i:ll|re|ve))",
    "NOT": "(?i:n{QUOTE}t)",
    "AMP": "(?i:&(?:amp;)?)",
    "DOUBLE": '(?:"|(?i:&quot;))',
    # tags, whose attributes have quoted values or none
    "NAME": "[A-Za-z][A-Za-z0-9_:.-]*",
    "VALUE": " *= *(?:'[^']*'|\"[^\"]*\")",
    "TAG": r"<(?:[!?][A-Za-z-][^>\n]*|/{NAME} *|{NAME}(?: +{NAME}(?:{VALUE})?)* *(?:/ *)?)>",
    # addresses
    "WWW": r'(?i:www)\.(?:[^ \t\n"<>|.!?(){},]+\.)+[A-Za-z]{2,4}',
    "SITE": r"""(?:[^ \t\n"`'|.!?(){}$,-_]+\.)+(?i:com|edu|net|org)""",  # ,-_ is a range: no digit, "/" or capital
    "PATH": r'/[^ \t\n"<>|()]+[^ \t\n"<>|.!?(){},-]',
    "MAILBOX": r'[A-Za-z0-9][^ \t\n"<>|(){}\u00a0]*',
    "LABEL": r'[^ \t\n"<>|(){}.\u00a0]+',
    "EXTENSION": "(?i:bat|bmp|cgi|class|cpp|c|dll|docx?|exe|gif|gz|html?|h|jar|java|jpe?g|mov|mp3|pdf|php|pl|png|ppt|ps"
    "|py|sql|tar|txt|wav|wps|xml|x|zip)",
    # words and numbers in one
    "HYPHEN": r"[-_\u058a\u2010\u2011]",
    "PART": "(?:[dloDLO]{QUOTE}{ALNUM})?{ALNUM}+",
    "COMPOUND": "{PART}(?:{HYPHEN}{PART})*",
    # with stops and commas: 5.-10, a-U.S.
    "STOPPED": r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+",
    "INITIALS": r"[A-Z]+(?:(?:\+|{AMP})[A-Z]+)+",  # AT&T
    "CHOICE": "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}",
    "NUMBER": r"(?:{DIGIT}*(?:[.:,\u00ad\u066b\u066c]{DIGIT}+)+|{DIGIT}+)",
    "DIALLED": r"(?:\+\+?)?(?:[0-9]{2,4}[- \u00a0])?[0-9]{2,4}[- \u00a0]",
    # abbreviations: that may end a sentence, that never do, that stand before a number
    "ENDING": r"(?:(?i:ala?|apr|ariz|assn|aug|bancorp|bhd|bldg|blvd|bros|calif|colo|conn|corp|cos?|ct|dak|dec|ed\.d|esq"
    r"|est|etc|ext|feb|fla|fri|ga|inc|ind|intl|jan|jr|jul|jun|kans?|ky|ltd|mar|md|mich|minn|mon|mont|mo|neb|nev|nov|oct"
    r"|okla|penn|ph\.d|plc|pp?t(?-i:[ey])s?|rd|rt|sept?|seq|sq|sr|sys|tel|tenn|thurs|thu|tues?|univ|va|vt|wed|wisc?|wyo)"
    r"|A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash))",
    "TITLE": "(?i:ad[jmv]|alex|asst|assoc|atty|attys|ave|brig|capt|cf|cie|cmdr|col|comdr|cpl|dept|det|drs?|elec|ens|ft"
    "|gen|govs?|hon|insp|invt|jos|lieut|lt|maj|messrs|m(?-i:[ft])g|mlle|mme|mrs?|msgr|ms|mt|natl|pfc|ph|pres|profs?|pvt"
    "|reps?|rev|sens?|sfc|sgt|spc|ste?|supts?|treas|vs|wm)",
    "COUNTED": "(?i:art|ca|figs?|nos?|op|pp|prop)",
    "ACRONYM": r"(?:(?i:(?:canada|eu|japan|korean|non|sino)-u\.s|u\.s\.-u\.(?:k|s\.s\.r))|[A-Za-z](?:\.[A-Za-z])*)",
    # what may begin a sentence after an acronym
    "OPENER": r"(?:A(?i:bout|ccording|dditionally|fter|n|s|t|)|B(?i:ut)|E(?i:arlier)|H(?i:e|er|ere|owever)|I(?i:f|n|t)"
    r"|L(?i:ast)|M(?i:any|ore|[rs]\.)|N(?i:ow)|O(?i:nce|ne|ther|ur)|S(?i:he|ince|o|ome|uch)"
    r"|T(?i:hat|he|heir|hen|here|hese|hey|his)|W(?i:e|hat|hen|hile)|Y(?i:et|ou)|{TAG}){GAP}",
}


# ---- the rules; of two that match the same length the upper one holds

_SPACES = [(r"{SPACE}+", _always(""))]
_SPLIT_WORDS = [
    ("((?i:can))(?i:not)", _plain),
    ("((?i:gon|wan))(?i:na)", _plain),
    ("((?i:got))(?i:ta)", _plain),
    ("((?i:gim|lem))(?i:me)", _plain),
    ("((?i:'t))(?i:is|was)", _plain),
]
_TAGS = [("{TAG}", _as_is)]
_ENTITIES = [
    ("(?i:&nbsp;)", _always("")),
    ("(?i:&(?:mdash|md|ndash);)", _always("--")),
    ("(?i:&amp;)", _always("&")),
    ("(?i:&lt;)", _always("<")),
    ("(?i:&gt;)", _always(">")),
    ("(?i:&(?:cdq|ht|lr|odq|qc|ql|qr|tl|ur);)|&#[0-9]+;", _as_is),
]
_WORDS = [
    ("({WORD}){VERB}", _plain),
    ("{WORD}", _plain),
    (r"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*){NOT}", _plain),
    ("{APOS}(?i:n){APOS}?|[djlDJL]{APOS}|(?i:dunkin|ol|somethin){APOS}", _as_is),
    ("{APOS}(?i:cause|em|till?)|{APOS}[2-9]0(?i:s)", _as_is),
    ("[A-HJ-XZn]{QUOTE}{LETTER}{2,}|{LETTER}+[aeiouyAEIOUY]{QUOTE}[aeiouA-Z]{LETTER}*|[oO]{QUOTE}[oO]", _as_is),
    (r"(?i:c'est|c'mon|cap'n|cont'd\.?|e'er|ev'ry|li'l|nat'l|nor'easter|s'mores)", _as_is),
    ("([yY]{APOS}){LETTER}", _as_is),
]
_LINKS = [(r'(?i:https?)://[^ \t\n"<>|(){}]+[^ \t\n"<>|.!?(){},-]', _as_is)]
_SITES = [
    ("{WWW}", _as_is),
    ("{WWW}{PATH}", _as_is),
    ("{SITE}", _as_is),
    ("{SITE}{PATH}", _as_is),
]
_MAIL = [
    (r"(?:<|(?i:&lt;))?{MAILBOX}@(?:{LABEL}\.)*{LABEL}(?:>|(?i:&gt;))?", _as_is),
    ("@[A-Za-z_][A-Za-z_0-9]*", _as_is),
]
_NUMBERS = [
    ("#{FIRST}+", _as_is),
    ("({VERB})[^A-Za-z]", _ascii),
    ("({NOT})[^A-Za-z]", _ascii),
    ("{COMPOUND}", _plain),
    ("{DIGIT}{1,2}[-/]{DIGIT}{1,2}[-/]{DIGIT}{2,4}", _plain),
    ("[-+]?{NUMBER}", _plain),
    (r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)", _plain),
    (r"(?:{DIGIT}{1,4}[- \u00a0])?{DIGIT}{1,4}(?:\\?/|\u2044){DIGIT}{1,4}", _plain),
    ("\u00bc", _always("1/4")),
    ("\u00bd", _always("1/2")),
    ("\u00be", _always("3/4")),
    ("\u2153", _always("1/3")),
    ("\u2154", _always("2/3")),
    (r"-(?i:[lr][cr]b|[lr]sb)-|[cfCF]#|(?i:anti-|c\+\+|c\.d\.s|pro-)|(?i:s{AMP}p)-500|(?i:s{AMP}ls)", _ampersands),
    ("({APOS}[0-9][0-9]){GAP}", _as_is),
    (r"{CHOICE}(?:\\?/{CHOICE}){1,2}", _plain),
    (r"(?:\([0-9]{2,3}\)[ \u00a0]?|{DIALLED})[0-9]{3,4}[- \u00a0]?[0-9]{3,5}", _brackets),  # a telephone number
    (r"[A-Z]*\$|#", _plain),
    ("[\u0080\u00a4\u20a0\u20ac]", _always("$")),
    ("\u00a2", _always("cents")),
    ("\u00a3", _always("#")),
]
_ABBREVIATIONS = [
    (r"(?=\w+\.)({ENDING})\.{GAP}(?:{GAP}|{UPPER}|{TAG})", _with_stop),
    (r"((?i:co|pt(?-i:[ey]))\.){SPACE}(?i:lim|ltd)", _plain),
    (r"(?=\w+\.)({ENDING}\.)[\s\S]{2}", _plain),
    (r"(?=\w+\.)({ENDING})\.", _with_stop),  # at the very end
    (r"(?=\w+\.){TITLE}\.", _plain),
    (r"(?=\w+\.)({COUNTED}\.){GAP}?{DIGIT}", _plain),
    (r"([A-Za-z])\.{GAP}+{OPENER}", _plain),
    (r"({ACRONYM})\.{GAP}+{OPENER}", _with_stop),
    (r"{ACRONYM}\.", _plain),
    ("({ACRONYM}){GAP}", _plain),
    (r"({NEXT}+(?:\.{NEXT}+)*\.{EXTENSION})(?:{GAP}|[.?!,])", _as_is),
    (r"({WORD}\.)[,:;\u3001]", _plain),
    (r"({COMPOUND}\.)[,:;\u3001]", _plain),
    (r"({INITIALS}\.)[,:;\u3001]", _ampersands),
]
_HYPHENATED = [
    (r"({STOPPED}\.)[,:;\u3001]", _plain),
    ("{STOPPED}", _plain),
]
_QUOTATION = [
    ("({DOUBLE})[A-Za-z0-9$]", _double("``")),
    ("{DOUBLE}", _double("''")),
    (r"(')[A-Za-z][^ \t\n\u00a0]", _always("`")),
    ("{VERB}", _ascii),
    ("{NOT}", _ascii),
    ("''|``", _as_is),
    (r"[`\u0091-\u0094\u2018-\u201f\u2039\u203a\u00ab\u00bb]{1,2}", _quotes),
    ("{APOS}", _ascii),
]
_PUNCTUATION = [
    ("[\u0096\u0097\u2013-\u2015]", _always("--")),
    (r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]", _brackets),  # :-)
    (r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)", _brackets),  # ^_^
    (r"\(", _always("-LRB-")),
    (r"\)", _always("-RRB-")),
    (r"\[", _always("-LSB-")),
    (r"\]", _always("-RSB-")),
    (r"\{", _always("-LCB-")),
    (r"\}", _always("-RCB-")),
    ("-+", _dashes),
    (r"\.{3,5}|(?:\.[ \u00a0]){2,4}\.|[\x85\u2026]", _always("...")),
    (r"@+|_+|#+|\*+|(?:\\\*){1,3}|<<|>>|[?!]+|[.,;:=/\\<>|%&~^+'-]", _as_is),
    (rf"[{SYMBOLS}\u2044]", _as_is),
    ("\u00ad", _plain),
    ("{INITIALS}", _ampersands),
]


# the classes beyond ASCII are what takes time to compile
_ASCII_BLOCKS = {**_BLOCKS, **dict.fromkeys(["LETTERS", "MARKS", "DIGITS", "UPPERS"], "")}


def _expand(pattern: str, blocks: Mapping[str, str] = _BLOCKS) -> str:
    larger = re.sub("{([A-Z]+)}", lambda block: blocks[block[1]], pattern)
    return pattern if larger == pattern else _expand(larger, blocks)


@functools.cache
def token_rules(ascii_only: bool = False) -> tuple[Rule, ...]:
    """The table, compiled once.

    Args:
        ascii_only (`bool`, defaults to `False`): leave out what matches no ASCII text.

    Returns:
        `tuple[Rule, ...]`: of the rules whose match is longest the first one gives the token; where none matches, the
            character is dropped.
    """
    table: list[tuple[str, Sequence[tuple[str, Write]]]] = [
        ("", _SPACES),
        ("", _SPLIT_WORDS),
        ("<", _TAGS),
        ("&", _ENTITIES),
        ("", _WORDS),
        (":", _LINKS),
        (".", _SITES),
        ("@", _MAIL),
        ("", _NUMBERS),
        (".", _ABBREVIATIONS),
        ("-", _HYPHENATED),
        ("", _QUOTATION),
        ("", _PUNCTUATION),
    ]
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    return tuple(
        Rule(needs, re.compile(_expand(pattern, blocks)), write) for needs, group in table for pattern, write in group
    )


@functools.cache
def abbreviations() -> re.Pattern[str]:
    """A pattern that a whole lower-case word matches if a stop after it may belong to it.

    Returns:
        `re.Pattern[str]`: for `fullmatch`.
    """
    return re.compile(_expand("(?i:{ENDING}|{TITLE}|{COUNTED})"))
