"""CLIP-S and PAC-S of each completion as a reward for TRL's `GRPOTrainer` and relatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..metrics.clip_score import ClipScorer
from ..metrics.inputs import MetricInputError


class ClipReward:
    """The score of a caption on its picture by a [`ClipScorer`] or [`PacScorer`].

    A picture is encoded once per call, however many completions it has. Without a picture column in the data, a reward
    cannot be given.

    The reward of the DiCO paper's code is PAC-S of the token ids, truncated captions and all (specification of the
    original, section 7.3):
    `ClipReward(PacScorer(folder, prefix="", clip_negative=False, pad_token_id=49408), use_ids=True)`.

    Args:
        scorer ([`ClipScorer`]): the model and the variant; a [`PacScorer`] makes it PAC-S.
        use_references (`bool`, defaults to `False`): RefCLIP-S or RefPAC-S, with the column `captions`.
        use_ids (`bool`, defaults to `False`): score `completion_ids` instead of the texts. For captioners that share
            the vocabulary of CLIP: nothing is detokenised, and a caption that does not end is scored without EOS.

    Example:

    ```python
    >>> import torch
    >>> from transformers import CLIPConfig, CLIPModel
    >>> from hf_captioners.metrics.clip_score import ClipScorer
    >>> from hf_captioners.rewards.clip import ClipReward
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = CLIPConfig(text_config={**size, "vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19},
    ...                     vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=4)
    >>> reward = ClipReward(ClipScorer(CLIPModel(config)), use_ids=True)
    >>> reward.__name__
    'clip_s'
    >>> rewards = reward(["a", "b"], completion_ids=[[3, 19], [5, 4, 19]], image=list(torch.zeros(2, 3, 32, 32)))
    >>> [type(one).__name__ for one in rewards]
    ['float', 'float']

    ```
    """

    def __init__(self, scorer: ClipScorer, *, use_references: bool = False, use_ids: bool = False) -> None:
        self.scorer = scorer
        self.use_references = use_references
        self.use_ids = use_ids

    @property
    def __name__(self) -> str:
        """The name that TRL logs the reward under."""
        return f"ref_{self.scorer.name}" if self.use_references else self.scorer.name

    def __call__(
        self,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | Tensor | None = None,
        image: Sequence[Any] | Tensor | None = None,
        images: Sequence[Any] | Tensor | None = None,
        captions: Sequence[Sequence[str]] | None = None,
        image_id: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """The reward of each completion.

        Args:
            completions (`Sequence[str]`): generated captions.
            completion_ids (`Sequence[Sequence[int]]` or `torch.Tensor`, *optional*): their token ids, for `use_ids`.
            image, images (`Sequence` or `torch.Tensor`): one of the two, the column of the data set as TRL repeats it:
                for each completion its picture (in a list of one in TRL's own data sets) or its prepared
                `pixel_values` of shape (3, height, width); or features of shape (completions, width).
            captions (`Sequence[Sequence[str]]`, *optional*): for each completion the references of its picture.
            image_id (`Sequence`, *optional*): for each completion the name of its picture. Rows with the same name have
                the same picture, which is encoded once; otherwise pictures are the same if they are the same object or
                path.
            kwargs: what else TRL gives; not looked at.

        Returns:
            `list[float]`: one per completion.

        Raises:
            MetricInputError: a column is missing, or has another length than the completions; see [`ClipScorer.score`].
        """
        if not all(isinstance(completion, str) for completion in completions):
            raise MetricInputError("completions: expected a list of strings, not of conversations")
        pictures = _column("image", images if image is None else image, len(completions))
        texts = _column("completion_ids", completion_ids, len(completions)) if self.use_ids else completions
        references = _column("captions", captions, len(completions)) if self.use_references else None
        names = range(len(completions)) if image_id is None else _column("image_id", image_id, len(completions))
        score, with_references = self.scorer.score(_shared(pictures, names), texts, references, names)
        return (score if with_references is None else with_references).tolist()


def _shared(pictures: Sequence[Any] | Tensor, names: Sequence[Any]) -> Sequence[Any] | Tensor:
    """The pictures, those of the same name as one object, which the scorer encodes once; features pass."""
    if isinstance(pictures, Tensor) and pictures.dim() == 2:
        return pictures
    shared: dict[Any, Any] = {}
    return [
        shared.setdefault(name, one[0] if isinstance(one, (list, tuple)) and len(one) == 1 else one)
        for name, one in zip(names, pictures, strict=True)
    ]


def _column(name: str, values: Any, number: int) -> Any:
    """A column of the batch, of the right length."""
    if values is None:
        raise MetricInputError(f"no column {name!r}: the reward needs it, for each completion one")
    if len(values) != number:
        raise MetricInputError(f"{len(values)} values of {name!r} for {number} completions; expected one each")
    return values
