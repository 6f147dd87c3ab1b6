"""Several metrics at once: tokenised once, with corpus scores, scores per image and the evaluation signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .._version import __version__
from ..metric_table import DEFAULT_METRICS, METRICS, printed
from .cider.document_frequency import DocumentFrequencies
from .distributed import gather_rows
from .inputs import MetricInputError, check_pairs
from .pair_counts import PairCounts
from .scores import Scores
from .signature import hash_captions, signature_text
from .tokens import Tokenizer, prepare_pairs, tokenizer_name


@dataclass(frozen=True)
class Evaluation(Scores):
    """Scores, and what they were computed from.

    Attributes:
        corpus (`dict[str, float]`): name -> score, on the metric's own scale: 0 to 1, CIDEr and CIDEr-D 0 to 10.
        per_image (`dict[str, np.ndarray]`): name -> float64 of shape (number of images,).
        settings (`dict[str, dict]`): metric -> every option by which its numbers could be others.
        image_ids (`list`): the images, in the order of `per_image`.
        signature (`dict`): metrics, tokenizer, number and hash of the references, the settings, version. Two suites
            that can give different numbers for the same captions have different signatures.
    """

    image_ids: list[Any]
    signature: dict[str, Any]

    @property
    def signature_text(self) -> str:
        """The signature on one line."""
        return signature_text(self.signature)

    def of_captions(self, settings: Mapping[str, Any]) -> Evaluation:
        """The same scores, with a signature that also says how the captions were written.

        Args:
            settings (`Mapping[str, Any]`): such as those of [`decoding_settings`]; `captions` in the signature.

        Returns:
            [`Evaluation`]
        """
        return replace(self, signature={**self.signature, "captions": dict(settings)})

    def table(self) -> list[tuple[str, str]]:
        """The corpus scores as papers print them, a (name, number) per score; the name says what it was multiplied by.

        Returns:
            `list[tuple[str, str]]`: such as `("CIDEr-D x 100", "127.18")`.
        """
        rows = []
        for name, value in self.corpus.items():
            entry = printed(name)
            row = (name.replace("_", " "), f"{value:.4g}") if entry is None else (entry.full_label, entry.text(value))
            rows.append(row)
        return rows


class CaptionMetrics:
    """Score captions with several metrics.

    Args:
        metrics (`Sequence[str]`, defaults to `("bleu", "rouge_l", "cider_d")`): names of the table `METRICS`: `"bleu"`,
            `"meteor"`, `"rouge_l"`, `"cider"`, `"cider_d"`, `"spice"`, `"clip_s"`, `"pac_s"`, `"diversity"`.
        document_frequencies ([`DocumentFrequencies`], *optional*): those of CIDEr and CIDEr-D; by default of the
            references that are scored, as the reference tools do.
        in_sequence (`bool`, defaults to `False`): read an abbreviation at the end of a caption depending on the next
            caption, as the reference tools do. Of COCO's 202,654 captions of val2014 this changes the tokens of one,
            and CIDEr-D by 2e-7; in exchange a caption's score depends on the order of the captions.
        options (`Mapping[str, Mapping[str, Any]]`, *optional*): further arguments by metric, such as
            `{"clip_s": {"scorer": ClipScorer(...)}, "spice": {"timeout_s": 600}}`.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts captions into words, see [`tokenize`]: that of
            the COCO evaluation; `"unicode"` for other languages than English, with single characters where a script has
            no spaces; or a function that finds words, or its name, such as `"jieba:lcut"`.

    Raises:
        ValueError: an unknown metric, tokenizer or option, a scorer that is missing, options or document frequencies
            that none of the metrics reads, or document frequencies that were counted with another tokenizer.

    Example:

    ```python
    >>> from hf_captioners.metrics import CaptionMetrics
    >>> captions = ["A dog runs on the grass.", "Two cats on a chair."]
    >>> references = [["A dog running on grass.", "The dog runs."], ["Two cats sit on a chair.", "Cats on a chair."]]
    >>> evaluation = CaptionMetrics(["bleu", "cider_d"])(captions, references)
    >>> round(evaluation.corpus["cider_d"], 4)
    4.2472
    >>> evaluation.per_image["bleu_1"].shape
    (2,)

    ```
    """

    def __init__(
        self,
        metrics: Sequence[str] = DEFAULT_METRICS,
        document_frequencies: DocumentFrequencies | None = None,
        in_sequence: bool = False,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        tokenizer: Tokenizer = "ptb",
    ) -> None:
        for name in [*metrics, *(options or {})]:
            if name not in METRICS:
                raise ValueError(f"no metric {name!r}; expected some of {', '.join(METRICS)}")
        self.metrics = tuple(dict.fromkeys(metrics))
        self.document_frequencies = document_frequencies
        self.in_sequence = in_sequence
        self.tokenizer = tokenizer
        self.tokenizer_name = tokenizer_name(tokenizer, in_sequence=in_sequence)
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        self._check_options()

    def _check_options(self) -> None:
        if self.document_frequencies is not None:
            readers = [name for name, metric in METRICS.items() if "document_frequencies" in metric.reads]
            if not set(readers) & set(self.metrics):
                raise ValueError(f"document_frequencies are read by {' and '.join(readers)}, not by {self.metrics}")
            self.document_frequencies.check_tokenizer(self.tokenizer)
        for name, values in self.options.items():
            if name not in self.metrics:
                raise ValueError(f"options of {name!r}, which is none of the metrics {self.metrics}")
            option_names = METRICS[name].options()
            for option in values:
                if option not in option_names:
                    raise ValueError(
                        f"{name} has no option {option!r}; expected some of {', '.join(option_names) or 'none'}"
                    )
        for name in self.metrics:
            if METRICS[name].scorer is not None and "scorer" not in self.options.get(name, {}):
                scorer_class = METRICS[name].load_scorer().__name__
                raise ValueError(
                    f"{name} needs a CLIP model; give options={{{name!r}: {{'scorer': {scorer_class}(...)}}}}"
                )

    def __call__(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        image_ids: Sequence[Any] | None = None,
        images: Sequence[Any] | None = None,
        distributed: bool = False,
    ) -> Evaluation:
        """Score captions.

        Args:
            predictions (`Sequence[str]`): a caption per image.
            references (`Sequence[Sequence[str]]`): the references of each image.
            image_ids (`Sequence`, *optional*): names of the images, for messages and results; by default positions.
            images (`Sequence`, *optional*): the pictures (paths or PIL pictures), for `"clip_s"` and `"pac_s"`.
            distributed (`bool`, defaults to `False`): the arguments are this process's share; gather those of all
                processes first. Needs `image_ids`. Every process gets the scores of all images.

        Returns:
            [`Evaluation`]

        Raises:
            MetricInputError: captions that cannot be scored; the image is named.
        """
        check_pairs(predictions, references, None if distributed else image_ids)
        if images is not None and len(images) != len(predictions):
            raise MetricInputError(f"{len(images)} images for {len(predictions)} predictions; expected one each")
        if distributed:
            all_images = [None] * len(predictions) if images is None else images
            lists = [list(image_references) for image_references in references]
            image_ids, predictions, references, all_images = gather_rows(
                image_ids, list(predictions), lists, all_images
            )
            images = None if images is None else all_images
        names = list(range(len(predictions)) if image_ids is None else image_ids)
        words = prepare_pairs(predictions, references, False, names, self.in_sequence, self.tokenizer)
        shared = {"images": images, "document_frequencies": self.document_frequencies}
        texts = {"predictions": predictions, "references": references, **shared}
        tokens = {"predictions": words[0], "references": words[1], **shared, **self._counts(*words)}
        scores = {name: self._score(name, texts, tokens, names) for name in self.metrics}
        settings = {name: metric_scores.settings for name, metric_scores in scores.items()}
        return Evaluation(
            {name: value for metric_scores in scores.values() for name, value in metric_scores.corpus.items()},
            {name: values for metric_scores in scores.values() for name, values in metric_scores.per_image.items()},
            names,
            self._signature(words[1], settings),
            settings=settings,
        )

    def _counts(self, predictions: list[str], references: list[list[str]]) -> dict[str, PairCounts]:
        """The n-grams that several metrics read, where one of the metrics does."""
        if not any(METRICS[name].counts for name in self.metrics):
            return {}
        known = None if self.document_frequencies is None else self.document_frequencies.numbers
        return {"counts": PairCounts([[prediction] for prediction in predictions], references, known)}

    def _score(self, name: str, texts: Mapping[str, Any], tokens: Mapping[str, Any], image_ids: list[Any]) -> Scores:
        metric, options = METRICS[name], self.options.get(name, {})
        if "images" in metric.reads and texts["images"] is None:
            raise MetricInputError(f"{name} looks at the pictures; give images=")
        if metric.as_written:
            inputs = {key: texts[key] for key in metric.reads}
        else:
            inputs = {key: tokens[key] for key in metric.reads} | {"tokenized": True}
            if metric.counts:
                inputs["counts"] = tokens["counts"]
        scores: Scores = metric.load()(**inputs, image_ids=image_ids, **options)
        return scores

    def _signature(self, references: list[list[str]], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {
            "metrics": list(self.metrics),
            "tokenizer": self.tokenizer_name,
            "images": len(references),
            "references": sum(map(len, references)),
            "references_hash": hash_captions(references),
            **settings,
            "version": __version__,
        }
