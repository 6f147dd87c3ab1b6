"""A captioner goes to the Hub: staged in one folder, uploaded as one commit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from ..data.files import check_can_be_made
from .access import check_write_rights, hub_errors
from .staging import StagingError, stage

# Files of an earlier push that would be read in the place of these, or that were made of other weights.
_OUTDATED = ["model*.safetensors", "model.safetensors.index.json", "onnx/*", "openvino/*"]


@dataclass(frozen=True)
class Pushed:
    """The result of a push.

    Attributes:
        repo_id (`str`): the repository, with its owner.
        url (`str`): of the commit or of the pull request; of a dry run the folder.
        files (`dict[str, int]`): what was pushed, with its bytes.
        revision (`str`, *optional*): the commit, for `from_pretrained(…, revision=…)`; `None` of a dry run.
    """

    repo_id: str
    url: str
    files: dict[str, int]
    revision: str | None = None


def push_captioner(
    captioner: Any,
    processor: Any,
    repo_id: str,
    *,
    private: bool | None = None,
    ship_code: bool = False,
    create_pr: bool = False,
    dry_run: str | Path | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    contact_sheet: bool = False,
    trust_remote_code: bool = False,
    weights_dtype: str | None = None,
    token: str | None = None,
    **card: Any,
) -> Pushed:
    """Push a captioner to the Hub as one commit: weights, processor, generation config, card, and code if asked for.

    Only the captioner goes, no checkpoints, optimizer states or logs of the run that made it. A push that was
    interrupted is repeated with the same call; large files that have arrived are not sent again.

    Args:
        captioner (`PreTrainedModel`, `str` or `Path`): the model, or the folder of a captioner, of adapters or of a
            detector.
        processor (`ProcessorMixin`, *optional*): its processor, of a detector its image processor; `None` for that of
            the folder.
        repo_id (`str`): `"owner/name"`, or `"name"` for one's own. It is made if there is none.
        private (`bool`, *optional*): whether a new repository is private; by default as its owner has set it.
        ship_code (`bool`, defaults to `False`): add the code, so that it runs where the package is not installed, for
            those who load it with `trust_remote_code=True`.
        create_pr (`bool`, defaults to `False`): propose the commit as a pull request.
        dry_run (`str` or `Path`, *optional*): write what would be pushed into this folder, new or empty, and ask the
            Hub nothing.
        revision (`str`, *optional*): branch, `main` by default.
        commit_message (`str`, *optional*): title of the commit.
        contact_sheet (`bool`, defaults to `False`): add the contact sheet of a run; it shows pictures of the evaluation
            data, whose licence must allow that.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the captioner may run here.
        weights_dtype (`str`, *optional*): precision of the weights in their file: `"float16"` or `"bfloat16"` halves
            what is sent of a captioner in float32, which is loaded in float32 as before, its weights rounded.
        token (`str`, *optional*): by default the one of `hf auth login` or `HF_TOKEN`.
        card: fields of [`CardFacts`] for the card, such as `licence="cc-by-nc-4.0"`.

    Returns:
        [`Pushed`]

    Raises:
        HubError: the Hub cannot be reached, nobody is logged in, or it may not be written.
        StagingError: others could not load the captioner.
        ValueError, OSError: it cannot be loaded, or a folder cannot be written.

    Example:

    ```python
    >>> from hf_captioners.hub.push import push_captioner
    >>> pushed = push_captioner("runs/mine", None, "me/mine", private=True)  # doctest: +SKIP

    ```
    """
    with hub_errors(repo_id):
        validate_repo_id(repo_id)
    options = {
        **{"contact_sheet": contact_sheet, "trust_remote_code": trust_remote_code, "weights_dtype": weights_dtype},
        **card,
    }
    if dry_run is not None:
        with empty_folder(Path(dry_run)) as folder:
            files = stage(captioner, processor, folder, repo_id, ship_code, **options)
            return Pushed(repo_id, str(dry_run), sizes(folder, files))
    api = HfApi(token=token)
    owner = check_write_rights(None if create_pr else repo_id, token, api)
    repo_id = repo_id if "/" in repo_id else f"{owner}/{repo_id}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = stage(captioner, processor, folder, repo_id, ship_code, **options)
        with hub_errors(repo_id):
            if not create_pr:
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or "Model, processor and card",
                revision=revision,
                create_pr=create_pr,
                delete_patterns=_OUTDATED,
            )
        return Pushed(repo_id, commit.pr_url or commit.commit_url, sizes(folder, files), commit.oid)


def sizes(folder: Path, files: list[Path]) -> dict[str, int]:
    """Bytes of files by their names in a folder."""
    return {file.as_posix(): (folder / file).stat().st_size for file in files}


@contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """Make a folder to be filled; if that fails, all is as it was.

    Args:
        folder (`Path`): new or empty.

    Yields:
        `Path`: the same.

    Raises:
        StagingError: there is something in it.
    """
    check_can_be_made(folder.resolve())
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StagingError(f"{folder}: must be a new or an empty folder")
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        for path in new[-1:] or list(folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
