"""Bounds of what a tokenizer file may make of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers
from transformers import AutoProcessor, AutoTokenizer, PreTrainedTokenizerFast

from hf_captioners import CaptionerImageProcessor, CaptionerProcessor, SaticConfig, SaticProcessor
from hf_captioners.modeling.captioner_trust import load_pretrained
from hf_captioners.modeling.tokenization_limits import check_tokenizer, growth, load_tokenizer

RULES = [
    normalizers.Replace("a", "bbb"),
    normalizers.Replace("ab", "c"),
    normalizers.Replace(Regex("a"), "bb"),
    normalizers.Replace(Regex("x*"), "yy"),
    normalizers.Replace(Regex("b|"), "aaaa"),
    normalizers.Prepend("zz"),
    normalizers.Sequence([normalizers.Replace("a", "aa"), normalizers.Sequence([normalizers.Replace("a", "aaa")])]),
    normalizers.Lowercase(),
]


def saved(folder: Path, **parts: Any) -> Path:
    backend = Tokenizer(models.WordLevel({"a": 0, "<end>": 1, "UNK": 2}, unk_token="UNK"))
    for name, value in parts.items():
        setattr(backend, name, value)
    tokens = dict.fromkeys(("pad_token", "bos_token", "eos_token"), "<end>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="UNK", **tokens)
    SaticConfig().save_pretrained(folder)
    SaticProcessor(CaptionerImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_text_grows_more(rule: Any) -> None:
    """The bound holds for texts of the letters in the rules."""
    bound = growth(json.loads(rule.__getstate__()))
    for text in ("a", "ab", "aaaa", "abab", "xxxx", "b" * 7):
        assert len(rule.normalize_str(text)) <= bound * len(text) + 4  # at the ends of the text


def bombs() -> list[dict[str, Any]]:
    ten, empty = ("a", "a" * 10), (Regex("b*"), "b" * 10)
    return [
        {"normalizer": normalizers.Sequence([normalizers.Replace(*ten) for _ in range(20)])},
        {"normalizer": normalizers.Sequence([normalizers.Replace(*empty) for _ in range(20)])},
        {"decoder": decoders.Sequence([decoders.Replace(*ten) for _ in range(20)])},
    ]


@pytest.mark.parametrize("parts", bombs(), ids=["text", "nothing", "decoder"])
def test_a_bomb_is_refused_wherever_it_is_loaded(tmp_path: Path, parts: dict[str, Any]) -> None:
    saved(tmp_path, **parts)
    loads = (
        load_tokenizer,
        CaptionerProcessor.from_pretrained,
        AutoProcessor.from_pretrained,
        lambda folder: load_pretrained(AutoTokenizer, folder),
        lambda folder: load_pretrained(AutoProcessor, folder),
    )
    for load in loads:
        with pytest.raises(
            ValueError, match=r"tokenizer\.json: the rules of its .* can make [0-9.]*e\+20 characters of one"
        ):
            load(tmp_path)


def test_ordinary_rules_pass_and_the_limit_is_an_argument(tmp_path: Path) -> None:
    saved(tmp_path, normalizer=normalizers.Sequence([normalizers.Replace("a", "a" * 10) for _ in range(3)]))
    assert load_tokenizer(tmp_path).unk_token == "UNK"
    with pytest.raises(ValueError, match="1e\\+03 characters of one; the limit is 999"):
        check_tokenizer(tmp_path, max_growth=999)
    check_tokenizer(tmp_path / "nothing")
