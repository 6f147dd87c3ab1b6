"""Data of the training examples: captioned pictures of a data set, of a folder, or their cached features."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data.bad_rows import BadRows
from ..data.captions.attached import attach_sentences, has_sentences, parse_sentences
from ..data.captions.captioned import Columns, captioned, captioned_stream, kept_rows, load_named, split_names
from ..data.captions.distill import distill_captions
from ..data.captions.folder import join_splits, load_folder
from ..data.captions.karpathy_file import EmptySplitError
from ..data.captions.layouts import COCOTALK, KARPATHY, layout_of
from ..data.captions.load import load_captions
from ..data.captions.tar_shards import stream_tars, tar_shards
from ..data.features.joined_stores import open_features
from ..data.fingerprint import SCALED_DOWN, fingerprint_of_rows
from ..data.image_check import check_images
from ..data.row_stream import BUFFER_SIZE, RowStream
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
        features (`list[str]`, *optional*): folders of feature stores, to read instead of the pictures; see
            [`open_features`].
        dataset_name (`str`, *optional*): or a data set of the Hub, or a folder that `datasets` reads.
        dataset_config_name (`str`, *optional*): its configuration.
        image_column (`str`, defaults to `"image"`), caption_column (`list[str]`, *optional*), image_id_column (`str`,
            *optional*): its columns, see [`Columns`].
        streaming (`bool`, defaults to `False`): a [`RowStream`] of the training rows of tars or `dataset_name`.
        stream_buffer_size (`int`, defaults to 1000): rows of it that are shuffled together.
        train_split, eval_split (`str`, *optional*): names of splits, or of layouts without splits files with names or
            ids of pictures; by default `train+restval` and `val` of Karpathy's layout, `train` and `validation` of a
            folder, and everything of the others.
        distilled (`str`, *optional*): a teacher's captions, in the place of the references of the training rows.
        missing_distilled (`str`, defaults to `"error"`): `"keep"` the references of pictures that the teacher left out.
        sentences (`list[str]`, *optional*): files of sentences of the pictures that become columns, `COLUMN=FILE` each.
        check_images (`bool`, defaults to `True`): look at the headers of all pictures first.
        on_bad_row (`str`, defaults to `"error"`): `"skip"` leaves out, logs and counts rows that cannot be used.
    """

    annotations: str | None = field(
        default=None,
        metadata={
            "help": "File of captions: Karpathy's or COCO's JSON, a token file of Flickr8k or Flickr30k, JSONL, CSV or "
            "Parquet with file names and captions, or lines of a caption, a tab and a URL; or tars in WebDataset's "
            "layout, one or shards/{000000..000113}.tar."
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
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --annotations: a data set of the Hub (org/name), or a folder that "
            "datasets.load_dataset reads, such as one of Parquet files."
        },
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Its configuration, where --dataset_name has several."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of the pictures of --dataset_name."})
    caption_column: list[str] | None = field(
        default=None,
        metadata={
            "help": "Column of its captions, of a text or a list of them, or several columns. By default the first of "
            "captions, caption, text, sentences_raw and sentences."
        },
    )
    image_id_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the ids of its pictures; rows of one picture with a caption each become one. By default "
            "image_id, or else the name of the picture's file or the number of the row."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training rows of tars or --dataset_name as they go, without a copy on the disk: files in "
            "a new order in every pass, rows shuffled in blocks. --max_steps says when it ends."
        },
    )
    stream_buffer_size: int = field(
        default=BUFFER_SIZE, metadata={"help": "Rows of a block, which are in memory; 1 does not shuffle rows."}
    )
    train_split: str | None = field(
        default=None,
        metadata={
            "help": "Splits to learn from, or a file with the names of their pictures. By default train+restval of "
            "Karpathy's layout, train of a folder or of --dataset_name, everything of a file without splits."
        },
    )
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Splits to evaluate on, or a file with the names of their pictures. By default val of Karpathy's "
            "layout, validation of a folder or of --dataset_name."
        },
    )
    features: list[str] | None = field(
        default=None,
        metadata={"help": "Folders written by `hf-captioners features`: read them instead of the pictures."},
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
    on_bad_row: str = field(
        default="error",
        metadata={
            "help": "'skip' leaves out, logs and counts rows that cannot be used: pictures that are missing or broken, "
            "captions that are none, ids that are there twice, images without features."
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
    split = arguments.eval_split or (None if arguments.annotations else "validation")
    if arguments.dataset_name is not None:
        return arguments.dataset_name if not Path(arguments.dataset_name).exists() else Path(
            arguments.dataset_name
        ).name, split
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
    sources = [name for name in ("annotations", "data_dir", "dataset_name") if vars(arguments)[name] is not None]
    if len(sources) != 1:
        raise ValueError(
            "give --annotations (a file of captions, or tars), --data_dir (a folder) or --dataset_name (of the Hub), "
            "one of them."
        )
    _refuse_unread(arguments)
    bad_rows = BadRows(arguments.on_bad_row)
    if arguments.streaming:
        stream, evaluation = _stream(arguments, bad_rows)
        evaluation = _check_rows(arguments, None, evaluation, bad_rows)[1]
        bad_rows.conclude("the rows to evaluate on")
        return stream, evaluation
    readers = {"annotations": _load_files, "data_dir": _load_folder, "dataset_name": _load_named}
    train, evaluation = readers[sources[0]](arguments, bad_rows)
    if arguments.distilled is not None:
        train = distill_captions(train, arguments.distilled, missing=arguments.missing_distilled, bad_rows=bad_rows)  # type: ignore[arg-type]
        train = check_captions(train, arguments.distilled, bad_rows)
    train, evaluation = _attach_sentences(sentences, train, evaluation, bad_rows)
    train, evaluation = _check_rows(arguments, train, evaluation, bad_rows)
    if arguments.features is not None:
        store = open_features(arguments.features)
        train, evaluation = (
            None if rows is None else attach_features(rows, store, bad_rows=bad_rows, keep_images=True)
            for rows in (train, evaluation)
        )
    bad_rows.conclude(str(vars(arguments)[sources[0]]))
    _tell_fingerprints(train, evaluation)
    return train, evaluation


def _tell_fingerprints(train: Any, evaluation: Any) -> None:
    """Log which data these are, and whether they are COCO scaled down."""
    for name, rows in (("training", train), ("evaluation", evaluation)):
        if rows is not None:
            mark = fingerprint_of_rows(rows)
            logger.info("%s: %d pictures, fingerprint of the data %s", name, mark.images, mark)
            if mark.scaled_down:
                logger.warning("%s on %s", name, SCALED_DOWN)


def _attach_sentences(sentences: dict[str, str], train: Any, evaluation: Any, bad_rows: BadRows) -> tuple[Any, Any]:
    """Rows with columns of sentences; evaluation rows without those that none of their pictures has, as guides."""
    for column, path in sentences.items():
        train = attach_sentences(train, path, column, bad_rows=bad_rows)
        if evaluation is not None and has_sentences(evaluation, path, bad_rows):
            evaluation = attach_sentences(evaluation, path, column, bad_rows=bad_rows)
    return train, evaluation


def _refuse_unread(arguments: DataArguments) -> None:
    """Refuse options that nothing reads beside the others."""
    of_annotations = ("image_root", "labels", "eval_annotations", "eval_image_root")
    of_hub = ("dataset_config_name", "image_column", "caption_column", "image_id_column")
    names = {
        "no --dataset_name": of_hub if arguments.dataset_name is None else (),
        "--dataset_name": of_annotations if arguments.dataset_name is not None else (),
        "--data_dir": of_annotations if arguments.data_dir is not None else (),
        "--labels, whose rows have no pictures": of_annotations[:1] + of_annotations[2:]
        if arguments.labels is not None
        else (),
        "no --eval_annotations": ("eval_image_root",) if arguments.eval_annotations is None else (),
        "--streaming, whose rows are read once": ("features", "distilled", "sentences") if arguments.streaming else (),
        "no --streaming": ("stream_buffer_size",) if not arguments.streaming else (),
        "no --distilled": ("missing_distilled",) if arguments.distilled is None else (),
    }
    usual = {option.name: option.default for option in fields(arguments)}
    for where, unread in names.items():
        for name in unread:
            if vars(arguments)[name] != usual[name]:
                raise ValueError(f"--{name} {vars(arguments)[name]} has no effect with {where}; leave it out.")


def _check_rows(arguments: DataArguments, train: Any, evaluation: Any, bad_rows: BadRows) -> tuple[Any, Any]:
    """Rows to go on with: what would be found after the last step is found before the first one."""
    if evaluation is not None and len(evaluation) == 1:
        logger.warning(
            "there is 1 picture to evaluate on: CIDEr and CIDEr-D of a single picture are 0, whatever its caption; "
            "evaluate on more, or by the loss"
        )
    if not arguments.check_images or arguments.features is not None:
        return train, evaluation
    checked = []
    for name, rows in (("training", train), ("validation", evaluation)):
        try:
            pictured = rows is not None and "image" in rows.column_names
            checked.append(check_images(rows, f"pictures of {name}", bad_rows) if pictured else rows)
        except ValueError as error:
            raise ValueError(
                f"{error}; mend them, or go on without them by --on_bad_row skip, or without this check by "
                "--check_images false"
            ) from error
    return checked[0], checked[1]


def _load_files(arguments: DataArguments, bad_rows: BadRows) -> tuple[Any, Any]:
    """The rows of files of captions; those to evaluate on are `None` where nothing says which they are."""
    annotations = str(arguments.annotations)
    if arguments.labels is not None and arguments.features is None:
        raise ValueError("--labels needs --features: the rows of cocotalk.json have no pictures.")
    train = _load(arguments, bad_rows, "train_split", annotations, arguments.image_root)
    source, root = annotations, arguments.image_root
    if arguments.eval_annotations is not None:
        source, root = arguments.eval_annotations, arguments.eval_image_root or root
    usual = "val" if _has_splits(source) else None
    named = arguments.eval_annotations or arguments.eval_split
    if (named or usual) is None:
        return train, None
    try:
        return train, _load(arguments, bad_rows, "eval_split", source, root, usual)
    except EmptySplitError:
        if named is not None:
            raise
        return train, None


def has_splits(arguments: DataArguments) -> bool:
    """Tell whether the data has named splits: all but most files of captions, and tars."""
    return arguments.annotations is None or _has_splits(arguments.annotations)


def _has_splits(annotations: str) -> bool:
    return not tar_shards(annotations) and layout_of(annotations) in (KARPATHY, COCOTALK)


def _load(
    arguments: DataArguments,
    bad_rows: BadRows,
    option: str,
    source: str,
    image_root: str | None,
    usual: str | None = None,
) -> Any:
    """Rows of a file, with captions that can be learned from."""
    split = vars(arguments)[option] or usual
    try:
        rows = load_captions(source, image_root, split, labels=arguments.labels, bad_rows=bad_rows)
    except ValueError as error:
        if "split" in str(error) and vars(arguments)[option] is not None:
            raise ValueError(f"--{option} {split}: {error}") from error
        raise
    return check_captions(rows, source, bad_rows)


def _load_folder(arguments: DataArguments, bad_rows: BadRows) -> tuple[Any, Any]:
    """The rows of `train/` and, if it is there, of `validation/`, or of other splits."""
    folder = str(arguments.data_dir)
    try:
        splits = load_folder(folder, bad_rows)
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
            parts[-1] = check_captions(parts[-1], folder, bad_rows)
    return parts[0], parts[1]


def _load_named(arguments: DataArguments, bad_rows: BadRows) -> tuple[Any, Any]:
    """The rows of splits of a data set of the Hub, or of a folder that `datasets` reads."""
    name = str(arguments.dataset_name)
    parts = []
    for split in (arguments.train_split or "train", _evaluated_split(arguments)):
        rows = None if split is None else load_named(name, arguments.dataset_config_name, split)
        parts.append(None if rows is None else _captioned(arguments, rows, bad_rows))
    return parts[0], parts[1]


def _captioned(arguments: DataArguments, rows: Any, bad_rows: BadRows) -> Any:
    """Rows of `--dataset_name`, with captions that can be learned from."""
    name, needs_images = str(arguments.dataset_name), arguments.features is None
    rows = captioned(rows, _columns(arguments), name, needs_images=needs_images, bad_rows=bad_rows)
    return check_captions(rows, name, bad_rows)


def _columns(arguments: DataArguments) -> Columns:
    captions = arguments.caption_column or ()
    names = (captions,) if isinstance(captions, str) else tuple(captions)
    return Columns(arguments.image_column, names, arguments.image_id_column)


def _evaluated_split(arguments: DataArguments) -> str | None:
    """The split of a data set of the Hub to evaluate on, if it has one."""
    if arguments.eval_split is not None:
        return arguments.eval_split
    there = split_names(str(arguments.dataset_name), arguments.dataset_config_name)
    return next((split for split in ("validation", "val", "dev") if split in there), None)


def _stream(arguments: DataArguments, bad_rows: BadRows) -> tuple[RowStream, Any]:
    """A stream of training rows; those to evaluate on are in memory or, of tars, in the cache."""
    options: dict[str, Any] = {"buffer_size": arguments.stream_buffer_size, "check_images": arguments.check_images}
    options["bad_rows"] = BadRows(arguments.on_bad_row)  # of who reads the stream
    if arguments.dataset_name is not None:
        name, config = arguments.dataset_name, arguments.dataset_config_name
        train = load_named(name, config, arguments.train_split, streaming=True)
        evaluated = _evaluated_split(arguments)
        evaluation = None if evaluated is None else load_named(name, config, evaluated, streaming=True)
        if evaluation is not None:
            evaluation = _captioned(arguments, kept_rows(evaluation), bad_rows)
        return captioned_stream(train, _columns(arguments), name, **options), evaluation
    tars = tar_shards(str(arguments.annotations)) if arguments.annotations is not None else []
    if not tars or arguments.train_split is not None:
        raise ValueError("--streaming is for tars in WebDataset's layout (--annotations) and for --dataset_name.")
    evaluation = None
    if arguments.eval_annotations is not None:
        evaluation = _load(arguments, bad_rows, "eval_split", arguments.eval_annotations, arguments.eval_image_root)
    return stream_tars(tars, str(arguments.annotations), **options), evaluation
