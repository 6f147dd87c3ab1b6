"""The tensors of a checkpoint against a model."""

from __future__ import annotations

import pytest
import torch

from hf_captioners.conversion.source import Source
from hf_captioners.conversion.writing import ConversionError

TARGETS = {
    "qkv": {"q": torch.Size([1, 3]), "k": torch.Size([1, 3]), "v": torch.Size([2, 3])},
    "scale": {"scale": torch.Size([])},
    "norm": {"norm": torch.Size([3])},
}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "qkv": torch.arange(12.0).view(4, 3),
        "scale": torch.tensor(2.0),
        "norm": torch.ones(3),
        "mask": torch.ones(9),
    }


def test_state_dict_splits_rows_in_order() -> None:
    source = Source("x.pth", tensors(), ["mask"])
    source.check(TARGETS)
    state = source.state_dict(TARGETS)
    assert torch.equal(torch.cat([state["q"], state["k"], state["v"]]), source.tensors["qkv"])
    assert list(state["v"][0]) == [6.0, 7.0, 8.0]
    assert set(state) == {"q", "k", "v", "scale", "norm"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_state_dict_is_float32_contiguous_and_unshared(dtype: torch.dtype) -> None:
    table = torch.arange(12.0, dtype=dtype).view(3, 4)
    content = {**tensors(), "qkv": table.T, "norm": table[:, 0]}
    state = Source("x.pth", content, ["mask"]).state_dict(TARGETS)
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in state.values())
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)


def test_all_problems_are_named_at_once_with_both_shapes() -> None:
    content = {"qkv": torch.zeros(3, 3), "norm": torch.ones(3, dtype=torch.int64), "mask": torch.ones(9)}
    with pytest.raises(ConversionError) as error:
        Source("x.pth", content).check(TARGETS)
    assert str(error.value) == (
        "x.pth: 4 problems: qkv has shape [3, 3], expected [4, 3]; scale is missing, expected with shape []; "
        "norm has dtype torch.int64, expected floating point; mask of shape [9] is not part of the model"
    )


def test_layers_are_counted_up_to_the_first_gap() -> None:
    names = ["layers.0.a", "layers.1.a", "layers.1.b", "layers.3.a", "layers.x.a", "layer.2.a"]
    source = Source("x.pth", {name: torch.zeros(1) for name in names})
    assert source.count("layers.") == 2
    assert source.count("decoders.") == 0


def test_weights_that_are_no_numbers_are_named_and_counted() -> None:
    content = {**tensors(), "norm": torch.tensor([1.0, float("nan"), float("inf")])}
    content["mask"][0] = float("nan")  # dropped
    content["scale"] = torch.tensor(1e300, dtype=torch.float64)
    with pytest.raises(ConversionError) as error:
        Source("x.pth", content, ["mask"]).state_dict(TARGETS)
    assert str(error.value) == (
        "x.pth: 3 of 16 weights are NaN or infinite in float32: 2 problems: scale has 1; norm has 2"
    )
    assert Source("x.pth", tensors(), ["mask"]).state_dict(TARGETS)


def test_a_limit_of_layers() -> None:
    source = Source("x.pth", dict.fromkeys((f"layers.{index}.a" for index in range(501)), torch.zeros(1)))
    with pytest.raises(ConversionError, match=r"x\.pth: has 501 layers layers\.\*; the limit is 500"):
        source.count("layers.")


def test_places() -> None:
    source = Source("x.pth", {"a": torch.zeros(2), "empty": torch.zeros(0, 2)})
    source.check_places([("a", 0)], "a model")
    with pytest.raises(
        ConversionError, match=r"x\.pth: not a model: 3 problems: a has shape \[2\].*; empty has .*; b is"
    ):
        source.check_places([("a", 1), ("empty", 1), ("b", 0), ("b", 1)], "a model")
