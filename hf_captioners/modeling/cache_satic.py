"""The exact cache of a group decoder.

The words of a group are independent of each other given the groups before it, so that one call of the decoder scores
all K of them. The cache keeps these scores, and `forward` answers the questions for the other K - 1 words from there:
every decoding loop that asks for one word after the other works with any K.

A finished group never changes when groups are appended, because no query sees a later group; hence keys and values are
kept as in an ordinary decoder, and the K new queries of a step see all of them.
"""

from __future__ import annotations

from typing import Any

import torch

from .captioner_cache import CaptionCacheLayer, MemoryCacheLayer


class GroupState(CaptionCacheLayer):
    """The words so far and the scores of the last group; first "layer" of the cache.

    Shapes, with R captions, n words with the start token, groups of K, V words: `ids` (R, n), `logits` (R, K, V).
    """

    def __init__(self) -> None:
        super().__init__()
        self.ids: torch.Tensor | None = None
        self.groups = 0  # that the decoder has scored
        self.logits: torch.Tensor | None = None
        self.rows: torch.Tensor | None = None  # of `logits`, that the captions continue; None: their own

    def append(self, ids: torch.Tensor) -> torch.Tensor:
        """Append words (R, T) and return all of them (R, n)."""
        self.ids = ids if self.ids is None else torch.cat((self.ids, ids), dim=1)
        return self.ids

    def store(self, logits: torch.Tensor, groups: int) -> None:
        """Keep the scores (R, K, V) of the last one of `groups` groups."""
        self.logits, self.groups, self.rows = logits, groups, None

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Scores of places `start` to `stop` of the last group, (R, stop - start, V)."""
        assert self.logits is not None
        logits = self.logits[:, start:stop]  # (rows, stop - start, V)
        return logits if self.rows is None else logits.index_select(0, self.rows)

    def get_seq_length(self) -> int:
        return 0 if self.ids is None else self.ids.shape[1]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let caption `i` continue caption `beam_idx[i]`, which must be of the same picture."""
        if self.ids is not None:
            beam_idx = beam_idx.to(self.ids.device)
            self.ids = self.ids.index_select(0, beam_idx)  # (R, n)
            self.rows = compose(self.rows, beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some captions only."""
        self.reorder_cache(indices)

    def reset(self) -> None:
        """Forget the captions."""
        self.ids = self.logits = self.rows = None
        self.groups = 0


class GroupCacheLayer(MemoryCacheLayer):
    """Keys and values of one decoder layer.

    Those of the captions, `keys` and `values` (R, H, P, d / H), have a row per caption and are reordered by beam
    search, once for a group. Those of the memory, `memory_keys` and `memory_values` (B, H, L, d / H), have a row per
    *picture* and are shared by its captions.
    """

    def __init__(self, memory_keys: torch.Tensor, memory_values: torch.Tensor) -> None:
        super().__init__(memory_keys, memory_values)
        self.rows: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (R, H, T, d / H) and return all of them."""
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        self._move()
        self.keys = torch.cat((self.keys, key_states), dim=2)  # (R, H, P + T, d / H)
        self.values = torch.cat((self.values, value_states), dim=2)  # (R, H, P + T, d / H)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return 0 if self.keys is None else self.keys.shape[2]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Note what [`GroupState.reorder_cache`] does at once: the rows move when the next group comes."""
        if self.keys is not None:
            self.rows = compose(self.rows, beam_idx.to(self.keys.device))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some captions only, and with them their pictures; each must be the only one of its picture."""
        self._move()
        images, captions = self.memory_keys.shape[0], None if self.keys is None else self.keys.shape[0]
        if captions not in (None, images):
            raise ValueError(f"{captions} captions of {images} pictures: expected one each to keep some of them.")
        self.reorder_cache(indices)
        self._move()
        indices = indices.to(self.memory_keys.device)
        self.memory_keys = self.memory_keys.index_select(0, indices)  # (rows, H, L, d / H)
        self.memory_values = self.memory_values.index_select(0, indices)  # (rows, H, L, d / H)

    def _move(self) -> None:
        """Do what `reorder_cache` noted."""
        if self.rows is not None and self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, self.rows), self.values.index_select(0, self.rows)
            self.rows = None

    def reset(self) -> None:
        """Forget the captions; the memory stays."""
        self.keys = self.values = self.rows = None


def compose(rows: torch.Tensor | None, then: torch.Tensor) -> torch.Tensor:
    """`then` after `rows`, as rows of what `rows` points into."""
    return then if rows is None else rows.index_select(0, then)
