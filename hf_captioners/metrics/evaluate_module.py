"""The caption metrics as a module of the `evaluate` library, loaded from this file: no network.

`evaluate.load` copies this file and imports the copy, so everything it uses is imported from the installed package.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from hf_captioners.metrics import DEFAULT_METRICS, METRICS, CaptionMetrics

DESCRIPTION = """\
BLEU, METEOR, ROUGE-L, CIDEr, CIDEr-D, SPICE, CLIP-S, PAC-S and diversity of captions, as the COCO reference tools give.
The configuration names the metric; "default" is """ + ", ".join(DEFAULT_METRICS)

KWARGS_DESCRIPTION = """
Args:
    predictions (`list[str]`): a caption per image.
    references (`list[list[str]]`): the references of each image.
    document_frequencies (`DocumentFrequencies`, *optional*): those of CIDEr and CIDEr-D.
    images (`list`, *optional*): the pictures, for CLIP-S and PAC-S.
    tokenizer (`str`, defaults to "ptb"): "ptb", "unicode", or a function as "module:function".
    options (`dict`, *optional*): further arguments of the metric.
Returns:
    `dict`: name -> corpus score; `per_image`: name -> list of a score per image; `signature`: the evaluation signature.
"""


class CaptionMetricsModule(evaluate.Metric):
    """The metric that `evaluate.load` makes; see [`CaptionMetrics`].

    Example:

    ```python
    >>> import evaluate
    >>> from hf_captioners.metrics import EVALUATE_MODULE
    >>> cider_d = evaluate.load(EVALUATE_MODULE, "cider_d")  # doctest: +SKIP
    >>> cider_d.compute(predictions=captions, references=references)["cider_d"]  # doctest: +SKIP

    ```
    """

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", *METRICS):
            raise ValueError(f"no metric {self.config_name!r}; expected 'default' or one of {', '.join(METRICS)}")
        columns = {"predictions": datasets.Value("string"), "references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=KWARGS_DESCRIPTION,
            features=datasets.Features(columns),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        document_frequencies: Any = None,
        images: list[Any] | None = None,
        tokenizer: str = "ptb",
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        default = self.config_name == "default"
        metrics = DEFAULT_METRICS if default else (self.config_name,)
        chosen = None if options is None else options if default else {self.config_name: options}
        suite = CaptionMetrics(metrics, document_frequencies, tokenizer=tokenizer, options=chosen)
        evaluation = suite(predictions, references, images=images)
        per_image = {name: values.tolist() for name, values in evaluation.per_image.items()}
        return {**evaluation.corpus, "per_image": per_image, "signature": evaluation.signature_text}
