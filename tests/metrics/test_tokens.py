"""How captions become the words that metrics compare."""

from hf_captioners.metrics.tokens import prepare_pairs


def test_raw_captions_are_tokenised_each_for_itself():
    tokens = prepare_pairs(["A dog,\nrunning.", "The cat's hat!"], [["One."], ["Two", "Three; four"]])
    assert tokens == (["a dog running", "the cat 's hat"], [["one"], ["two", "three four"]])


def test_tokenized_captions_stay_as_they_are():
    assert prepare_pairs(["A dog ."], [["x  y"]], tokenized=True) == (["A dog ."], [["x  y"]])
