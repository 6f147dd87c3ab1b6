"""Captioned pictures in Karpathy's layout as a `datasets.Dataset`.

`dataset_coco.json`, `dataset_flickr8k.json` and `dataset_flickr30k.json` (Karpathy & Fei-Fei, "Deep Visual-Semantic
Alignments for Generating Image Descriptions", 2015) carry the splits that every captioning paper reports on. Each of
their `images` is

    {"filename": "1.jpg", "split": "train", "imgid": 0, "sentences": [{"raw": "A dog .", "sentid": 0}, ...]}

with the splits `train`, `restval`, `val` and `test`; COCO adds `filepath` (the folder below the image root) and
`cocoid`. What is decided here:

1. `image_id` is `cocoid` where there is one, else `imgid`; it is unique within a file, or the file is refused.
2. Captions are the `raw` sentences, character for character: cleaning belongs to the tokenizer.
3. A picture is `image_root/filepath/filename` if the folder `image_root/filepath` exists, else `image_root/filename`.
4. The whole file is checked before a row is written; an error names the file, the image and the field.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast, overload

from ...extras import of_extra
from ..bad_rows import BadRows
from .karpathy_file import SPLITS, EmptySplitError, Row, find_images, read_rows, source_paths, source_stamp

with of_extra():
    import datasets

_CHUNK_ROWS = 1000  # what one `num_proc` process or one streaming DataLoader worker takes at a time


@dataclasses.dataclass
class KarpathyConfig(datasets.BuilderConfig):
    """Sources and options of a [`KarpathyBuilder`].

    Args:
        annotations (`str`): The JSON file, plain or gzipped.
        image_root (`str`, *optional*): Folder of the pictures. Without it there is no `image` column.
        splits (`tuple[str, ...]`, defaults to all four): The splits to build, those that occur in the file.
        on_bad_row (`str`, defaults to `"error"`): `"error"` or `"skip"` for images that cannot be used.
    """

    annotations: str = ""
    image_root: str | None = None
    splits: tuple[str, ...] = SPLITS
    on_bad_row: str = "error"

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """The cache key: the arguments, and what tells that the annotations or the image folders were changed.

        `datasets` hashes arguments only, so that an edited file would keep serving the old rows. Giving the file as
        `data_files` cures that for the file, but reads `[` and `*` of its path as a pattern and misses the pictures.
        """
        stamp = source_stamp(self.annotations, self.image_root)
        return super().create_config_id({**config_kwargs, "stamp": stamp}, custom_features)


class KarpathyBuilder(datasets.GeneratorBasedBuilder):
    """Builder of datasets from a file in Karpathy's layout; [`load_karpathy`] is the short way to use it.

    Use it directly for what `datasets` builders can do beyond loading, such as writing parquet files with the pictures
    inside: `KarpathyBuilder(annotations=..., image_root=...).download_and_prepare(folder, file_format="parquet")`.
    Paths must be absolute, for the rows keep them. Arguments are those of [`KarpathyConfig`].
    """

    VERSION = datasets.Version("1.0.0")  # raise it when rows change, so that older caches are not read
    BUILDER_CONFIG_CLASS = KarpathyConfig
    config: KarpathyConfig

    def _info(self) -> datasets.DatasetInfo:
        columns: dict[str, Any] = {} if self.config.image_root is None else {"image": datasets.Image()}
        columns |= {
            "image_id": datasets.Value("int64"),
            "file_name": datasets.Value("string"),
            "split": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
            "sentence_ids": datasets.List(datasets.Value("int64")),
        }
        return datasets.DatasetInfo(features=datasets.Features(columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        # All checks are made here, not in `_generate_examples`, whose errors arrive wrapped.
        config = self.config
        bad_rows = BadRows(config.on_bad_row, log=False)  # who skips them has heard of them: a cache would be silent
        rows = _chosen_rows(config.annotations, config.image_root, config.splits, bad_rows)
        generators = []
        for split in config.splits:
            members = [row for row in rows if row["split"] == split]
            # a list of lists: `datasets` shards over the outer one
            chunks = [members[start : start + _CHUNK_ROWS] for start in range(0, len(members), _CHUNK_ROWS)]
            if chunks:
                generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"chunks": chunks}))
        return generators

    def _generate_examples(self, chunks: list[list[Row]]) -> Iterator[tuple[int, Row]]:
        for chunk in chunks:
            for row in chunk:
                yield row["image_id"], row


def _chosen_rows(annotations: str, image_root: str | None, splits: tuple[str, ...], bad_rows: BadRows) -> list[Row]:
    """The rows of some splits, with their pictures if there is an image root."""
    pairs = read_rows(annotations, bad_rows)
    wanted = [pair for pair in pairs if pair[1]["split"] in splits]
    if not wanted:
        occurring = [split for split in SPLITS if any(row["split"] == split for _, row in pairs)]
        raise EmptySplitError(
            f"{annotations}: no image of split {'+'.join(splits)}; "
            f"its splits are: {', '.join(occurring) or 'none, the file has no images'}"
        )
    return [row for _, row in wanted] if image_root is None else find_images(wanted, image_root, annotations, bad_rows)


def _parse_split(split: str | Sequence[str]) -> tuple[str, ...]:
    if not isinstance(split, str):
        split = "+".join(split)
    names = SPLITS if split == "all" else tuple(dict.fromkeys(name.strip() for name in split.split("+")))
    for name in names:
        if name not in SPLITS:
            raise ValueError(
                f"split={split!r}: {name!r} is not a split; expected 'all' or names of {', '.join(SPLITS)} "
                "joined by '+' (for a part of a split, take it whole and call `select`)"
            )
    return names


@overload
def load_karpathy(
    annotations: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = ...,
    split: str | Sequence[str] = ...,
    *,
    streaming: Literal[False] = ...,
    bad_rows: BadRows | None = ...,
    cache_dir: str | os.PathLike[str] | None = ...,
) -> datasets.Dataset: ...


@overload
def load_karpathy(
    annotations: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = ...,
    split: str | Sequence[str] = ...,
    *,
    streaming: Literal[True],
    bad_rows: BadRows | None = ...,
    cache_dir: str | os.PathLike[str] | None = ...,
) -> datasets.IterableDataset: ...


def load_karpathy(
    annotations: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    split: str | Sequence[str] = "train+restval",
    *,
    streaming: bool = False,
    bad_rows: BadRows | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load captioned pictures from a file in Karpathy's layout (COCO, Flickr8k, Flickr30k).

    Args:
        annotations (`str` or `os.PathLike`): `dataset_coco.json` or alike, plain or gzipped.
        image_root (`str` or `os.PathLike`, *optional*):
            Folder of the pictures: one is `image_root/filepath/filename` if the folder `image_root/filepath` exists,
            else `image_root/filename`. Without `image_root` the rows have captions only, no `image`.
        split (`str` or `Sequence[str]`, defaults to `"train+restval"`):
            Names of `train`, `restval`, `val`, `test` in a list or joined by `+`, or `"all"`. Named splits that do not
            occur in the file are passed over (Flickr8k has no `restval`), but one has to occur.
        streaming (`bool`, defaults to `False`): Return an `IterableDataset` and write no cache.
        bad_rows ([`BadRows`], *optional*): gets images that cannot be used, whose file is missing, or whose id another
            has; by default they are errors.
        cache_dir (`str` or `os.PathLike`, *optional*): The cache of `datasets`, by default the user's.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: rows, in the order of `split` and of the file, with `image`
        (`datasets.Image`), `image_id` (`int`, `cocoid` or else `imgid`), `file_name` (`str`, `filepath/filename`),
        `split` (`str`), `captions` (`list[str]`, untouched) and `sentence_ids` (`list[int | None]`).

    Raises:
        FileNotFoundError: The file, the image root or pictures do not exist.
        ValueError: The file is not in Karpathy's layout, or `split` has no such value.

    Source: https://cs.stanford.edu/people/karpathy/deepimagesent/

    Example:

    ```python
    >>> import json, tempfile
    >>> from hf_captioners.data.captions.karpathy import load_karpathy
    >>> image = {"filename": "a.jpg", "imgid": 7, "split": "train", "sentences": [{"raw": "A dog .", "sentid": 1}]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open(f"{folder}/dataset.json", "w") as file:
    ...         json.dump({"images": [image]}, file)
    ...     load_karpathy(f"{folder}/dataset.json", streaming=True).take(1).to_list()[0]["captions"]
    ['A dog .']

    ```
    """
    names = _parse_split(split)
    path, root = source_paths(annotations, image_root)
    builder = KarpathyBuilder(
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        annotations=path,
        image_root=root,
        splits=names,
        on_bad_row="error" if bad_rows is None or not bad_rows.skips else "skip",
    )
    if bad_rows is not None and bad_rows.skips:
        _chosen_rows(path, root, names, bad_rows)
    if streaming:
        return cast(datasets.IterableDataset, builder.as_streaming_dataset(split="all"))
    builder.download_and_prepare()
    return cast(datasets.Dataset, builder.as_dataset(split="all"))
