"""The two expansions of ExpansionNet v2 (arXiv 2208.06551, section 3), and the exact cache of the dynamic one.

An expansion projects a sequence onto another number of slots (forward) and back (backward). Its weights are rectified
scores divided by their sum, no softmax. Every score has two faces, its positive and its negative part, each with
values of its own; a gate mixes the two results.

Where this differs from the authors' code, with equal numbers:

1. The scores of the dynamic expansion are computed as `Q k + c k` instead of with an expanded query for every pair of
   position and slot: N times fewer operations.
2. Without dropout the two directions are multiplied together first (`A` and `w` hold one number for a slot and a
   position, not one vector), so that neither direction materialises the expanded sequence.
3. The dynamic expansion is incremental: what a position contributed never changes afterwards, so the cache is exact.
4. Scores, what they are projected from, both normalisations and eps are float32 in every precision and under autocast:
   in float16 an eps of 1e-9 is 0, and a position without a single positive score would give 0/0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from .captioner_cache import MemoryCacheLayer
from .captioner_layers import at_least_float32


def _normalize(scores: torch.Tensor, dim: int | tuple[int, ...], eps: float) -> torch.Tensor:
    return scores / (scores.sum(dim=dim, keepdim=True) + eps)


def _both_faces(scores: torch.Tensor) -> torch.Tensor:
    """The positive and the negative part of scores (R, …), side by side (R, 2, …)."""
    return torch.stack((scores, -scores), dim=1).relu()


class ExpansionCacheLayer(MemoryCacheLayer):
    """State of one decoder layer: what the past positions contributed to the dynamic expansion, and the
    cross-attention's projections of the memory.

    The expansion's state has a row per caption (beam) and is reordered by beam search. The memory's keys and values
    have a row per *picture* and are shared by its captions.

    Shapes, with R captions, P past positions, N slots, d width, B pictures, H heads, L memory tokens: in `state`,
    "projections" (R, 4, P, d), which are keys, conditions, positive and negative values, "slot_scores" (R, P, N),
    "weights" (R, 2, P, N, P) of the positive and the negative class; `memory_keys`, `memory_values` (B, H, L, d / H).
    """

    def __init__(self, memory_keys: torch.Tensor, memory_values: torch.Tensor) -> None:
        super().__init__(memory_keys, memory_values)
        self.state: dict[str, torch.Tensor] = {}

    def append(self, name: str, new: torch.Tensor, dim: int) -> torch.Tensor:
        """Append `new` to the state called `name` along `dim` and return the whole."""
        if name in self.state:
            new = torch.cat((self.state[name], new), dim=dim)
        self.state[name] = new
        return new

    def append_weights(self, new: torch.Tensor) -> torch.Tensor:
        """Append rows `new` (R, 2, T, N, P + T) to the weights; the older rows end in zeros."""
        if "weights" in self.state:
            self.state["weights"] = nn.functional.pad(self.state["weights"], (0, new.shape[2]))
        return self.append("weights", new, dim=2)

    def get_seq_length(self) -> int:
        return self.state["slot_scores"].shape[1] if self.state else 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let caption `i` continue caption `beam_idx[i]`, which must be of the same picture."""
        self.state = {name: rows.index_select(0, beam_idx.to(rows.device)) for name, rows in self.state.items()}

    def reset(self) -> None:
        """Forget the captions; the memory stays."""
        self.state = {}


class ScoreLinear(nn.Linear):
    """A linear layer that computes in float32 even if its weights are shorter: scores near 0 decide by their sign."""

    is_exact = True  # in float32 it is as any linear layer, and must not be rounded

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, in) -> (…, out) in float32; call it outside of autocast."""
        hidden, weight, bias = map(at_least_float32, (hidden, self.weight, self.bias))
        return nn.functional.linear(hidden, weight, bias)


class StaticExpansion(nn.Module):
    """Expansion of the encoder: learned slots in groups, normalised over the tokens forward and over the slots of each
    group backward."""

    def __init__(self, d_model: int, groups: Sequence[int], dropout: float, eps: float) -> None:
        super().__init__()
        self.groups = list(groups)
        self.eps = eps
        self.scale = 1.0 / math.sqrt(d_model)
        self.query_exp_vectors = nn.Embedding(sum(groups), d_model)
        self.bias_exp_vectors = nn.Embedding(sum(groups), d_model)
        self.key_embed = ScoreLinear(d_model, d_model)
        self.class_a_embed = nn.Linear(d_model, d_model)
        self.class_b_embed = nn.Linear(d_model, d_model)
        self.selector_embed = nn.Linear(d_model, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Expand `hidden` (B, L, d); `token_mask` (B, L) is 1 for real tokens. Returns (B, L, d)."""
        gate = torch.sigmoid(self.selector_embed(hidden))
        values = self.class_a_embed(hidden), self.class_b_embed(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            queries = at_least_float32(self.query_exp_vectors.weight) * self.scale
            scores = torch.matmul(queries, self.key_embed(hidden).transpose(1, 2))
            scores = self.dropout(scores)  # (B, S, L), one mask for both classes and both directions
            positive = self._one_class(scores.relu(), values[0], token_mask)
            negative = self._one_class((-scores).relu(), values[1], token_mask)
        return (gate * positive + (1 - gate) * negative).to(hidden.dtype)

    def _one_class(self, scores: torch.Tensor, values: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        # backward weights come from the unmasked scores: padded tokens get an output, which nobody reads
        backward = torch.cat([_normalize(group, 1, self.eps) for group in scores.split(self.groups, dim=1)], dim=1)
        if token_mask is not None:
            scores = scores * token_mask[:, None, :].to(scores.dtype)
            values = values * token_mask[..., None].to(values.dtype)  # 0 * inf of a padded row would be NaN
        forward = _normalize(scores, 2, self.eps).to(values.dtype)
        slots = self.dropout(torch.matmul(forward, values) + self.bias_exp_vectors.weight.to(values.dtype))  # (B, S, d)
        tokens = torch.matmul(backward.to(values.dtype).transpose(1, 2), slots) / len(self.groups)
        return self.dropout(tokens)


class DynamicExpansion(nn.Module):
    """Expansion of the decoder: each position adds `size` slots conditioned on itself; causal in both directions.

    `joined` is one layer in the place of those of `same_input`, their outputs side by side: it is made for inference,
    where a word waits for one large layer less long than for five small ones.
    """

    same_input = ("cond_embed", "key_linear", "class_a_embed", "class_b_embed", "selector_embed")

    def __init__(self, d_model: int, size: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.size = size
        self.eps = eps
        self.scale = 1.0 / math.sqrt(d_model)
        self.query_exp_vectors = nn.Embedding(size, d_model)
        self.bias_exp_vectors = nn.Embedding(size, d_model)
        self.cond_embed = ScoreLinear(d_model, d_model)
        self.key_linear = ScoreLinear(d_model, d_model)
        self.class_a_embed = nn.Linear(d_model, d_model)
        self.class_b_embed = nn.Linear(d_model, d_model)
        self.selector_embed = nn.Linear(d_model, d_model)
        self.joined: nn.Module | None = None
        self.dropout = nn.Dropout(dropout)

    def project(self, hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The layers of `same_input`: (R, T, d) to (R, T, d) each; those of the scores are float32."""
        if self.joined is None:
            values = self.class_a_embed(hidden), self.class_b_embed(hidden), self.selector_embed(hidden)
            with torch.autocast(hidden.device.type, enabled=False):
                return self.cond_embed(hidden), self.key_linear(hidden), *values
        with torch.autocast(hidden.device.type, enabled=False):
            return self.joined(hidden).chunk(len(self.same_input), dim=-1)

    def forward(self, hidden: torch.Tensor, cache: ExpansionCacheLayer | None = None) -> torch.Tensor:
        """Expand `hidden` (R, T, d), the positions that follow those in `cache`. Returns (R, T, d)."""
        conditions, keys, positive, negative, selected = self.project(hidden)
        gate = torch.sigmoid(selected)
        with torch.autocast(hidden.device.type, enabled=False):
            keys = keys * self.scale
            if self.training and self.dropout.p > 0:
                if cache is not None:
                    raise ValueError("DynamicExpansion: a cache cannot be used with dropout; call model.eval() first.")
                positive, negative = self._with_dropout(conditions, keys, positive, negative)
            else:
                positive, negative = self._incremental(conditions, keys, positive, negative, cache)
        return (gate * positive + (1 - gate) * negative).to(hidden.dtype)

    def _with_dropout(
        self, conditions: torch.Tensor, keys: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All positions at once through the expanded sequence, which dropout acts on."""
        length = keys.shape[1]
        keys_t = keys.transpose(1, 2)
        slot_scores = torch.matmul(at_least_float32(self.query_exp_vectors.weight), keys_t)  # (R, N, T)
        own_scores = torch.matmul(conditions, keys_t)  # (R, T, T)
        # (R, T, N, T): position i, slot e, token j
        scores = self.dropout(slot_scores[:, None] + own_scores[:, :, None])
        causal = torch.ones(length, length, dtype=torch.bool, device=keys.device).tril()[:, None, :]  # j <= i
        later = torch.ones(length, length, dtype=torch.bool, device=keys.device).triu()[:, None, :]  # i <= t
        bias = at_least_float32(self.bias_exp_vectors.weight)

        def one_class(part: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            forward = _normalize(part * causal, 3, self.eps).flatten(1, 2)  # (R, T*N, T)
            slots = self.dropout(torch.matmul(forward.to(values.dtype), values))  # (R, T*N, d)
            backward = _normalize(part * later, (1, 2), self.eps)  # (R, T, N, T)
            mixed = torch.matmul(backward.flatten(1, 2).transpose(1, 2).to(values.dtype), slots)
            # what every slot adds to its values, bias and condition, outside of their dropout
            mixed = mixed + torch.matmul(backward.sum(1).transpose(1, 2), bias)
            return self.dropout(mixed + torch.matmul(backward.sum(2).transpose(1, 2), conditions))

        return one_class(scores.relu(), positive), one_class((-scores).relu(), negative)

    def _incremental(
        self,
        conditions: torch.Tensor,
        keys: torch.Tensor,
        positive: torch.Tensor,
        negative: torch.Tensor,
        cache: ExpansionCacheLayer | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """T new positions after the P cached ones, S = P + T in all; only scalars carry the slot index. Both classes
        are computed side by side, because the operations are small."""
        queries, bias = map(at_least_float32, (self.query_exp_vectors.weight, self.bias_exp_vectors.weight))
        length, new_keys, new_conditions = keys.shape[1], keys, conditions
        new_slot_scores = torch.matmul(new_keys, queries.t())  # (R, T, N)
        slot_scores = new_slot_scores
        parts = keys, conditions, at_least_float32(positive), at_least_float32(negative)
        projections = torch.stack(parts, dim=1)  # (R, 4, T, d)
        if cache is not None:
            slot_scores = cache.append("slot_scores", slot_scores, dim=1)  # (R, S, N)
            projections = cache.append("projections", projections, dim=2)  # (R, 4, S, d)
        keys, conditions, positive, negative = projections.unbind(1)  # (R, S, d)

        # forward: the new positions' slots over all tokens up to their own; (R, T, N, S)
        own = torch.matmul(new_conditions, keys.transpose(1, 2))  # (R, T, S)
        forward_scores = slot_scores.transpose(1, 2)[:, None] + own[:, :, None]
        # backward: the new tokens over the slots of all positions up to their own; (R, T, S, N)
        own = torch.matmul(new_keys, conditions.transpose(1, 2))  # (R, T, S)
        backward_scores = new_slot_scores[:, :, None] + own[..., None]
        if length > 1:  # a single new position sees everything
            total = keys.shape[1]
            past = torch.ones(length, total, dtype=torch.bool, device=keys.device).tril(total - length)
            forward_scores = forward_scores.masked_fill(~past[:, None, :], 0.0)
            backward_scores = backward_scores.masked_fill(~past[..., None], 0.0)

        forward = _normalize(_both_faces(forward_scores), 4, self.eps)  # (R, 2, T, N, S)
        backward = _normalize(_both_faces(backward_scores), (3, 4), self.eps)  # (R, 2, T, S, N)
        weights = forward if cache is None else cache.append_weights(forward)  # (R, 2, S, N, S)
        tokens = torch.matmul(backward.flatten(3), weights.flatten(2, 3))  # (R, 2, T, S)
        of_bias = torch.matmul(backward.sum(3), bias).flatten(1, 2)  # (R, 2 * T, d)
        mixed = torch.baddbmm(of_bias, backward.sum(4).flatten(1, 2), conditions)  # (R, 2 * T, d)
        return (
            torch.baddbmm(mixed[:, :length], tokens[:, 0], positive),
            torch.baddbmm(mixed[:, length:], tokens[:, 1], negative),
        )
