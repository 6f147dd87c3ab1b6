"""Data of the training examples: captioned pictures of a data set, of a folder, or their cached features."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from typing import Any

from ..data.captions.attached import attach_sentences, has_sentences, parse_sentences
from ..data.captions.cocotalk import load_cocotalk
from ..data.captions.distill import distill_captions
from ..data.captions.folder import load_folder
from ..data.captions.karpathy import load_karpathy
from ..data.features.store import FeatureStore
from ..data.image_check import check_images
from ..data.rows import attach_features, check_captions, training_captions

__all__ = ["DataArguments", "load_rows", "training_captions"]  # what a training script reads

logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Options of the training examples that say where captioned pictures are; [`load_rows`] reads them.

    Attributes:
        annotations (`str`, *optional*): captions in Karpathy's layout; or
        data_dir (`str`, *optional*): a folder with `train/` and `validation/`; see [`load_folder`].
        image_root (`str`, *optional*): folder of the pictures of `annotations`; beside `features`, for rewards.
        labels (`str`, *optional*): label file of the SATIC code; `annotations` is its `cocotalk.json` then.
        features (`str`, *optional*): folder of a [`FeatureStore`], to read instead of the pictures.
        train_split (`str`, defaults to `"train+restval"`), eval_split (`str`, defaults to `"val"`): of `annotations`.
        distilled (`str`, *optional*): a teacher's captions, in the place of the references of the training rows.
        missing_distilled (`str`, defaults to `"error"`): `"keep"` the references of pictures that the teacher left out.
        sentences (`list[str]`, *optional*): files of sentences of the pictures that become columns, `COLUMN=FILE` each.
        check_images (`bool`, defaults to `True`): look at the headers of all pictures first.
    """

    annotations: str | None = field(default=None, metadata={"help": "Captions in Karpathy's layout (dataset_*.json)."})
    image_root: str | None = field(
        default=None,
        metadata={"help": "Folder of the pictures of --annotations; beside --features, for rewards that look at them."},
    )
    labels: str | None = field(
        default=None, metadata={"help": "cocotalk_label.h5 of the SATIC code; --annotations is its cocotalk.json then."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --annotations: a folder with train/ and, if you like, validation/, each with pictures "
            'and a metadata.jsonl of lines {"file_name": "cat.jpg", "captions": ["a cat", ...]}, or a metadata.csv.'
        },
    )
    train_split: str = field(default="train+restval", metadata={"help": "Splits of --annotations to learn from."})
    eval_split: str = field(default="val", metadata={"help": "Split of --annotations to evaluate on."})
    features: str | None = field(
        default=None, metadata={"help": "Folder written by `hf-captioners features`: read it instead of the pictures."}
    )
    distilled: str | None = field(
        default=None,
        metadata={
            "help": "A teacher's captions, in the place of the references of the training split: what `hf-captioners "
            "caption --annotations ... --num-return-sequences 5` wrote."
        },
    )
    missing_distilled: str = field(
        default="error", metadata={"help": "'keep' the references of pictures without captions of the teacher."}
    )
    sentences: list[str] | None = field(
        default=None,
        metadata={
            "help": "Sentences of the pictures that SCD-Net sees, as COLUMN=FILE: retrieved=FILE of `hf-captioners "
            "retrieval lookup`, previous=FILE and guide=FILE of `hf-captioners caption --annotations`."
        },
    )
    check_images: bool = field(
        default=True,
        metadata={
            "help": "Look at the headers of all pictures before the first step; broken and missing ones are named."
        },
    )


def load_rows(arguments: DataArguments) -> tuple[Any, Any]:
    """Rows to learn from and to evaluate on.

    Args:
        arguments ([`DataArguments`]): where they are.

    Returns:
        `tuple`: rows with `captions`, `image_id`, and `image` or `image_features`; the second may be `None`.

    Raises:
        ValueError: options that do not go together, or pictures without captions.
    """
    sentences = parse_sentences(arguments.sentences or [])
    if (arguments.annotations is None) == (arguments.data_dir is None):
        raise ValueError("give --annotations (Karpathy's layout) or --data_dir (a folder), one of them.")
    _refuse_unread(arguments)
    if arguments.data_dir is not None:
        train, evaluation = _load_folder(arguments.data_dir)
    else:
        train, evaluation = (_load_split(arguments, name) for name in (arguments.train_split, arguments.eval_split))
    if arguments.distilled is not None:
        train = distill_captions(train, arguments.distilled, missing=arguments.missing_distilled)  # type: ignore[arg-type]
        check_captions(train, arguments.distilled)
    train, evaluation = _attach_sentences(sentences, train, evaluation)
    _check_rows(arguments, train, evaluation)
    if arguments.features is None:
        return train, evaluation
    store = FeatureStore(arguments.features)
    with_features = [
        None if rows is None else attach_features(rows, store, keep_images=True) for rows in (train, evaluation)
    ]
    return with_features[0], with_features[1]


def _attach_sentences(sentences: dict[str, str], train: Any, evaluation: Any) -> tuple[Any, Any]:
    """Rows with columns of sentences; evaluation rows without those that none of their pictures has, as guides."""
    for column, path in sentences.items():
        train = attach_sentences(train, path, column)
        if evaluation is not None and has_sentences(evaluation, path):
            evaluation = attach_sentences(evaluation, path, column)
    return train, evaluation


def _refuse_unread(arguments: DataArguments) -> None:
    """Refuse options that nothing reads beside the others."""
    of_annotations = ("image_root", "labels", "train_split", "eval_split")
    names = {
        "--data_dir": of_annotations if arguments.data_dir is not None else (),
        "--labels, whose rows have no pictures": ("image_root",) if arguments.labels is not None else (),
        "no --distilled": ("missing_distilled",) if arguments.distilled is None else (),
    }
    usual = {option.name: option.default for option in fields(arguments)}
    for where, unread in names.items():
        for name in unread:
            if vars(arguments)[name] != usual[name]:
                raise ValueError(f"--{name} {vars(arguments)[name]} has no effect with {where}; leave it out.")


def _check_rows(arguments: DataArguments, train: Any, evaluation: Any) -> None:
    """Find before the first step what would be found after the last one."""
    if evaluation is not None and len(evaluation) == 1:
        logger.warning(
            "there is 1 picture to evaluate on: CIDEr and CIDEr-D of a single picture are 0, whatever its caption; "
            "evaluate on more, or by the loss"
        )
    if not arguments.check_images or arguments.features is not None:
        return
    for name, rows in (("training", train), ("validation", evaluation)):
        if rows is not None and "image" in rows.column_names:
            try:
                check_images(rows, f"pictures of {name}")
            except ValueError as error:
                raise ValueError(f"{error}; mend them, or go on without this check by --check_images false") from error


def _load_split(arguments: DataArguments, split: str) -> Any:
    annotations = str(arguments.annotations)
    if arguments.labels is None:
        rows = load_karpathy(annotations, arguments.image_root, split=split)
        check_captions(rows, annotations)
        return rows
    if arguments.features is None:
        raise ValueError("--labels needs --features: the rows of cocotalk.json have no pictures.")
    split = "train" if split == "train+restval" else split  # what is called restval belongs to train there
    return load_cocotalk(annotations, arguments.labels, split=split)


def _load_folder(folder: str) -> tuple[Any, Any]:
    """The rows of `train/` and, if it is there, of `validation/`."""
    try:
        splits = load_folder(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"--data_dir {error}") from error
    if "train" not in splits:
        raise ValueError(f"--data_dir {folder}: no train/ in it, but {', '.join(splits)}.")
    return splits["train"], splits.get("validation")
