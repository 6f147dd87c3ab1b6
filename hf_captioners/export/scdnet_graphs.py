"""The graphs of SCD-Net: of pictures with their retrieved sentences, and of a step of denoising.

What does not depend on the step has a row per picture and comes from the first graph. A step gets the noisy bits
`(B, K, L, n)` of K captions of each of B pictures, the last prediction, the log-SNR of each, and gives the logits of
all words. A cascade has a step of each stage; what the first stage reads has `first_` in front of its name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..modeling.layers_scdnet import first_regions
from ..modeling.modeling_scdnet import Known

FIRST = "first_"  # in front of what the first stage of a cascade reads
SHARED = ("image_attention_mask", "retrieved_mask")  # read by both stages
HEADS = ("retrieved_queries", "retrieved_keys", "retrieved_values")


class ScdnetEncoderGraph(nn.Module):
    """Pictures and retrieved sentences, one for each, to what every step reads.

    Args:
        model ([`ScdnetForImageCaptioning`]): a stage or a cascade.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, retrieved_ids: Tensor, **images: Tensor) -> dict[str, Tensor]:
        """Keys and values of the regions and projections of the sentences, a row per picture.

        Done here without the checks of `encode`, which compare the numbers of pictures and sentences.
        """
        mask = images.get("image_attention_mask")
        features = images.get("image_features")
        if features is None:
            features, _ = first_regions(
                self.model.extract_image_features(images["pixel_values"]), None, self.model.config.max_regions
            )
        outputs = _read_by_steps(self.model, features, mask, retrieved_ids)
        if self.model.first_stage is not None:
            first = _read_by_steps(self.model.first_stage, features, mask, retrieved_ids)
            outputs |= {f"{FIRST}{name}": value for name, value in first.items()}
        return outputs


class ScdnetStepGraph(nn.Module):
    """A step of denoising.

    Args:
        network ([`ScdnetForImageCaptioning`]): a stage.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Tensor, known_bits: Tensor, log_ratios: Tensor, **known: Tensor) -> dict[str, Tensor]:
        """`logits` `(B * K, L, V)` of bits `(B, K, L, n)` and log-SNRs `(B, K)`."""
        copies, length = state.shape[1], state.shape[2]

        def spread(rows: Tensor) -> Tensor:  # (B, …) -> (B * K, …)
            return rows[:, None].expand(-1, copies, *rows.shape[1:]).flatten(0, 1)

        shown = known["retrieved_mask"].new_ones(known["retrieved_mask"].shape[0], length)  # the caption's own places
        semantic = torch.cat((shown, known["retrieved_mask"]), dim=1)  # (B, L + T)
        mask, previous = known.get("image_attention_mask"), known.get("previous")
        layers = range(len(self.network.decoder.g_layers))
        heads: Any = tuple(spread(known[name]) for name in HEADS)
        everything = Known(
            memory=[(known[f"memory_keys_{index}"], known[f"memory_values_{index}"]) for index in layers],
            memory_mask=None if mask is None else mask.bool()[:, None, None],
            retrieved=heads,
            retrieved_states=spread(known["retrieved_states"]),
            semantic_mask=spread(semantic).bool()[:, None, None],
            previous=None if previous is None else previous.flatten(0, 1),
        )
        time = self.network.token_embed.time_embed(log_ratios.flatten())  # (B * K, d)
        logits, _ = self.network.predict(state.flatten(0, 1), known_bits.flatten(0, 1), time, everything)
        return {"logits": logits}


def _read_by_steps(network: Any, features: Tensor, mask: Tensor | None, sentences: Tensor) -> dict[str, Tensor]:
    """Tensors that the steps of a stage read, of `features` `(B, L, feature_size)` and `sentences` `(B, T)`."""
    hidden = network.visual_embed(features)  # (B, L, d)
    for layer in network.encoder.layers:
        hidden = layer(hidden, None if mask is None else mask.bool()[:, None, None])
    retrieved = network.r_token_embed(sentences)  # (B, T, d)
    outputs = {"last_hidden_state": hidden, "retrieved_states": retrieved}
    outputs |= dict(zip(HEADS, network.r_encoder.layers[0].attention.self.project(retrieved), strict=True))
    for index, layer in enumerate(network.decoder.g_layers):
        keys, values = layer.x_att.self.keys_and_values(hidden)
        outputs |= {f"memory_keys_{index}": keys, f"memory_values_{index}": values}
    return outputs


def read_by_stage(memory: dict[str, Tensor], first: bool) -> dict[str, Tensor]:
    """Select what one stage reads of what the graph of the pictures gives and the masks, under the names of its step.

    Args:
        memory (`dict[str, torch.Tensor]`): of both stages, and the masks.
        first (`bool`): whether the first stage of a cascade is meant.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.export.scdnet_graphs import read_by_stage
    >>> one = torch.zeros(1)
    >>> sorted(read_by_stage({"states": one, "first_states": one, "first_keys": one, "retrieved_mask": one}, True))
    ['keys', 'retrieved_mask', 'states']

    ```
    """
    shared = {name: memory[name] for name in SHARED if name in memory}
    if first:
        return shared | {name.removeprefix(FIRST): value for name, value in memory.items() if name.startswith(FIRST)}
    return shared | {name: value for name, value in memory.items() if not name.startswith(FIRST)}
