"""Inputs that metrics refuse, by name."""

import numpy as np
import pytest

from hf_captioners.metrics.inputs import MetricInputError, check_pairs, describe


@pytest.mark.parametrize(
    ("predictions", "references", "image_ids", "message"),
    [
        (["a"], [["b"], ["c"]], None, "1 predictions but 2 lists of references"),
        ([], [], None, "no images to score"),
        (["a", "b"], [["c"], []], None, "image 1: no references"),
        (["a", "b"], [["c"], []], ["x.jpg", "y.jpg"], r"image y\.jpg: no references"),
        (["a", None], [["c"], ["d"]], None, r"image 1: the prediction is None \(NoneType\), expected a string"),
        ([float("nan")], [["c"]], None, r"image 0: the prediction is nan \(float\), expected a string"),
        ([b"a"], [["c"]], None, r"image 0: the prediction is b'a' \(bytes\)"),
        (["a"], ["a dog"], None, r"image 0: the references are 'a dog' \(str\), expected a list of strings"),
        (["a"], [["b", 3]], [17], r"image 17: reference 1 is 3 \(int\), expected a string"),
        (["a"], [["b", float("nan")]], None, r"image 0: reference 1 is nan \(float\)"),
        ("a dog", [["b"]], None, "predictions: expected a list with one entry per image, not 'a dog'"),
        (["a"], {0: ["b"]}, None, r"references: expected a list .* not \{0: \['b'\]\} \(dict\)"),
        (["a", "b"], [["c"], ["d"]], [7, 7], "image 7: occurs twice"),
        (["a", "b"], [["c"], ["d"]], [7], "1 image_ids for 2 images"),
    ],
)
def test_refused(predictions, references, image_ids, message):
    with pytest.raises(MetricInputError, match=message):
        check_pairs(predictions, references, image_ids)


def test_accepted():
    check_pairs(["", "a"], [[""], ("b", "c")], np.array([3, 4]).tolist())


def test_shown_is_short_whatever_it_is():
    nested = ["a"]
    for _ in range(50):  # 2^50 strings, were they all written
        nested = [nested, nested]
    assert len(describe(nested)) <= 60
    assert describe("x" * 100).endswith("(str)") and len(describe("x" * 100)) <= 50
