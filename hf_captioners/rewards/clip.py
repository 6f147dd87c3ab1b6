"""CLIP-S and PAC-S of each completion as a reward for the trainers, with TRL's signature.

What differs from the reward of the DiCO code (specification of the original, section 7.3): pictures are prepared by the
scorer's own image processor unless `use_pixel_values` says otherwise, and a picture is encoded once, not once per step.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel

from ..data.features.store import FeatureStore
from ..data.opened_images import OpenedImages
from ..metrics.clip.clip_score import ClipScorer
from ..metrics.inputs import MetricInputError
from ..modeling.captioner_image_io import ImageError, open_image


class ClipReward:
    """The score of a caption on its picture by a [`ClipScorer`] or [`PacScorer`].

    A picture is encoded once, however many completions it has and in however many epochs it comes back: its features
    are kept, as many pictures as `cache_images` says; the oldest leave first. A picture is recognised by its path, or
    else by its content, and not by its `image_id`, which another split may give to another picture. The scorer's model
    has to stay as it is.

    The reward of the DiCO paper's code is PAC-S of the token ids, truncated captions and all, on the captioner's own
    tensor: `ClipReward(PacScorer(folder, prefix="", clip_negative=False, pad_token_id=49408), use_ids=True,
    use_pixel_values=True)`.

    Args:
        scorer ([`ClipScorer`]): the model and the variant; a [`PacScorer`] makes it PAC-S.
        use_references (`bool`, defaults to `False`): RefCLIP-S or RefPAC-S, with the column `captions`.
        use_ids (`bool`, defaults to `False`): score `completion_ids` instead of the texts. For captioners that share
            the vocabulary of CLIP: nothing is detokenised, and a caption that does not end is scored without EOS.
        use_pixel_values (`bool`, defaults to `False`): score the captioner's `pixel_values` instead of the pictures.
            Right only where captioner and scorer prepare pictures alike, which cannot be checked beyond the size.
        features (`Mapping` or [`FeatureStore`], *optional*): instead of pictures, `image_id` -> what
            `scorer.image_features` gave for the picture, of shape (width,) or (1, width), best in float32. For rows
            without pictures, as with cached features of the captioner.
        cache_images (`int`, defaults to 120,000): pictures whose features are kept, about 2.5 kB each at a width of
            512. COCO's training split has 113,287.

    Raises:
        ValueError: `cache_images` below 0, or `features` and `use_pixel_values` both.

    Example:

    ```python
    >>> import torch
    >>> from transformers import CLIPConfig, CLIPModel
    >>> from hf_captioners.metrics.clip.clip_score import ClipScorer
    >>> from hf_captioners.rewards.clip import ClipReward
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = CLIPConfig(text_config={**size, "vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19},
    ...                     vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=4)
    >>> reward = ClipReward(ClipScorer(CLIPModel(config)), use_ids=True)
    >>> reward.__name__
    'clip_s'
    >>> rewards = reward(["a", "b"], completion_ids=[[3, 19], [5, 4, 19]], image=list(torch.zeros(2, 3, 32, 32)))
    >>> [type(value).__name__ for value in rewards]
    ['float', 'float']

    ```
    """

    def __init__(
        self,
        scorer: ClipScorer,
        *,
        use_references: bool = False,
        use_ids: bool = False,
        use_pixel_values: bool = False,
        features: Mapping[Any, Tensor] | FeatureStore | None = None,
        cache_images: int = 120_000,
    ) -> None:
        if cache_images < 0:
            raise ValueError(f"cache_images is {cache_images}, expected a number of pictures, at least 0")
        if use_pixel_values and features is not None:
            raise ValueError("features and use_pixel_values=True are both in the place of pictures; give one of them")
        self.scorer = scorer
        self.use_references = use_references
        self.use_ids = use_ids
        self.use_pixel_values = use_pixel_values
        self.features = features
        self.cache_images = cache_images
        self._encoded: dict[Hashable, np.ndarray] = {}  # a picture -> its features, float32 of shape (width,)

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
        image_id: Sequence[Any] | Tensor | None = None,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
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
                the same picture. For `features` it is needed.
            pixel_values (`torch.Tensor` of shape (pictures, 3, height, width), or list, *optional*): the inputs of
                the captioner, for `use_pixel_values`; one per completion, or one per as many completions, side by side.
            kwargs: what else TRL gives; not used.

        Returns:
            `list[float]`: one per completion.

        Raises:
            MetricInputError: a column is missing, or has another length than the completions; see [`ClipScorer.score`].
        """
        if not all(isinstance(completion, str) for completion in completions):
            raise MetricInputError("completions: expected a list of strings, not of conversations")
        number = len(completions)
        names = range(number) if image_id is None else _names(image_id, number)
        texts = _column("completion_ids", completion_ids, number) if self.use_ids else completions
        references = _column("captions", captions, number) if self.use_references else None
        if self.features is not None:
            features = self._look_up(self.features, _names(image_id, number))
        elif self.use_pixel_values:
            prepared = self._check_pixel_values(pixel_values, number)
            completions_per_image = number // len(prepared)  # completions of each picture
            shared_images = _shared(prepared, names[::completions_per_image])
            features = self._encode(shared_images, names[::completions_per_image]).repeat_interleave(
                completions_per_image, dim=0
            )
        else:
            column = images if image is None else image
            image_inputs = _column("image", column.closed if isinstance(column, OpenedImages) else column, number)
            is_encoded = isinstance(image_inputs, Tensor) and image_inputs.dim() == 2
            features = image_inputs if is_encoded else self._encode(_shared(image_inputs, names), names)
        score, with_references = self.scorer.score(features, texts, references, names)
        return (score if with_references is None else with_references).tolist()

    def _encode(self, images: list[Any], names: Sequence[Any]) -> Tensor:
        """The features of pictures, (pictures, width): kept ones, and those of new pictures."""
        objects = {id(image): image for image in images} if self.cache_images else {}
        fingerprints = {name: _fingerprint(image) for name, image in objects.items()}
        if not self.cache_images or None in fingerprints.values():
            return self.scorer.image_features(images, names)
        keys = [fingerprints[id(image)] for image in images]
        new: dict[Hashable, int] = {}  # fingerprint of a picture -> its row
        for row, key in enumerate(keys):
            if key not in self._encoded:
                new.setdefault(key, row)
        if new:
            rows = list(new.values())
            encoded = self.scorer.image_features([images[row] for row in rows], [names[row] for row in rows])
            self._encoded.update(zip(new, (vector.copy() for vector in encoded.cpu().numpy()), strict=True))
        features = torch.from_numpy(np.stack([self._encoded[key] for key in keys]))  # (pictures, width)
        for oldest in list(islice(self._encoded, max(len(self._encoded) - self.cache_images, 0))):
            del self._encoded[oldest]
        return features

    def _look_up(self, features: Mapping[Any, Tensor] | FeatureStore, names: Sequence[Any]) -> Tensor:
        """The features that were made beforehand, (completions, width)."""
        width: Any = self.scorer.model.config.projection_dim
        vectors: dict[Any, Tensor] = {}
        for name in dict.fromkeys(names):
            try:
                vector = torch.as_tensor(features[name], dtype=torch.float32, device="cpu")
            except KeyError as error:
                raise MetricInputError(f"image {name}: the reward's features have none of it") from error
            if tuple(vector.shape) not in ((width,), (1, width)):
                raise MetricInputError(
                    f"image {name}: features of shape {tuple(vector.shape)}; the scorer's are of shape ({width},)"
                )
            vectors[name] = vector.reshape(width)
        return torch.stack([vectors[name] for name in names])  # (completions, width)

    def _check_pixel_values(self, pixel_values: Tensor | Sequence[Tensor] | None, number: int) -> Tensor:
        if pixel_values is None:
            raise MetricInputError("no pixel_values: the captioner's batch has none, so leave use_pixel_values away")
        if not isinstance(pixel_values, Tensor):
            pixel_values = torch.stack(list(pixel_values))
        if pixel_values.dim() != 4 or not 0 < len(pixel_values) <= number or number % len(pixel_values):
            raise MetricInputError(
                f"pixel_values of shape {tuple(pixel_values.shape)} for {number} completions; expected (pictures, 3, "
                "height, width) with as many completions for each picture"
            )
        if isinstance(self.scorer.model, CLIPModel):
            vision: Any = self.scorer.model.config.vision_config
            size = vision.image_size
            if tuple(pixel_values.shape[1:]) != (3, size, size):
                raise MetricInputError(
                    f"pixel_values of shape {tuple(pixel_values.shape)}, but the reward's model takes (pictures, 3, "
                    f"{size}, {size}); without use_pixel_values it prepares the pictures itself"
                )
        return pixel_values


def _fingerprint(image: Any) -> Hashable | None:
    """A key of a picture: its path, or a digest of its content. `None` for other objects."""
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _digest(image)
    if isinstance(image, Tensor):
        content = image.detach().cpu().flatten().view(torch.uint8)
        return str(image.dtype), tuple(image.shape), _digest(content.numpy())
    if isinstance(image, Image.Image):
        try:
            return image.mode, image.size, _digest(open_image(image).tobytes())
        except ImageError:  # the scorer raises it with the name of the picture
            return None
    return None


def _digest(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _shared(images: Sequence[Any] | Tensor, names: Sequence[Any]) -> list[Any]:
    """The pictures, where those of the same name are the same object, which is encoded once."""
    shared: dict[Any, Any] = {}
    return [
        shared.setdefault(name, image[0] if isinstance(image, (list, tuple)) and len(image) == 1 else image)
        for name, image in zip(names, images, strict=True)
    ]


def _column(name: str, values: Any, number: int) -> Any:
    """A column of the batch, of the right length."""
    if values is None:
        raise MetricInputError(f"no column {name!r}: the reward needs it, for each completion one")
    if len(values) != number:
        raise MetricInputError(f"{len(values)} values of {name!r} for {number} completions; expected one each")
    return values


def _names(image_id: Any, number: int) -> list[Any]:
    """The names of the pictures as plain values, because equal tensors are different keys."""
    values = _column("image_id", image_id, number)
    names = [value.item() if isinstance(value, Tensor) else value for value in values]
    if None in names:
        raise MetricInputError(f"completion {names.index(None)}: its image_id is None, expected the picture's name")
    return names
