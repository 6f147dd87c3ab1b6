"""The vision tower in front of a captioner: how it is made, loaded and read.

A captioner names one of the two readers as its `backbone_reader`: the grid of tokens, or the one pooled embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput


def grid_tokens(hidden: torch.Tensor) -> torch.Tensor:
    """The output of any vision backbone as a sequence of tokens.

    Args:
        hidden (`torch.Tensor`): `last_hidden_state`, `(B, L, C)` of a transformer or `(B, C, height, width)` of a CNN.

    Returns:
        `torch.Tensor` of shape `(B, L, C)`, rows of the grid one after the other.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.captioner_backbone import grid_tokens
    >>> grid_tokens(torch.zeros(2, 1280, 7, 7)).shape
    torch.Size([2, 49, 1280])

    ```
    """
    return hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)


def pooled_embedding(output: ModelOutput) -> torch.Tensor:
    """A vision backbone's image embedding (B, D).

    Args:
        output (`ModelOutput`): of the backbone.

    Returns:
        `torch.Tensor`

    Raises:
        ValueError: the backbone does not pool its output.
    """
    pooled = output.get("image_embeds", output.get("pooler_output"))
    if pooled is None:
        raise ValueError(
            f"the backbone gives {', '.join(output)}, but neither image_embeds nor pooler_output: a backbone is needed "
            "that pools its output."
        )
    return pooled.flatten(1)


def load_whole(model_class: Any, source: str | Path, unread: tuple[str, ...] = (), **options: Any) -> Any:
    """Load a pretrained model; weights that the checkpoint lacks would be random ones, and are refused.

    Args:
        model_class (a class with `from_pretrained`): what to load it as.
        source (`str` or `Path`): folder or Hub name.
        unread (`tuple[str, ...]`, defaults to `()`): beginnings of the names of weights that may be missing.
        options: arguments of `from_pretrained`.

    Returns:
        `PreTrainedModel`

    Raises:
        ValueError: weights are missing.
    """
    model, report = model_class.from_pretrained(source, output_loading_info=True, **options)
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unread))
    if missing:
        raise ValueError(f"{source}: {len(missing)} weights of a {type(model).__name__} are missing, as {missing[0]}.")
    return model


def check_whole(name: str, source: str | Path | None, report: Mapping[str, Any]) -> None:
    """Check that a checkpoint has the weights of a model, all of them and no others.

    Args:
        name (`str`): the model's class.
        source (`str` or `Path`): folder or Hub name.
        report (`Mapping[str, Any]`): what `from_pretrained` returns with `output_loading_info=True`.

    Raises:
        ValueError: weights are missing or unexpected; the first of them are named.
    """
    problems = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:5])}{', …' if len(names) > 5 else ''}"
        for what, names in (
            ("missing", report["missing_keys"]),
            ("not of the model", report["unexpected_keys"]),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"{source}: not a whole checkpoint of {name}; weights {'; '.join(problems)}. strict=False loads it, with "
            "random weights for those that are missing"
        )


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Tell whether two modules have the same weights under the same names, in the same types.

    Args:
        first, second (`nn.Module`): such as backbones.

    Returns:
        `bool`
    """
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(
        own[name].dtype == other[name].dtype and torch.equal(own[name], other[name]) for name in own
    )


class GridBackbone:
    """Reader of a vision model's whole grid of tokens."""

    unread: ClassVar[tuple[str, ...]] = ("pooler.",)  # weights behind the tokens, which nothing here reads

    @staticmethod
    def model_class(config: Any) -> Any:
        """The class to load a checkpoint of this configuration with."""
        return AutoModel

    @classmethod
    def from_config(cls, config: Any) -> PreTrainedModel:
        """A fresh vision model."""
        return AutoModel.from_config(config, trust_remote_code=False)

    @staticmethod
    def tokens(output: ModelOutput) -> torch.Tensor:
        """Part of the vision model's output that a captioner takes: (B, L, feature_size)."""
        return grid_tokens(output["last_hidden_state"])

    @classmethod
    def load(cls, source: str | Path | PreTrainedModel, **options: Any) -> PreTrainedModel:
        """Load the image tower of a folder or Hub name; of a model of images and text, its tower alone.

        Args:
            source (`str`, `Path` or `PreTrainedModel`): folder, Hub name, or the tower itself.
            options: arguments of `from_pretrained`, as `revision`; `trust_remote_code` is `False` unless given.

        Returns:
            `PreTrainedModel`

        Raises:
            ValueError: weights of the tower are missing, or the model is more than a tower.
        """
        if isinstance(source, PreTrainedModel):
            if "vision_config" in source.config.sub_configs:
                raise ValueError(
                    f"a {type(source).__name__} is more than an image tower; give its folder or its tower."
                )
            return source
        options = {"trust_remote_code": False, **options}
        config = AutoConfig.from_pretrained(source, **options)
        if "vision_config" in config.sub_configs:
            config = config.vision_config
        return load_whole(cls.model_class(config), source, cls.unread, **{**options, "config": config})

    @classmethod
    def width(cls, backbone: PreTrainedModel) -> int:
        """Width of the tokens, measured on a black picture.

        Raises:
            ValueError: see `tokens`.
        """
        size = backbone.config.to_dict().get("image_size", 224)  # a ResNet takes any
        height, width = (size, size) if isinstance(size, int) else size
        pixels = torch.zeros(1, 3, height, width, dtype=backbone.dtype, device=backbone.device)
        training = backbone.training
        with torch.no_grad():
            tokens = cls.tokens(backbone.eval()(pixel_values=pixels))
        backbone.train(training)
        return tokens.shape[-1]


class PooledBackbone(GridBackbone):
    """Reader of a vision model's pooled embedding, of CLIP with its projection, as one token."""

    unread = ()

    @staticmethod
    def model_class(config: Any) -> Any:
        """Load a tower as above; `AutoModel` would leave CLIP's projection out."""
        return CLIPVisionModelWithProjection if config.model_type == "clip_vision_model" else AutoModel

    @classmethod
    def from_config(cls, config: Any) -> PreTrainedModel:
        """A fresh vision model."""
        model_class = cls.model_class(config)
        return super().from_config(config) if model_class is AutoModel else model_class(config)

    @staticmethod
    def tokens(output: ModelOutput) -> torch.Tensor:
        """The pooled output as one token, (B, 1, feature_size)."""
        return pooled_embedding(output)[:, None]
