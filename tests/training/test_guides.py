"""The update of guiding sentences; the original's numbers are in tests/parity/test_scdnet.py."""

import pytest

from hf_captioners.training.guides import merge_guides

REFERENCES = {1: [[5, 6, 7, 8, 0]], 2: [[5, 9, 9, 4, 0]]}


def test_equal_scores_change_nothing():
    guides = {1: [5, 6, 0], 2: [3, 0]}
    assert merge_guides(guides, {1: [5, 6, 0, 0], 2: [4, 4, 4, 0]}, REFERENCES)[1] == [5, 6, 0]


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="predictions has no sentence of image 2"):
        merge_guides({1: [5, 0], 2: [5, 0]}, {1: [5, 0]}, REFERENCES)
    with pytest.raises(ValueError, match="references has no captions of image 3"):
        merge_guides({3: [5, 0]}, {3: [6, 0]}, REFERENCES)
    assert merge_guides({3: [5, 0]}, {3: [5, 0]}, REFERENCES) == {3: [5, 0]}  # nothing to compare
