"""Faster captions of a loaded captioner: linear layers for the CPU, and a precision of its own for the vision tower.

On a CPU most of a caption's time is linear layers: of the vision tower, where arithmetic counts, and of the decoder,
which reads all its weights again for every word, so that their bytes count. `"exact"` lays the weights out for oneDNN
once, and once more for single rows in layers outside of the tower, and makes one layer of those that read the same
where a captioner says which these are; captions stay as they are. `"int8"` makes 8-bit integers of them, and of what
goes into each layer when it runs: a quarter of the bytes, and other captions now and then.
`benchmarks/bench_fast.py` has the times, and what a trained captioner loses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..families import family_of
from ..families.model_parts import without_adapters
from ..modeling.captioner_adapters import AdapterError

_WAYS = ("exact", "int8")
_FEWEST = 2**18  # weights of a layer with which oneDNN's product of few rows is worth its call
_SOME_ROWS = 8  # for which oneDNN chooses its layout; any number but 1 gives the same


class PackedLinear(nn.Module):
    """A linear layer with weights in oneDNN's layout, and for a single row in the one that is read fastest.

    The layout for rows is that of torch's own compiler, and so is the operation, which has no public name.

    Args:
        linear (`nn.Linear`): the layer, in float32 on the CPU.
        for_words (`bool`, defaults to `True`): whether a single row may come, of a word; without, half the memory.
    """

    def __init__(self, linear: nn.Linear, for_words: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _SOME_ROWS)
        widens = self.out_features >= self.in_features
        self.row_weight = (weight.t().contiguous().t() if widens else weight.contiguous()) if for_words else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, in_features) -> (…, out_features)"""
        hidden = hidden.float()  # under autocast it may be shorter
        if self.row_weight is not None and hidden.numel() == self.in_features == hidden.shape[-1]:
            row = hidden.reshape(-1)
            found = self.row_weight.mv(row) if self.bias is None else torch.addmv(self.bias, self.row_weight, row)
            return found.view(*hidden.shape[:-1], -1)
        product = _outside_product if torch.compiler.is_compiling() else _product
        return product(hidden, self.packed, self.bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PackedLinear:
        """Refuse what `half`, `to`, `cuda` and the like would do to the weights."""
        _check_stays(fn)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and other processes: oneDNN's layout has no storage that torch could copy."""
        return _packed, (self.packed.to_dense(), self.bias, self.row_weight is not None)


def _packed(weight: torch.Tensor, bias: torch.Tensor | None, for_words: bool) -> PackedLinear:
    return PackedLinear(_linear_of(weight, None if bias is None else nn.Parameter(bias)), for_words)


def _product(hidden: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A linear layer of weights in oneDNN's layout."""
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(hidden, packed, bias, "none", [], ""))


# torch.compile takes the operation only with weights that it has laid out itself
_outside_product = torch.compiler.disable(_product)


class QuantizedLinear(torch.ao.nn.quantized.dynamic.Linear):
    """A linear layer with 8-bit weights, which stays on the CPU and takes inputs in float32."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizedLinear:
        """As in [`PackedLinear`]."""
        _check_stays(fn)
        return self


def _check_stays(fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Refuse another precision or device, which torch refuses less clearly, or in silence until the layer runs."""
    before = torch.empty(0)
    after = fn(before)
    if (after.dtype, after.device) != (before.dtype, before.device):
        raise ValueError(
            f"a captioner with faster linear layers stays in {before.dtype} on {before.device}, and cannot be in "
            f"{after.dtype} on {after.device}; load it anew, without optimize_for_inference."
        )


def optimize_for_inference(model: Any, linear: str | None = None, backbone_dtype: torch.dtype | None = None) -> Any:
    """Make a captioner caption faster; it can no longer learn or be saved, where its linear layers are others.

    Args:
        model (`PreTrainedModel`): a captioner of any family, in evaluation mode; it is changed.
        linear (`str`, *optional*): on a CPU, in float32: `"exact"`, layers with weights in oneDNN's layout and the same
            captions (log-probabilities differ by rounding), or `"int8"`, layers with 8-bit weights and inputs.
        backbone_dtype (`torch.dtype`, *optional*): precision of the vision tower alone, such as `torch.bfloat16`, of
            the captioners of this package; its layers keep it whatever `linear` is.

    Returns:
        `PreTrainedModel`: the captioner.

    Raises:
        AdapterError: a captioner with adapters, which must be merged before.
        ValueError: an unknown way; `"exact"` in a build of torch without oneDNN; layers that are not in float32 on a
            CPU; a captioner without a vision tower, or of transformers, whose towers have the precision of the rest.

    Example:

    ```python
    >>> from hf_captioners import optimize_for_inference
    >>> from transformers import AutoModelForImageTextToText
    >>> model = AutoModelForImageTextToText.from_pretrained("runs/mine")  # doctest: +SKIP
    >>> optimize_for_inference(model, "int8")  # doctest: +SKIP

    ```
    """
    check_optimization(model, linear, backbone_dtype)
    if backbone_dtype is not None:
        cast(Any, family_of(model).backbone(model)).to(backbone_dtype)
    if linear is not None:
        _replace(model, linear)
        model.save_pretrained = _refuse_to_save
    return model


def check_optimization(model: Any, linear: str | None = None, backbone_dtype: torch.dtype | None = None) -> None:
    """Refuse what [`optimize_for_inference`] cannot do, and change nothing.

    Args:
        model (`PreTrainedModel`), linear (`str`, *optional*), backbone_dtype (`torch.dtype`, *optional*): see there.

    Raises:
        AdapterError, ValueError: see there.
    """
    if vars(model).get("save_pretrained") is _refuse_to_save:
        raise ValueError("the captioner has faster linear layers already; load it anew.")
    if backbone_dtype is not None and not (
        isinstance(backbone_dtype, torch.dtype) and backbone_dtype.is_floating_point
    ):
        raise ValueError(f"backbone_dtype must be a torch.dtype such as torch.bfloat16, not {backbone_dtype!r}.")
    if linear is not None:
        _check_linears(model, linear)
    if backbone_dtype is not None:
        _check_backbone(model)


def _check_linears(model: Any, linear: str) -> None:
    if linear not in _WAYS:
        raise ValueError(f"linear must be one of {', '.join(_WAYS)}, not {linear!r}.")
    if linear == "exact" and not torch.backends.mkldnn.is_available():
        raise ValueError("oneDNN is not in this build of torch, and exact faster layers are its own.")
    if without_adapters(model) is not model or "peft_config" in vars(model):
        raise AdapterError(
            "faster linear layers are for a captioner without adapters; merge them first (merge_and_unload)."
        )
    # those of a tower with a precision of its own keep it
    of_tower = _tower_modules(model)
    layers = [layer for _, _, layer in _linears(model, rounded=False)]
    weights = [layer.weight for layer in layers if layer not in of_tower or layer.weight.dtype == torch.float32]
    strange = next((one for one in weights if one.device.type != "cpu" or one.dtype != torch.float32), None)
    if not weights or strange is not None:
        found = "the captioner has none" if strange is None else f"these are {strange.dtype} on {strange.device}"
        raise ValueError(f"faster linear layers are for layers in float32 on a CPU, and {found}.")


def _replace(model: Any, linear: str) -> None:
    """Put faster layers in the place of those in float32; the tower, if it has another precision, keeps its own."""
    of_tower = _tower_modules(model)
    if linear == "exact":
        _join(model)
    for module, name, layer in _linears(model, rounded=linear == "int8"):
        if layer.weight.dtype != torch.float32:
            continue
        if linear == "int8":
            setattr(module, name, _quantized(_as_linear(layer)))
        elif layer.weight.numel() >= _FEWEST:
            setattr(module, name, PackedLinear(_as_linear(layer), for_words=layer not in of_tower))


def _tower_modules(model: Any) -> set[nn.Module]:
    backbone = family_of(model).backbone(model)
    return set() if backbone is None else set(backbone.modules())


def _join(model: nn.Module) -> None:
    """Make one layer of those that read the same, in modules that say which these are (`same_input`)."""
    for module in model.modules():
        names = getattr(type(module), "same_input", ())
        layers = [getattr(module, name) for name in names]
        if layers and sum(layer.weight.numel() for layer in layers) >= _FEWEST:
            weight = torch.cat([layer.weight.detach() for layer in layers])
            bias = torch.cat([layer.bias.detach() for layer in layers])
            module.joined = PackedLinear(_linear_of(weight, nn.Parameter(bias)))
            for name in names:
                delattr(module, name)


def _linears(model: nn.Module, rounded: bool) -> Iterator[tuple[nn.Module, str, Any]]:
    """Every linear layer, with what it is in and its name there.

    Of layers of classes of their own, which may compute something else, those that say `is_plain`, and, if their
    weights will not be `rounded`, those that say `is_exact`.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            says = vars(type(child))
            is_own = says.get("is_plain", False) or (not rounded and says.get("is_exact", False))
            if type(child) in (nn.Linear, Conv1D) or is_own:
                yield module, name, child


def _as_linear(layer: Any) -> nn.Linear:
    """A linear layer of GPT-2's `Conv1D`, which is one with the weights the other way round."""
    if isinstance(layer, nn.Linear):
        return layer
    return _linear_of(layer.weight.detach().T.contiguous(), layer.bias)


def _linear_of(weight: torch.Tensor, bias: Any) -> nn.Linear:
    """A linear layer of these weights (out, in)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = nn.Parameter(weight), bias
    return linear.eval()


def _quantized(layer: nn.Linear) -> nn.Module:
    plain = _linear_of(layer.weight.detach(), layer.bias)
    with warnings.catch_warnings():  # torch 2.13, which is pinned, has it and says that a later one will not
        warnings.simplefilter("ignore")
        plain.qconfig = torch.ao.quantization.default_dynamic_qconfig  # type: ignore[assignment]
        return cast(nn.Module, QuantizedLinear.from_float(plain))


def _check_backbone(model: Any) -> None:
    family = family_of(model)
    if family.backbone(model) is None:
        raise ValueError(
            "the captioner reads cached features or regions and has no vision tower; leave its precision out."
        )
    if not hasattr(model, "extract_image_features"):
        raise ValueError(f"a precision of the vision tower alone is not for {family.title}; give one for all (dtype).")


def _refuse_to_save(*args: Any, **kwargs: Any) -> None:
    raise ValueError("a captioner with faster linear layers is for captioning only; save the one it was made of.")
