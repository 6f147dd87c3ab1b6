"""A data set goes to the Hub: a folder of Parquet files and its card, uploaded as one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from .access import check_write_rights, hub_errors
from .push import Pushed


def check_data_rights(repo_id: str, token: str | None = None) -> None:
    """Ask the Hub, before any work, whether a data set may be written.

    Args:
        repo_id (`str`): `"owner/name"`.
        token (`str`, *optional*): by default the one of `hf auth login` or `HF_TOKEN`.

    Raises:
        HubError: the name is none, or it may not be written.
    """
    with hub_errors(repo_id):
        validate_repo_id(repo_id)
    check_write_rights(repo_id, token)


def push_data(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Push the folder of an exported data set to the Hub as one commit; files of an earlier push are replaced.

    Args:
        folder (`str` or `Path`): of [`export_dataset`].
        repo_id (`str`): `"owner/name"`. It is made if there is none.
        private (`bool`, *optional*): whether a new repository is private; by default as its owner has set it.
        commit_message (`str`, *optional*): title of the commit.
        token (`str`, *optional*): by default the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        [`Pushed`]

    Raises:
        HubError: the Hub cannot be reached, nobody is logged in, or it may not be written.

    Example:

    ```python
    >>> from hf_captioners.hub.push_data import push_data
    >>> pushed = push_data("squares", "me/squares", private=True)  # doctest: +SKIP

    ```
    """
    api = HfApi(token=token)
    check_data_rights(repo_id, token)
    with hub_errors(repo_id):
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            commit_message=commit_message or "Captioned pictures and card",
            delete_patterns=["data/*.parquet"],
        )
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return Pushed(repo_id, commit.commit_url, sizes, commit.oid)
