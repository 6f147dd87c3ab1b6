"""A caption retriever: for a picture, the captions of other pictures that are nearest to it in the space of a CLIP.

SCD-Net (arXiv 2212.03099) sees such a sentence beside the picture; its authors took the training caption whose CLIP
embedding has the largest cosine with the picture's. A folder of a retriever, flat so that it can stand in a folder of
the Hub, has

- `retriever_config.json`: which dual encoder, and how much of everything there is;
- `captions.jsonl`: a line per caption, `{"caption": text, "image_ids": [ids of the pictures that have it]}`;
- `captions.safetensors`: their embeddings `(captions, width)`, of length 1;
- the files of the dual encoder itself, unless the configuration names one of the Hub.

A picture never gets a caption of its own: those of its `image_id` are left out. Similarities are computed in
float64 and compared to ten digits, so that neither the batch nor the place in the pool decides; among equal ones the
first in the pool wins.
"""

from __future__ import annotations

import importlib
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from .captioner_dual_encoder import DualEncoder, check_dual_encoder, embed_images, embed_texts, load_dual_encoder
from .captioner_hub import at_once
from .captioner_retriever_files import RetrieverError, read_retriever, write_retriever
from .image_processing_captioner import open_for_processor

FOLDER = "retrieval"
"""Where a captioner's folder has its retriever."""
EXACT_UP_TO = 1_000_000
SEARCHES = ("auto", "exact", "faiss")

_PLACES = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_CELLS = 2**24  # similarities at a time
_NOISE = 1e-4  # beyond what float32 can do to the dot product of two vectors of length 1
_DIGITS = 10
_LOADING = threading.Lock()  # pictures are opened in threads, and the encoder is loaded by the first of them


class CaptionRetriever:
    """A pool of captions with their embeddings, and the dual encoder that finds the nearest ones to a picture.

    Args:
        captions (`Sequence[str]`): the pool, each caption once.
        image_ids (`Sequence[Sequence[int | str]]`): for each caption the pictures that have it.
        embeddings (`torch.Tensor` of shape `(captions, width)`): of the captions; their length does not matter.
        encoder (`str`, `Path` or `tuple`): folder or Hub name of a dual encoder, loaded when it is needed; or the
            `CLIPModel` or `VisionTextDualEncoderModel` with its tokenizer and its image processor.
        search (`str`, defaults to `"auto"`): `"exact"`; `"faiss"`, through `datasets`; or exact up to a million
            captions.
        faiss_factory (`str`, defaults to `"Flat"`): kind of FAISS index, in the words of `faiss.index_factory`; all but
            `"Flat"` are approximate.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the encoder may run.

    Raises:
        RetrieverError: no captions, or lists and embeddings of different lengths, or embeddings without a direction.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.captioner_retriever import CaptionRetriever
    >>> pool = ["a dog runs", "a cat sleeps", "waves"]
    >>> retriever = CaptionRetriever(pool, [[1], [2], [3]], torch.eye(3), "clip")
    >>> picture = torch.tensor([[0.9, 0.5, 0.1]])
    >>> retriever.nearest(picture)
    [['a dog runs']]
    >>> retriever.nearest(picture, top=2, image_ids=[1])
    [['a cat sleeps', 'waves']]

    ```
    """

    def __init__(
        self,
        captions: Sequence[str],
        image_ids: Sequence[Sequence[int | str]],
        embeddings: torch.Tensor,
        encoder: str | Path | tuple[Any, Any, Any],
        search: str = "auto",
        faiss_factory: str = "Flat",
        trust_remote_code: bool = False,
    ) -> None:
        if search not in SEARCHES:
            raise RetrieverError(f"search={search!r}: expected one of {', '.join(SEARCHES)}.")
        if not captions or embeddings.ndim != 2 or not len(captions) == len(image_ids) == len(embeddings):
            raise RetrieverError(
                f"{len(captions)} captions, image_ids of {len(image_ids)} and embeddings of shape "
                f"{tuple(embeddings.shape)}; expected as many of each, one at least."
            )
        self.captions = list(captions)
        self.image_ids = [list(ids) for ids in image_ids]
        self.embeddings = _unit(embeddings)
        self.search, self.faiss_factory = search, faiss_factory
        self.trust_remote_code = trust_remote_code
        self._folder: Path | None = None  # that it was loaded from
        self._source = encoder if isinstance(encoder, (str, Path)) else None
        self._encoder: tuple[DualEncoder, Any, Any] | None = None
        if not isinstance(encoder, (str, Path)):
            self._encoder = (check_dual_encoder(encoder[0]).eval(), *encoder[1:])
        self._own: dict[int | str, list[int]] = {}  # id of a picture -> places of its captions
        for place, ids in enumerate(self.image_ids):
            for image_id in ids:
                self._own.setdefault(image_id, []).append(place)
        self._faiss: Any = None

    def __len__(self) -> int:
        return len(self.captions)

    def __deepcopy__(self, memo: Any) -> CaptionRetriever:
        """The retriever itself, which nothing changes: processors are copied when they are saved."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the FAISS index, which a worker process makes for itself."""
        return {**vars(self), "_faiss": None}

    # -- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], search: str | None = None, trust_remote_code: bool = False
    ) -> CaptionRetriever:
        """Load a retriever; its dual encoder is loaded when it is needed.

        Args:
            folder (`str` or `os.PathLike`): as `hf-captioners retrieval build` writes it.
            search (`str`, *optional*): in the place of the folder's.
            trust_remote_code (`bool`, defaults to `False`): whether code that comes with the encoder may run.

        Raises:
            RetrieverError: there is none, or its files are broken or do not belong together.
        """
        path = Path(folder)
        settings, captions, image_ids, embeddings = read_retriever(path)
        try:
            retriever = cls(
                captions,
                image_ids,
                embeddings,
                path if settings["encoder"] is None else settings["encoder"],
                search or settings["search"],
                settings["faiss_factory"],
                trust_remote_code,
            )
        except RetrieverError as error:
            raise RetrieverError(f"{path}: {error}") from error
        retriever._folder = path
        return retriever

    def save_pretrained(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Save the pool and, unless it is named by its Hub name, the dual encoder.

        The files of a retriever that was loaded are copied as they are.

        Args:
            folder (`str` or `os.PathLike`): made if it is not there.
            dtype (`torch.dtype`, *optional*): of the embeddings in the file of a retriever that was not loaded; float16
                by default.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        if self._folder is not None and self._folder.is_dir():
            _copy_files(self._folder, path)
            return
        named = isinstance(self._source, str) and not Path(self._source).is_dir()
        if not named:
            self._save_encoder(path)
        settings = {
            "encoder": self._source if named else None,
            "search": self.search,
            "faiss_factory": self.faiss_factory,
        }
        embeddings = self.embeddings.to(dtype or torch.float16)
        write_retriever(path, settings, self.captions, self.image_ids, embeddings)

    def _save_encoder(self, path: Path) -> None:
        """The files of the dual encoder: copied where it has not been loaded."""
        if self._encoder is None:
            _copy_files(Path(str(self._source)), path)
            return
        for part in self._encoder:
            part.save_pretrained(path)

    # -- pictures ----------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> tuple[DualEncoder, Any, Any]:
        """The dual encoder, its tokenizer and its image processor.

        Raises:
            RetrieverError: it cannot be loaded, lacks one of these, or is not the one that the captions were embedded
                with.
        """
        with _LOADING:
            if self._encoder is None:
                self._encoder = self._load_encoder()
        return self._encoder

    def _load_encoder(self) -> tuple[DualEncoder, Any, Any]:
        source: Any = self._source
        try:
            model, tokenizer, image_processor = load_dual_encoder(source, self.trust_remote_code)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise RetrieverError(f"{source}: the dual encoder of the retriever cannot be loaded: {error}") from error
        if tokenizer is None or image_processor is None:
            lacking = "tokenizer" if tokenizer is None else "image processor"
            raise RetrieverError(f"{source}: the dual encoder of the retriever has no {lacking} beside it.")
        shown = [0, len(self.captions) - 1]
        with torch.inference_mode():
            again = embed_texts(model, tokenizer, [self.captions[place] for place in shown]).float()
        width = self.embeddings.shape[1]
        if again.shape[1] != width or ((_unit(again) * self.embeddings[shown]).sum(1) < 0.99).any():
            raise RetrieverError(
                f"{source}: is not the dual encoder that the captions of the retriever were embedded with; it embeds "
                f"{self.captions[0]!r} differently. Build the retriever again."
            )
        return model, tokenizer, image_processor

    def to(self, device: str | torch.device) -> CaptionRetriever:
        """Move the dual encoder to a device; the pool stays where it is."""
        self.encoder[0].to(device)  # type: ignore[arg-type]
        return self

    @torch.inference_mode()
    def embed(self, images: Sequence[Any]) -> torch.Tensor:
        """The embeddings of pictures.

        Args:
            images (`Sequence`): paths, URLs, PIL pictures or bytes, as `open_image` takes them.

        Returns:
            `torch.Tensor` of shape `(images, width)`: on the CPU, of length 1.

        Raises:
            ImageError: one cannot be opened.
            RetrieverError: see `encoder`.
        """
        model, _, image_processor = self.encoder
        embeddings = []
        for image in images:  # one by one, so that the last bit does not depend on the batch
            opened = open_for_processor(image, image_processor)
            pixels = image_processor(images=opened, return_tensors="pt")["pixel_values"]
            embeddings.append(embed_images(model, pixels))
        return _unit(torch.cat(embeddings))

    def __call__(self, images: Sequence[Any], top: int = 1, image_ids: Sequence[Any] | None = None) -> list[list[str]]:
        """The nearest captions of pictures.

        Args:
            images (`Sequence`): see `embed`.
            top (`int`, defaults to 1): captions of each picture.
            image_ids (`Sequence`, *optional*): of the pictures, whose own captions they do not get.

        Returns:
            `list[list[str]]`: for each picture, nearest first.
        """
        return self.nearest(self.embed(images), top, image_ids)

    # -- search ------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def nearest(
        self, embeddings: torch.Tensor, top: int = 1, image_ids: Sequence[Any] | None = None
    ) -> list[list[str]]:
        """The nearest captions of embedded pictures.

        Args:
            embeddings (`torch.Tensor` of shape `(images, width)`): of `embed`.
            top (`int`, defaults to 1): captions of each picture; fewer if the pool is smaller.
            image_ids (`Sequence`, *optional*): of the pictures, whose own captions they do not get.

        Returns:
            `list[list[str]]`: for each picture, nearest first.

        Raises:
            RetrieverError: embeddings of another width, or a picture that has all captions of the pool.
            ImportError: search with FAISS, which is not installed.
        """
        if top < 1 or embeddings.ndim != 2 or embeddings.shape[1] != self.embeddings.shape[1]:
            raise RetrieverError(
                f"embeddings of shape {tuple(embeddings.shape)} and top={top}; expected (images, "
                f"{self.embeddings.shape[1]}) and 1 or more."
            )
        queries = _unit(embeddings.float().cpu())
        own = [self._own.get(image_id, []) for image_id in image_ids or [None] * len(queries)]
        use_faiss = self.search == "faiss" or (self.search == "auto" and len(self) > EXACT_UP_TO)
        candidates = (self._faiss_candidates if use_faiss else self._exact_candidates)(queries, own, top)
        nearest = []
        for row, (query, places) in enumerate(zip(queries, candidates, strict=True)):
            if not len(places):
                raise RetrieverError(f"image {(image_ids or [row])[row]!r} has all captions of the pool for its own.")
            nearest.append([self.captions[place] for place in self._ranked(query, places, top)])
        return nearest

    def _ranked(self, query: torch.Tensor, places: torch.Tensor, top: int) -> list[int]:
        """The best of some places of the pool, which are in their order."""
        parts = [(self.embeddings[part].double() * query.double()).sum(1) for part in places.split(2**16)]
        order = torch.cat(parts).round(decimals=_DIGITS).sort(descending=True, stable=True).indices[:top]
        return places[order].tolist()

    def _exact_candidates(self, queries: torch.Tensor, own: list[list[int]], top: int) -> list[torch.Tensor]:
        """For each query the places that may be among its best, in their order."""
        candidates = []
        rows = max(1, _CELLS // len(self))
        for start in range(0, len(queries), rows):
            similarity = queries[start : start + rows] @ self.embeddings.T  # (rows, captions)
            for row, places in enumerate(own[start : start + rows]):
                similarity[row, places] = -torch.inf
            least = similarity.topk(min(top, len(self)), dim=1).values[:, -1:] - _NOISE  # (rows, 1)
            near = (similarity >= least) & (similarity > -torch.inf)
            candidates += [row.nonzero().flatten() for row in near]
        return candidates

    def _faiss_candidates(self, queries: torch.Tensor, own: list[list[int]], top: int) -> list[torch.Tensor]:
        """The same of FAISS, which does not know of own captions: so many more are asked for."""
        if self._faiss is None:
            self._faiss = _faiss_index(self.embeddings, self.faiss_factory)
        wanted = min(top + max(map(len, own)) + 16, len(self))  # some more, for those that are equally near
        _, places = self._faiss.search_batch("captions", queries.numpy(), k=wanted)
        return [
            torch.tensor(sorted(set(row.tolist()) - set(mine) - {-1}), dtype=torch.long)
            for row, mine in zip(places, own, strict=True)
        ]


def find_retriever(source: str | os.PathLike[str], **options: Any) -> Path | None:
    """The folder of the retriever of a captioner.

    Args:
        source (`str` or `os.PathLike`): folder or Hub name of the captioner.
        options: arguments of `from_pretrained`, of which those that say where a file of the Hub is are read.

    Returns:
        `Path` or `None`: a folder on this machine, if there is one.
    """
    folder = Path(source)
    if not folder.is_dir():
        places = {name: value for name, value in options.items() if name in _PLACES}
        with at_once(source):
            folder = Path(snapshot_download(str(source), allow_patterns=f"{FOLDER}/*", **places))
    return folder / FOLDER if (folder / FOLDER).is_dir() else None


def _copy_files(source: Path, target: Path) -> None:
    """Copy the files of a retriever or a dual encoder; in a folder of another's model there may be more."""
    if source.resolve() != target.resolve():
        for file in source.iterdir():
            if file.is_file() and file.suffix in (".json", ".jsonl", ".txt", ".model", ".safetensors"):
                shutil.copyfile(file, target / file.name)


def _unit(embeddings: torch.Tensor) -> torch.Tensor:
    """Embeddings of length 1, in float32 on the CPU."""
    embeddings = embeddings.detach().float().cpu()
    lengths = embeddings.norm(dim=1, keepdim=True)
    wrong = (~(lengths.isfinite() & (lengths > 0))).flatten().nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise RetrieverError(f"embedding {row} has the length {float(lengths[row]):g}, and so no direction.")
    return embeddings / lengths


def _faiss_index(embeddings: torch.Tensor, factory: str) -> Any:
    """A data set with an index over the embeddings, by their inner product."""
    try:
        datasets, faiss = importlib.import_module("datasets"), importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f'search="faiss" of the caption retriever (its default above {EXACT_UP_TO} captions): {error}; pip install '
            'faiss-cpu datasets, or take search="exact"'
        ) from error
    index = datasets.Dataset.from_dict({"place": range(len(embeddings))})
    index.add_faiss_index_from_external_arrays(
        embeddings.numpy(),
        "captions",
        string_factory=factory,
        metric_type=faiss.METRIC_INNER_PRODUCT,
        train_size=None if factory == "Flat" else len(embeddings),
    )
    return index
