"""The `image-to-text` pipeline: pictures in, captions out, no prompt needed. transformers 5 no longer has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.pipelines.base import Pipeline

from .image_processing_captioner import open_picture


class ImageToTextPipeline(Pipeline):
    """Caption pictures with any captioner of this package.

    Accepts a path, a URL, a PIL picture, a tensor of cached features `(tokens, width)`, a `dict` with
    `image_features`, or a list, generator or dataset of these. Returns `[{"generated_text": "…"}]` for a picture and a
    list of that for several.

    Args of a call (all *optional*; also accepted by `pipeline(…)`):
        prompt (`str`): how the caption begins.
        max_new_tokens (`int`): longest caption in tokens, without the start token.
        generate_kwargs (`dict`): anything that `generate` takes.
        timeout (`float`): seconds to wait for a URL.

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                "the image-to-text pipeline needs the captioner's processor: give "
                "processor=AutoProcessor.from_pretrained(…) beside the model."
            )
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
        if isinstance(inputs, list) and not inputs:  # transformers looks at the first one
            return []
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any, prompt: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """One picture as the model's inputs, each with a batch dimension of 1."""
        if isinstance(inputs, dict) and "image_features" in inputs:
            inputs = torch.as_tensor(inputs["image_features"])
        if isinstance(inputs, torch.Tensor):
            if inputs.ndim != 2:
                raise ValueError(
                    f"the features of a picture must be (tokens, width), not {tuple(inputs.shape)}; give the pipeline "
                    "several pictures as a list."
                )
            batch = self.processor(image_features=inputs[None], text=prompt)
        else:
            limits = {} if timeout is None else {"timeout": timeout}
            picture = open_picture(inputs, self.processor.image_processor, **limits)
            batch = self.processor(images=picture, text=prompt, return_tensors="pt")
        return dict(batch)

    def _forward(self, model_inputs: dict[str, torch.Tensor], **generate_kwargs: Any) -> dict[str, Any]:
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs, return_dict_in_generate=False)
        pictures = next(iter(model_inputs.values())).shape[0]
        ids = self.model.generate(**model_inputs, **generate_kwargs)
        return {"output_ids": ids.view(pictures, -1, ids.shape[-1])}

    def postprocess(self, model_outputs: dict[str, torch.Tensor]) -> list[dict[str, str]]:
        """The captions of one picture."""
        ids = model_outputs["output_ids"]
        captions = self.processor.batch_decode(ids[0] if ids.ndim == 3 else ids, skip_special_tokens=True)
        return [{"generated_text": caption.strip()} for caption in captions]

    def save_pretrained(self, save_directory: str | Path, ship_code: bool = False, **kwargs: Any) -> None:
        """Save the model and its processor as one folder; see `CaptionerPreTrainedModel.save_pretrained`."""
        self.model.save_pretrained(save_directory, ship_code=ship_code, **kwargs)
        self.processor.save_pretrained(save_directory, ship_code=ship_code)
