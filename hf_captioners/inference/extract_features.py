"""Running a backbone over the pictures of a dataset once, into a feature store.

Training a captioner on a frozen backbone looks at the same pictures in every epoch; their features never change, and
computing them is by far the larger part of a step. [`write_features`] computes them once. Pictures that cannot be read
are named and noted in the store, and the rest go on; an interrupted run continues where it was.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel

from ..data.features.store import (
    DEFAULT_SHARD_BYTES,
    FeatureError,
    FeatureStore,
    FeatureSummary,
    FeatureWriter,
    ImageId,
)
from ..data.progress import progress
from ..extras import of_extra
from ..modeling.captioner_backbone import GridBackbone, PooledBackbone
from ..modeling.captioner_base import CaptionerPreTrainedModel
from ..modeling.captioner_new import loading_problem
from ..modeling.captioner_trust import foreign_code
from ..modeling.configuration_captioner import CaptionerConfig
from ..modeling.image_processing_captioner import open_for_processor
from .device import choose_device
from .digests import settings_sha256, weights_sha256
from .opening_threads import idle_cores, opened_ahead

with of_extra():
    import datasets

logger = logging.getLogger(__name__)


class FeatureExtractor:
    """A vision backbone with its image processor: pictures in, tokens `[B, num_tokens, feature_size]` out.

    Args:
        model (`PreTrainedModel`):
            A captioner with a backbone, or a vision model of transformers whose `last_hidden_state` is `[B, C, H, W]`
            or `[B, L, C]` (with its class token, if it has one). It is put into evaluation mode.
        image_processor (`BaseImageProcessor`): What prepares a picture for it.
        name (`str`, *optional*): What to call the backbone in the metadata of a store; its model type by default.
        pooled (`bool`, defaults to `False`): Of a vision model, its one embedding of the whole picture instead of its
            grid: what CLIP-GPT2 reads. A captioner takes what it was made for.
        backbone_dtype (`torch.dtype`, *optional*): Precision to compute in, such as `torch.bfloat16`; by default that
            of the weights. The store says so, and is continued in the same one.

    Raises:
        ValueError: The captioner has no backbone, or the model wants something else than pictures.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: Any,
        name: str | None = None,
        pooled: bool = False,
        backbone_dtype: torch.dtype | None = None,
    ) -> None:
        backbone = model.backbone if isinstance(model, CaptionerPreTrainedModel) else model
        model_type = model.config.model_type
        if backbone is None:
            raise ValueError(f"this {model_type} was made for cached features and has no backbone to compute them with")
        if backbone.main_input_name != "pixel_values":
            raise ValueError(
                f"a {model_type} takes {backbone.main_input_name}, not pictures alone; expected a captioner or a "
                "vision backbone (of a CLIP, its vision tower)"
            )
        self.model = model.eval()
        self.image_processor = image_processor
        self._backbone: PreTrainedModel = backbone
        self._name = name or backbone.config.model_type
        self._pooled = pooled and model is backbone
        self._precision: dict[str, str] = {}
        if backbone_dtype not in (None, backbone.dtype):
            cast(Any, backbone).to(dtype=backbone_dtype)
            self._precision["backbone_dtype"] = str(backbone_dtype).removeprefix("torch.")

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "auto",
        pooled: bool = False,
        trust_remote_code: bool = False,
        backbone_dtype: torch.dtype | None = None,
    ) -> "FeatureExtractor":
        """Load a saved captioner or vision backbone and its image processor.

        Args:
            folder (`str` or `os.PathLike`): Folder of `save_pretrained`, or a name on the Hub. Of a CLIP or another
                model of pictures and text, its vision tower is taken.
            device (`str` or `torch.device`, defaults to `"auto"`): Where to run; `"auto"` takes a GPU if there is one.
            pooled (`bool`, defaults to `False`): See [`FeatureExtractor`]. Of a CLIP, the projected embedding.
            trust_remote_code (`bool`, defaults to `False`): Whether code that comes with the folder may run.
            backbone_dtype (`torch.dtype`, *optional*): See [`FeatureExtractor`].

        Raises:
            ValueError: There is no such model or device, or it has no image processor, or see [`FeatureExtractor`].
        """
        target = choose_device(device)
        try:
            with foreign_code(folder, trust_remote_code):
                options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
                model: Any = _load(str(folder), pooled, options)
                image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **options)  # as captioners
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            reason = loading_problem(folder, error) if isinstance(error, OSError) else error
            raise ValueError(f"{folder}: no model with an image processor could be loaded: {reason}") from error
        return cls(
            model.to(target),
            image_processor,
            Path(folder).resolve().name if Path(folder).is_dir() else str(folder),
            pooled,
            backbone_dtype,
        )

    @torch.inference_mode()
    def __call__(self, pixel_values: Tensor) -> Tensor:
        """Tokens `[B, num_tokens, feature_size]` of preprocessed pictures `[B, 3, height, width]`."""
        pixel_values = pixel_values.to(self.model.device, self._backbone.dtype)
        if isinstance(self.model, CaptionerPreTrainedModel):
            return self.model.extract_image_features(pixel_values)
        reader = PooledBackbone if self._pooled else GridBackbone
        return reader.tokens(self.model(pixel_values=pixel_values))

    def metadata(self) -> dict[str, str]:
        """Origin of the features: the backbone's name, precision and digest, and the digest of the preprocessing."""
        return {
            "backbone": f"{self._name}, pooled" if self._pooled else self._name,
            "backbone_sha256": weights_sha256(self._backbone),
            "image_processor_sha256": settings_sha256(self.image_processor),
            **self._precision,
        }


def _load(folder: str, pooled: bool, options: dict[str, Any]) -> PreTrainedModel:
    """A captioner, or a vision backbone: with what pools its tokens, as CLIP-GPT2 has it, or without, as DiCO."""
    config = AutoConfig.from_pretrained(folder, **options)
    if not isinstance(config, CaptionerConfig):
        return (PooledBackbone if pooled else GridBackbone).load(folder, **options)
    model: Any = AutoModel
    return model.from_pretrained(folder, **options)


class _Images(Dataset[tuple[ImageId, "Tensor | str"]]):
    """Preprocessed pictures `[3, height, width]` of the rows; the reason instead where one cannot be used."""

    def __init__(self, rows: datasets.Dataset, image_processor: Any) -> None:
        self.rows = rows
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[ImageId, Tensor | str]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[ImageId, Tensor | str]]:
        """A batch, prepared in one call; PyTorch's `DataLoader` asks for it by this name."""
        columns = self.rows[indices]
        images = [self._open(image) for image in columns["image"]]
        opened = [image for image in images if not isinstance(image, str)]
        try:
            prepared = iter(self._prepare(opened) if opened else ())
        except (ValueError, OSError):  # of one of them, or they are of different sizes
            prepared = iter([self._prepare_alone(image) for image in opened])
        found = [image if isinstance(image, str) else next(prepared) for image in images]
        return list(zip(columns["image_id"], found, strict=True))

    def _open(self, source: Any) -> Any:
        try:
            return open_for_processor(source, self.image_processor)
        except (ValueError, OSError) as error:
            return str(error)

    def _prepare(self, images: list[Any]) -> Any:
        return self.image_processor(images=images, return_tensors="pt")["pixel_values"]

    def _prepare_alone(self, image: Any) -> Tensor | str:
        try:
            return self._prepare([image])[0]
        except (ValueError, OSError) as error:
            return str(error)


def write_features(
    extractor: FeatureExtractor,
    dataset: datasets.Dataset,
    out_dir: str | os.PathLike[str],
    *,
    batch_size: int = 16,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    num_workers: int = 0,
) -> FeatureSummary:
    """Compute the features of all pictures of a dataset and store them, with a progress bar on a terminal's stderr.

    Images that `out_dir` already has are skipped, so that the same call continues an interrupted run; images that
    failed are tried again.

    Args:
        extractor ([`FeatureExtractor`]): The backbone.
        dataset (`datasets.Dataset`): Rows with `image` and a unique `image_id`, such as those of `load_karpathy`.
        out_dir (`str` or `os.PathLike`): Folder of the store.
        batch_size (`int`, defaults to 16): Pictures at a time.
        dtype (`torch.dtype`, defaults to `torch.float16`): Precision in the store, see [`FeatureWriter`].
        shard_bytes (`int`, defaults to 500,000,000): Size of the files.
        num_workers (`int`, defaults to 0): Processes that read and preprocess pictures beside the backbone; by default
            threads, one for each processor core that the backbone leaves idle, at least one and at most 4.

    Returns:
        [`FeatureSummary`]: with the pictures that have no features; each is also a warning in the log and an entry of
        `errors` in the store's index.

    Raises:
        FeatureError: `out_dir` has features of another backbone, preprocessing or dtype.
        ValueError: The dataset lacks a column or has an image twice, or `batch_size` is below 1.

    Example:

    ```python
    >>> extractor = FeatureExtractor.from_pretrained("swin-large-384")  # doctest: +SKIP
    >>> dataset = load_karpathy("dataset_coco.json", "coco/images", split="all")  # doctest: +SKIP
    >>> write_features(extractor, dataset, "coco-swin-features").count  # doctest: +SKIP
    123287

    ```
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")
    absent = {"image", "image_id"} - set(dataset.column_names)
    if absent:
        raise ValueError(f"the dataset has no column {' and no column '.join(sorted(absent))}; expected both")
    # encoded pictures: `open_image` is stricter than the decoder of `datasets`
    rows = dataset.select_columns(["image_id", "image"]).cast_column("image", datasets.Image(decode=False))
    ids = list(rows["image_id"])
    if len(set(ids)) < len(ids):
        raise ValueError(f"the dataset has {len(ids)} rows but {len(set(ids))} different values of image_id")
    errors: dict[ImageId, str] = {}
    with FeatureWriter(out_dir, dtype=dtype, shard_bytes=shard_bytes, metadata=extractor.metadata()) as writer:
        todo = [index for index, image_id in enumerate(ids) if image_id not in writer]
        images = _Images(rows.select(todo), extractor.image_processor)
        batches = _batches(images, batch_size, num_workers, extractor.model.device)
        with progress(total=len(ids), initial=len(ids) - len(todo), desc="features", unit="image") as bar:
            for batch in batches:
                errors |= _add_batch(writer, extractor, batch)
                bar.update(len(batch))
    store = FeatureStore(out_dir)
    return FeatureSummary(str(store.folder), len(store), len(todo) - len(errors), store.num_bytes, errors)


def _batches(images: _Images, batch_size: int, num_workers: int, device: torch.device) -> Iterator[list[Any]]:
    """Pictures prepared by processes, or by threads on idle cores."""
    if num_workers:
        yield from DataLoader(images, batch_size, num_workers=num_workers, collate_fn=list)
        return
    workers = idle_cores(device)
    for slices in opened_ahead(range(len(images)), batch_size, images.__getitems__, lambda batch: workers):
        yield [image for _, opened in slices for image in opened.result()]


def _add_batch(
    writer: FeatureWriter, extractor: FeatureExtractor, batch: list[tuple[ImageId, Tensor | str]]
) -> dict[ImageId, str]:
    """Store the features of a batch; returns the images that have none, and why."""
    pixels = {image_id: image for image_id, image in batch if isinstance(image, Tensor)}
    errors = {image_id: reason for image_id, reason in batch if isinstance(reason, str)}
    if len({image.shape for image in pixels.values()}) > 1:
        raise ValueError("the image processor makes pictures of different sizes; expected batch_size=1 with it")
    if pixels:
        features = extractor(torch.stack(list(pixels.values())))
        for image_id, rows in zip(pixels, features, strict=True):
            try:
                writer.add(image_id, rows)
            except FeatureError as error:
                errors[image_id] = str(error)
    for image_id, reason in errors.items():
        logger.warning("image %r has no features: %s", image_id, reason)
        writer.record_error(image_id, reason)
    return errors
