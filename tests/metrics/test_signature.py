"""The evaluation signature."""

import hashlib

from hf_captioners.metrics.signature import hash_captions, signature_text


def test_text_is_one_line_of_pairs():
    signature = {"metrics": ["a", "b"], "cider": {"df": "references", "eos": True, "sigma": 6.0}, "version": "1.0"}
    assert signature_text(signature) == "metrics:a+b|cider.df:references|cider.eos:yes|cider.sigma:6.0|version:1.0"


def test_hash_depends_on_words_order_and_grouping():
    different = [[["a", "b"]], [["b", "a"]], [["a"], ["b"]], [["a", ""], ["b"]], [["a\nb"]]]
    hashes = [hash_captions(one) for one in different]
    assert len(set(hashes)) == 5
    assert hash_captions([["é"]]) == hashlib.sha256(b"1\n2\n" + "é".encode()).hexdigest()[:12]
    assert len(hash_captions([["\ud800"]])) == 12  # a lone surrogate, as broken JSON gives
