"""Several metrics at once: tokenised once, with corpus scores, scores per image and the evaluation signature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .._version import __version__
from .bleu import bleu
from .cider.cider import cider, cider_d
from .cider.document_frequency import DocumentFrequencies
from .distributed import gather_rows
from .diversity import diversity
from .inputs import MetricInputError, check_pairs
from .rouge_l import rouge_l
from .scores import Scores
from .signature import hash_captions, signature_text
from .tokens import prepare_pairs

METRICS = ("bleu", "meteor", "rouge_l", "cider", "cider_d", "spice", "clip_s", "pac_s", "diversity")
DEFAULT_METRICS = ("bleu", "rouge_l", "cider_d")
ON_IMAGES = ("clip_s", "pac_s")

# name -> (name in papers, the factor by which papers multiply it)
IN_PAPERS = {
    **{f"bleu_{n}": (f"BLEU-{n}", 100) for n in (1, 2, 3, 4)},
    "meteor": ("METEOR", 100),
    "rouge_l": ("ROUGE-L", 100),
    "cider": ("CIDEr", 100),
    "cider_d": ("CIDEr-D", 100),
    "spice": ("SPICE", 100),
    "clip_s": ("CLIP-S", 1),
    "ref_clip_s": ("RefCLIP-S", 1),
    "pac_s": ("PAC-S", 1),
    "ref_pac_s": ("RefPAC-S", 1),
}


@dataclass(frozen=True)
class Evaluation(Scores):
    """Scores, and what they were computed from.

    Attributes:
        corpus (`dict[str, float]`): name -> score, on the metric's own scale: 0 to 1, CIDEr and CIDEr-D 0 to 10.
        per_image (`dict[str, np.ndarray]`): name -> float64 of shape (number of images,).
        image_ids (`list`): the images, in the order of `per_image`.
        signature (`dict`): tokenizer, document frequencies, options, number of images and references, version.
    """

    image_ids: list[Any]
    signature: dict[str, Any]

    @property
    def signature_text(self) -> str:
        """The signature on one line."""
        return signature_text(self.signature)

    def table(self) -> list[tuple[str, str]]:
        """The corpus scores as papers print them, a (name, number) per score; the name says what it was multiplied by.

        Returns:
            `list[tuple[str, str]]`: such as `("CIDEr-D x 100", "127.18")`.
        """
        rows = []
        for name, value in self.corpus.items():
            printed, factor = IN_PAPERS.get(name, (name.replace("_", " "), 1))
            label = printed if factor == 1 else f"{printed} x {factor}"
            rows.append((label, f"{value * factor:.2f}" if factor != 1 else f"{value:.4g}"))
        return rows


class CaptionMetrics:
    """Score captions with several metrics.

    Args:
        metrics (`Sequence[str]`, defaults to `("bleu", "rouge_l", "cider_d")`): of `"bleu"`, `"meteor"`, `"rouge_l"`,
            `"cider"`, `"cider_d"`, `"spice"`, `"clip_s"`, `"pac_s"`, `"diversity"`.
        document_frequencies ([`DocumentFrequencies`], *optional*): those of CIDEr and CIDEr-D; by default of the
            references that are scored, as the reference tools do.
        in_sequence (`bool`, defaults to `False`): read an abbreviation at the end of a caption in the light of the next
            caption, as the reference tools do. Of COCO's 202,654 captions of val2014 one has other tokens then, which
            moves CIDEr-D by 2e-7; in exchange a caption's score depends on the order of the others.
        options (`Mapping[str, Mapping[str, Any]]`, *optional*): further arguments by metric, such as
            `{"clip_s": {"scorer": ClipScorer(...)}, "spice": {"timeout_s": 600}}`.

    Raises:
        ValueError: an unknown metric.

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
    ) -> None:
        self.options = dict(options or {})
        for name in [*metrics, *self.options]:
            if name not in METRICS:
                raise ValueError(f"no metric {name!r}; expected some of {', '.join(METRICS)}")
        self.metrics = tuple(dict.fromkeys(metrics))
        self.document_frequencies = document_frequencies
        self.in_sequence = in_sequence

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
            pictures = [None] * len(predictions) if images is None else images
            lists = [list(several) for several in references]
            image_ids, predictions, references, pictures = gather_rows(image_ids, list(predictions), lists, pictures)
            images = None if images is None else pictures
        names = list(range(len(predictions)) if image_ids is None else image_ids)
        tokens = prepare_pairs(predictions, references, image_ids=names, in_sequence=self.in_sequence)
        frequencies = self._frequencies(tokens[1])
        corpus: dict[str, float] = {}
        per_image: dict[str, Any] = {}
        for metric in self.metrics:
            scores = self._score(metric, (predictions, references), tokens, frequencies, names, images)
            corpus.update(scores.corpus)
            per_image.update(scores.per_image)
        return Evaluation(corpus, per_image, names, self._signature(tokens[1], frequencies))

    def _frequencies(self, references: list[list[str]]) -> DocumentFrequencies | None:
        if not {"cider", "cider_d"} & set(self.metrics):
            return None
        if self.document_frequencies is not None:
            return self.document_frequencies
        return None if len(references) == 1 else DocumentFrequencies.from_references(references, tokenized=True)

    def _score(
        self,
        metric: str,
        captions: tuple[Sequence[str], Sequence[Sequence[str]]],
        tokens: tuple[list[str], list[list[str]]],
        frequencies: DocumentFrequencies | None,
        names: list[Any],
        images: Sequence[Any] | None,
    ) -> Scores:
        options: dict[str, Any] = {"image_ids": names, **self.options.get(metric, {})}
        if metric in ON_IMAGES:
            from .clip.clip_score import clip_score
            from .clip.pac_score import pac_score

            if images is None:
                raise MetricInputError(f"{metric} looks at the pictures; give images=")
            if "scorer" not in options:
                raise ValueError(
                    f"{metric} needs a CLIP model; give options={{{metric!r}: {{'scorer': ClipScorer(...)}}}}"
                )
            return (clip_score if metric == "clip_s" else pac_score)(images, *captions, **options)
        if metric == "meteor":
            from .meteor.meteor import meteor  # with its tables and stemmer, an extra

            return meteor(*tokens, tokenized=True, **options)
        if metric == "spice":
            from .spice.spice import spice

            return spice(*tokens, tokenized=True, **options)
        if metric == "diversity":
            return diversity(tokens[0], tokenized=True, **options)
        if metric in ("cider", "cider_d"):
            function = cider if metric == "cider" else cider_d
            return function(*tokens, tokenized=True, document_frequencies=frequencies, **options)
        return (bleu if metric == "bleu" else rouge_l)(*tokens, tokenized=True, **options)

    def _signature(self, references: list[list[str]], frequencies: DocumentFrequencies | None) -> dict[str, Any]:
        signature: dict[str, Any] = {
            "metrics": list(self.metrics),
            "tokenizer": "ptb-lowercase-nopunct" + ("-in-sequence" if self.in_sequence else ""),
            "images": len(references),
            "references": sum(map(len, references)),
            "references_hash": hash_captions(references),
        }
        if frequencies is not None:
            given = self.document_frequencies is not None
            settings = {"n": 4, "sigma": 6.0, "eos": False, **self.options.get("cider_d", {})}
            source = "corpus" if given else "references"
            signature["cider"] = {"df": source, "df_hash": frequencies.content_hash[:12], **settings}
        plain = {
            name: {key: value for key, value in given.items() if isinstance(value, (str, int, float, bool))}
            for name, given in self.options.items()
            if name in self.metrics and name not in ("cider", "cider_d")
        }
        for name in set(ON_IMAGES) & set(self.metrics):
            plain[name] = self.options[name]["scorer"].signature
        return signature | {name: given for name, given in plain.items() if given} | {"version": __version__}
