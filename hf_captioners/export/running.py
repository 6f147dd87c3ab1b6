"""Parts of every exported captioner: checked inputs for its graphs, and answers for what has no weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from .graphs import Tensors
from .manifest import Manifest


class ExportedBase:
    """Base of the captioners that run graphs, mixed in before the captioner's own class.

    Attributes:
        manifest ([`Manifest`]): inputs of the graphs.
        graphs (`ExportedModel`): of transformers.
    """

    manifest: Manifest
    graphs: Any

    # -- what torch and transformers ask for --------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the words; the graphs may run elsewhere."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the scores."""
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Stay; [`from_pretrained`] chooses the device of the graphs."""
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the folder of the export is the file format.

        Raises:
            ValueError: always.
        """
        raise ValueError("an exported captioner is not saved again: copy its folder.")

    # -- graphs --------------------------------------------------------------------------------------------------------

    def attach(self: Any) -> None:
        """Add what the captioner needs besides its graphs; nothing here."""

    def graph_inputs(
        self: Any,
        pixel_values: Tensor | None,
        image_features: Tensor | None,
        image_attention_mask: Tensor | None,
        output_hidden_states: bool = False,
        **inputs: Any,
    ) -> Tensors:
        """Inputs of the graph of the pictures, checked as every captioner does.

        Raises:
            ValueError: an input that the graphs do not have.
        """
        others = [name for name, value in inputs.items() if value is not None]
        if others or output_hidden_states:
            asked = ", ".join(others or ["hidden states"])
            raise ValueError(f"{asked}: not part of an exported captioner.")
        if image_features is not None and image_features.ndim == 2:
            image_features = image_features[:, None]  # (B, 1, D), an embedding
        self.check_images(pixel_values, image_features, image_attention_mask)
        given = "pixels" if image_features is None else "features"
        if given != self.manifest.image_input:
            raise ValueError(
                f"this captioner was exported for {self.manifest.image_input}, not for {given} "
                f"(`hf-captioners export --input {given}`)."
            )
        if image_features is None:
            assert pixel_values is not None
            return {"pixel_values": pixel_values.to("cpu", torch.float32)}
        mask = image_attention_mask
        mask = torch.ones(image_features.shape[:2]) if mask is None else mask
        return {"image_features": image_features.to("cpu", torch.float32), "image_attention_mask": mask.long()}


def stand_in(kind: type, config: Any) -> Any:
    """Make an exported captioner without graphs.

    Args:
        kind (`type`): a mixin and a captioner's own class.
        config (`PreTrainedConfig`): of the captioner.

    Returns:
        the captioner without weights, in evaluation mode
    """
    with torch.device("meta"):
        model: Any = kind(config)
    model._modules.clear()
    model.backbone = None
    return model.eval()
