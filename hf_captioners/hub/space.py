"""The page of `hf-captioners demo` as a Space: the captioner, the package and the page in one repository of the Hub.

The Space carries the source of this package, so that it needs no other place to get it from, and what pip installs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoCard, SpaceCardData
from huggingface_hub.utils import validate_repo_id

from ..data.printable import printable
from .access import check_write_rights, hub_errors
from .push import Pushed, empty_folder, sizes
from .staging import StagingError, stage

GRADIO = "6.31.0"
"""The version of Gradio that the page was tried with."""

REQUIREMENTS = (
    *("torch>=2.10", "transformers>=5.23,<6", "huggingface_hub>=2.4", "safetensors>=0.8", "tokenizers>=0.23"),
    *("numpy>=1.26", "jinja2>=3.1", "pillow>=12,<13", "tqdm>=4.66", "typing_extensions>=4.10"),
)
"""What the package needs, with a Pillow that Gradio takes."""

CAPTIONER, EXAMPLES = "captioner", "examples"
_APP = '''\
"""A page to try a captioner; made by `hf-captioners push --space`."""

from hf_captioners.demo.page import build_page, open_page
from hf_captioners.demo.visit import Exhibition

exhibition = Exhibition.from_pretrained([{model!r}], examples={examples!r})
open_page(build_page(exhibition, {title!r}), host="0.0.0.0", port=7860)
'''


def stage_space(
    captioner: str | Path,
    folder: Path,
    repo_id: str,
    title: str | None = None,
    examples: str | Path | None = None,
    trust_remote_code: bool = False,
    **card: Any,
) -> list[Path]:
    """Write a Space into a folder.

    Args:
        captioner (`str` or `Path`): folder of a captioner or detector, which travels along, or a name on the Hub, which
            the Space loads.
        folder (`Path`): an empty folder.
        repo_id (`str`): of the Space.
        title (`str`, *optional*): of the page; by default the Space's name.
        examples (`str` or `Path`, *optional*): folder of pictures to choose from; those that the page would show travel
            along, and their licence must allow it.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the captioner may run here.
        card: fields of [`CardFacts`], such as `licence`.

    Returns:
        `list[Path]`: the files, relative to the folder, sorted.

    Raises:
        StagingError: there is no captioner, or one that others could not load; no pictures among the examples.
        ValueError, OSError: it cannot be loaded or saved.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from hf_captioners.hub.space import stage_space
    >>> files = stage_space("runs/mine", Path("space"), "me/mine-demo")  # doctest: +SKIP

    ```
    """
    title = title or repo_id.rpartition("/")[2]
    model = str(captioner)
    if Path(captioner).is_dir():
        (folder / CAPTIONER).mkdir(parents=True)
        stage(captioner, None, folder / CAPTIONER, repo_id, trust_remote_code=trust_remote_code, **card)
        model = CAPTIONER
    else:
        _check_name(model)
    if examples is not None:
        _copy_examples(Path(examples), folder / EXAMPLES)
    package = Path(__file__).parent.parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", "*.so"))
    shown = None if examples is None else EXAMPLES
    (folder / "app.py").write_text(_APP.format(model=model, examples=shown, title=title), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(title, model, card.get("licence")), encoding="utf-8")
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def push_space(
    captioner: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    dry_run: str | Path | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    **options: Any,
) -> Pushed:
    """Push the page of a captioner to the Hub as a Space, as one commit.

    Args:
        captioner (`str` or `Path`): see [`stage_space`].
        repo_id (`str`): `"owner/name"`, or `"name"` for one's own. It is made if there is none.
        private, dry_run, commit_message, token: see [`push_captioner`].
        options: of [`stage_space`].

    Returns:
        [`Pushed`]

    Raises:
        HubError: the Hub cannot be reached, nobody is logged in, or it may not be written.
        StagingError, ValueError, OSError: see [`stage_space`].
    """
    with hub_errors(repo_id):
        validate_repo_id(repo_id)
    if dry_run is not None:
        with empty_folder(Path(dry_run)) as folder:
            return Pushed(repo_id, str(dry_run), sizes(folder, stage_space(captioner, folder, repo_id, **options)))
    api = HfApi(token=token)
    owner = check_write_rights(repo_id, token, api)
    repo_id = repo_id if "/" in repo_id else f"{owner}/{repo_id}"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = stage_space(captioner, folder, repo_id, **options)
        with hub_errors(repo_id):
            api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                repo_type="space",
                folder_path=folder,
                commit_message=commit_message or "Page to try a captioner",
                delete_patterns=["*"],
            )
        return Pushed(repo_id, commit.commit_url, sizes(folder, files), commit.oid)


def _check_name(model: str) -> None:
    if "/" not in model:
        raise StagingError(f"{model}: no such folder of a captioner, and no name on the Hub")
    with hub_errors(model):
        validate_repo_id(model)


def _readme(title: str, model: str, licence: str | None) -> str:
    """The card of the Space, by which the Hub runs it."""
    known: dict[str, Any] = {"models": None if model == CAPTIONER else [model], "license": licence}
    data = SpaceCardData(
        title=printable(title),
        sdk="gradio",
        sdk_version=GRADIO,
        app_file="app.py",
        tags=["image-captioning"],
        **{name: value for name, value in known.items() if value},
    )
    named = "the captioner in `captioner/`" if model == CAPTIONER else f"`{model}`"
    body = f"# {printable(title)}\n\nA page to try {named}, as `hf-captioners demo` serves it.\n"
    return str(RepoCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _copy_examples(source: Path, folder: Path) -> None:
    """Pictures that lie in the folder itself; no links."""
    from ..data.image_suffixes import IMAGE_SUFFIXES

    if not source.is_dir():
        raise StagingError(f"--examples {source}: no such folder")
    pictures = [
        path
        for path in sorted(source.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.is_symlink()
    ]
    if not pictures:
        raise StagingError(f"--examples {source}: no pictures in it")
    folder.mkdir(parents=True)
    for path in pictures[:24]:
        shutil.copyfile(path, folder / path.name)
