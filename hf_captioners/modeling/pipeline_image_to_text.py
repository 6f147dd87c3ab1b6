"""The `image-to-text` pipeline: pictures in, captions out, no prompt needed. transformers 5 no longer has one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.pipelines.base import Pipeline

from .captioner_detector import use_detector
from .processing_captioner import image_columns, is_captioner_processor, open_row, padding_values, prepare_rows

# columns of rows that no captioner reads
_OF_DATA_SETS = ("image_id", "file_name", "split", "captions", "sentence_ids")


def _stacked(items: list[dict[str, torch.Tensor]], padding: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The inputs of several images, (1, …) each, as one batch; second dimensions of different lengths are padded."""
    batch = {}
    for name in dict.fromkeys(name for item in items for name in item):
        rows = [item[name][0] for item in items]
        padded = torch.nn.utils.rnn.pad_sequence
        batch[name] = padded(rows, True, padding.get(name, 0)) if rows[0].ndim else torch.stack(rows)
    return batch


class ImageToTextPipeline(Pipeline):
    """Caption pictures with any captioner of this package.

    Accepts a path, a URL, a PIL picture, a tensor of cached features `(tokens, width)`, a row (a `dict` with `image` or
    `image_features`, and with what else the captioner looks at, as `anchors`), or a list, generator or dataset of
    these. A key of a row that the captioner does not know is an error. Returns `[{"generated_text": "…"}]` for a
    picture and a list of that for a list.

    Args of a call (all *optional*; also accepted by `pipeline(…)`):
        prompt (`str`): how the caption begins.
        max_new_tokens (`int`): longest caption in tokens, without the start token.
        generate_kwargs (`dict`): anything that `generate` takes.
        timeout (`float`): seconds to wait for a URL.

    `detector` (`str` or [`CaptionerDetector`], *optional*) of the constructor: for a captioner of regions, what finds
    them in pictures; by default that of the captioner's `config.detector`.

    Example:

    ```python
    >>> from hf_captioners import pipeline
    >>> captioner = pipeline(model="captioner")  # doctest: +SKIP
    >>> captioner("cat.jpg")  # doctest: +SKIP
    [{'generated_text': 'a cat sitting on a chair'}]

    ```
    """

    model: Any
    processor: Any
    _load_processor: Any = True
    _load_image_processor = None
    _load_video_processor: Any = False
    _load_feature_extractor: Any = False
    _load_tokenizer = None
    _pipeline_calls_generate = True

    def __init__(self, *args: Any, detector: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "the image-to-text pipeline needs the captioner's processor: give "
                "processor=AutoProcessor.from_pretrained(…) beside the model."
            )
        if is_captioner_processor(self.processor):
            use_detector(self.model, self.processor, detector)
        elif detector is not None:
            raise ValueError(f"a {type(self.model).__name__} sees pictures itself, and takes no detector.")
        self.tokenizer = self.processor.tokenizer
        self.image_processor = self.processor.image_processor

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> tuple[dict, dict, dict]:
        preprocess = {key: value for key, value in {"prompt": prompt, "timeout": timeout}.items() if value is not None}
        generate_kwargs = {**(generate_kwargs or {}), **options}
        if max_new_tokens is not None:
            if "max_new_tokens" in generate_kwargs:
                raise ValueError("max_new_tokens is given twice: as an argument and in generate_kwargs.")
            generate_kwargs["max_new_tokens"] = max_new_tokens
        return preprocess, generate_kwargs, {}

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:
        """Caption `inputs`; see the class."""
        inputs = kwargs.pop("images", inputs)
        if inputs is None:
            raise ValueError("give the image-to-text pipeline at least one picture.")
        if isinstance(inputs, list) and not inputs:  # transformers reads the first element
            return []
        if isinstance(inputs, Sequence) and not isinstance(inputs, (list, str, bytes, bytearray, memoryview)):
            return list(
                super().__call__((one for one in inputs), **kwargs)
            )  # a column of a data set, opened as it goes
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, prompt: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """An image as the model's inputs, each with a batch dimension of 1."""
        row = open_row(self.processor, self._row(inputs), **({} if timeout is None else {"timeout": timeout}))
        # in a dict of its own: transformers stacks what it knows, and these are padded by the processor's rules
        return {"inputs": dict(prepare_rows(self.processor, [row], text=prompt))}

    def _row(self, inputs: Any) -> dict[str, Any]:
        """An image as a row with columns that the processor knows."""
        if isinstance(inputs, torch.Tensor):
            inputs = {"image_features": inputs}
        elif not isinstance(inputs, dict) or not inputs.keys() - {"path", "bytes"}:
            return {"image": inputs}
        known = self._known_columns()
        unknown = sorted(map(str, inputs.keys() - {*known, *_OF_DATA_SETS}))
        if unknown:
            raise ValueError(
                f"a row with {', '.join(unknown)}: this captioner looks at {', '.join(known)} and nothing else; leave "
                "out what it is not to see."
            )
        row = {name: value for name, value in inputs.items() if name in (*known, "image_id")}
        if "image_features" in row:
            row["image_features"] = torch.as_tensor(row["image_features"])
            if row["image_features"].ndim != 2:
                shape = tuple(row["image_features"].shape)
                raise ValueError(
                    f"the features of a picture must be (tokens, width), not {shape}; give the pipeline several "
                    "pictures as a list."
                )
        return row

    def _known_columns(self) -> Mapping[str, str]:
        """Columns of a row that make an image."""
        return image_columns(self.processor)

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs: Any) -> dict[str, Any]:
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=False)
        inputs = model_inputs["inputs"]
        if isinstance(inputs, list):
            inputs = _stacked(inputs, padding_values(self.processor))
        images = next(iter(inputs.values())).shape[0]
        ids = self.model.generate(**inputs, **generate_kwargs)
        return {"output_ids": ids.view(images, -1, ids.shape[-1])}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:
        """The captions of one picture."""
        ids = model_outputs["output_ids"]
        captions = self._decoded(ids[0] if ids.ndim == 3 else ids)
        return [{"generated_text": caption.strip()} for caption in captions]

    def _decoded(self, ids: torch.Tensor) -> list[str]:
        """Captions (N, T) as text."""
        return self.processor.batch_decode(ids, skip_special_tokens=True)

    def save_pretrained(self, save_directory: str | Path, ship_code: bool = False, **kwargs: Any) -> None:
        """Save the model and its processor as one folder; see `CaptionerPreTrainedModel.save_pretrained`."""
        self.model.save_pretrained(save_directory, ship_code=ship_code, **kwargs)
        self.processor.save_pretrained(save_directory, ship_code=ship_code)
