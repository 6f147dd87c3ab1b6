"""Data of the training examples: captioned pictures of a data set, of a folder, or their cached features."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data.captions.attached import attach_sentences, has_sentences, parse_sentences
from ..data.captions.distill import distill_captions
from ..data.captions.folder import join_splits, load_folder
from ..data.captions.layouts import COCOTALK, KARPATHY, layout_of
from ..data.captions.load import load_captions
from ..data.features.store import FeatureStore
from ..data.image_check import check_images
from ..data.rows import attach_features, check_captions, training_captions

__all__ = ["DataArguments", "load_rows", "training_captions"]  # what a training script reads

logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """Options of the training examples that say where captioned pictures are; [`load_rows`] reads them.

    Attributes:
        annotations (`str`, *optional*): a file of captions in any layout of [`load_captions`]; or
        data_dir (`str`, *optional*): a folder with `train/` and `validation/`; see [`load_folder`].
        image_root (`str`, *optional*): folder of the pictures of `annotations`; beside `features`, for rewards.
        eval_annotations, eval_image_root (`str`, *optional*): the same of the pictures to evaluate on, where they are
            in another file; the root by default that of `image_root`.
        labels (`str`, *optional*): label file of the SATIC code; `annotations` is its `cocotalk.json` then.
        features (`str`, *optional*): folder of a [`FeatureStore`], to read instead of the pictures.
        train_split, eval_split (`str`, *optional*): names of splits, or of layouts without splits files with names or
            ids of pictures; by default `train+restval` and `val` of Karpathy's layout, `train` and `validation` of a
            folder, and everything of the others.
        distilled (`str`, *optional*): a teacher's captions, in the place of the references of the training rows.
        missing_distilled (`str`, defaults to `"error"`): `"keep"` the references of pictures that the teacher left out.
        sentences (`list[str]`, *optional*): files of sentences of the pictures that become columns, `COLUMN=FILE` each.
        check_images (`bool`, defaults to `True`): look at the headers of all pictures first.
    """

    annotations: str | None = field(
        default=None,
        metadata={
            "help": "File of captions: Karpathy's or COCO's JSON, a token file of Flickr8k or Flickr30k, JSONL, CSV or "
            "Parquet with file names and captions, or lines of a caption, a tab and a URL."
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the pictures of --annotations (of URLs: where they are kept once fetched); beside "
            "--features, for rewards that look at them."
        },
    )
    eval_annotations: str | None = field(
        default=None, metadata={"help": "File of the captions to evaluate on, if they are not in --annotations."}
    )
    eval_image_root: str | None = field(
        default=None, metadata={"help": "Folder of its pictures, if they are not in --image_root."}
    )
    labels: str | None = field(
        default=None, metadata={"help": "cocotalk_label.h5 of the SATIC code; --annotations is its cocotalk.json then."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --annotations: a folder with train/ and, if you like, validation/, each with pictures "
            'and a metadata.jsonl of lines {"file_name": "cat.jpg", "captions": ["a cat", ...]}, a metadata.csv or '
            "metadata.parquet, or a text file beside each picture (cat.txt of cat.jpg)."
        },
    )
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "Splits to learn from, or a file with the names of their pictures. By default train+restval of "
            "Karpathy's layout, train of a folder, everything of a file without splits."
        },
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Splits to evaluate on, or a file with the names of their pictures. By default val of Karpathy's "
            "layout, validation of a folder."
        },
    )
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


def data_set_name(arguments: DataArguments) -> tuple[str, str | None]:
    """The name of the data and the split that is evaluated on, for a card.

    Args:
        arguments ([`DataArguments`]): where they are.

    Returns:
        `tuple[str, str | None]`
    """
    source = arguments.data_dir or arguments.eval_annotations or arguments.annotations or ""
    split = arguments.eval_split or ("validation" if arguments.data_dir else None)
    if split is None and arguments.eval_annotations is None and arguments.annotations is not None:
        split = "val"
    return Path(source).resolve().stem, split


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
        raise ValueError("give --annotations (a file of captions) or --data_dir (a folder), one of them.")
    _refuse_unread(arguments)
    train, evaluation = (_load_folder if arguments.data_dir is not None else _load_files)(arguments)
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
    of_annotations = ("image_root", "labels", "eval_annotations", "eval_image_root")
    names = {
        "--data_dir": of_annotations if arguments.data_dir is not None else (),
        "--labels, whose rows have no pictures": of_annotations[:1] + of_annotations[2:]
        if arguments.labels is not None
        else (),
        "no --eval_annotations": ("eval_image_root",) if arguments.eval_annotations is None else (),
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


def _load_files(arguments: DataArguments) -> tuple[Any, Any]:
    """The rows of files of captions; those to evaluate on are `None` where nothing says which they are."""
    annotations = str(arguments.annotations)
    if arguments.labels is not None and arguments.features is None:
        raise ValueError("--labels needs --features: the rows of cocotalk.json have no pictures.")
    train = _load(arguments, "train_split", annotations, arguments.image_root)
    source, root = annotations, arguments.image_root
    if arguments.eval_annotations is not None:
        source, root = arguments.eval_annotations, arguments.eval_image_root or root
    usual = "val" if layout_of(source) in (KARPATHY, COCOTALK) else None
    if (arguments.eval_annotations or arguments.eval_split or usual) is None:
        return train, None
    return train, _load(arguments, "eval_split", source, root, usual)


def _load(arguments: DataArguments, option: str, source: str, image_root: str | None, usual: str | None = None) -> Any:
    """Rows of a file, with captions that can be learned from."""
    split = vars(arguments)[option] or usual
    try:
        rows = load_captions(source, image_root, split, labels=arguments.labels)
    except ValueError as error:
        if "split" in str(error) and vars(arguments)[option] is not None:
            raise ValueError(f"--{option} {split}: {error}") from error
        raise
    check_captions(rows, source)
    return rows


def _load_folder(arguments: DataArguments) -> tuple[Any, Any]:
    """The rows of `train/` and, if it is there, of `validation/`, or of other splits."""
    folder = str(arguments.data_dir)
    try:
        splits = load_folder(folder)
    except (ValueError, OSError) as error:
        raise ValueError(f"--data_dir {error}") from error
    if arguments.train_split is None and "train" not in splits:
        raise ValueError(f"--data_dir {folder}: no train/ in it, but {', '.join(splits)}.")
    parts = []
    for option, usual in (("train_split", "train"), ("eval_split", "validation")):
        split = vars(arguments)[option]
        try:
            parts.append(splits.get(usual) if split is None else join_splits(folder, splits, split))
        except ValueError as error:
            raise ValueError(f"--{option} {split}: {error}") from error
        if parts[-1] is not None:
            check_captions(parts[-1], folder)
    return parts[0], parts[1]
