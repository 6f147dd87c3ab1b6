"""The Hub's refusals as one line each that says what to do; no address and no token stands in any of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_ADVICE = {
    401: "the token is not valid (any more); log in again with `hf auth login`",
    403: "the token or its owner may not do this; log in with a token that may write there (`hf auth login`), name a "
    "repository of your own, or propose the change with --create-pr (create_pr=True)",
    409: "somebody else is changing the repository; try again",
    412: "somebody else has changed the repository; try again",
    413: "a file is larger than the Hub takes",
    429: "too many requests; wait some minutes and try again",
}


class HubError(ValueError):
    """Refusal by the Hub, or a Hub out of reach. The message is one line and says what to do."""


@contextmanager
def hub_errors(repo_id: str | None = None) -> Iterator[None]:
    """Raise what goes wrong between here and the Hub as [`HubError`].

    Args:
        repo_id (`str`, *optional*): the repository, for messages.

    Raises:
        HubError: in the place of errors of huggingface_hub and of the network.

    Example:

    ```python
    >>> from huggingface_hub.errors import OfflineModeIsEnabled
    >>> from hf_captioners.hub.access import hub_errors
    >>> with hub_errors("me/mine"):
    ...     raise OfflineModeIsEnabled()
    Traceback (most recent call last):
        ...
    hf_captioners.hub.access.HubError: HF_HUB_OFFLINE is set; unset it

    ```
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError("HF_HUB_OFFLINE is set; unset it") from error
    except LocalTokenNotFoundError as error:
        raise HubError("nobody is logged in; do so with `hf auth login`, or set HF_TOKEN") from error
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository; write ORGANISATION/NAME or NAME") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{repo_id} has no such revision; leave it out, or make the branch first") from error
    except RepositoryNotFoundError as error:
        raise HubError(f"{repo_id}: there is no such repository, or the token may not see it") from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(error)) from error
    except RuntimeError as error:  # of the upload of a large file, its cause behind it
        if not isinstance(error.__cause__, Exception):
            raise
        with hub_errors(repo_id):
            raise error.__cause__ from None
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # a file of this machine
            raise
        raise HubError(
            f"the Hub ({constants.ENDPOINT}) cannot be reached: {type(error).__name__}; check the connection and try "
            "again, what has arrived is not sent twice"
        ) from error


def _refusal(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    said = " ".join((error.server_message or error.response.reason_phrase).split())
    advice = _ADVICE.get(status, "try again later" if status >= 500 else None)
    return f"the Hub says {status}: {said}" + ("" if advice is None else f"; {advice}")


def check_write_rights(repo_id: str | None, token: str | bool | None = None, api: HfApi | None = None) -> str:
    """Ask the Hub, before any work, whether a repository may be made or written.

    Args:
        repo_id (`str`, *optional*): the repository; without an owner it is that of the token.
        token (`str`, *optional*): by default the one of `hf auth login` or `HF_TOKEN`.
        api (`HfApi`, *optional*): the Hub.

    Returns:
        `str`: the name of the token's owner.

    Raises:
        HubError: it cannot be reached, nobody is logged in, or the token or its owner may not write there.
    """
    with hub_errors(repo_id):
        who = (api or HfApi()).whoami(token)
    rights = who.get("auth", {}).get("accessToken", {})
    if rights.get("role") == "read" or (rights.get("role") == "fineGrained" and not _may_write(rights)):
        raise HubError("the token may only read; log in with one that may write")
    owner, slash, _ = (repo_id or "").partition("/")
    name: str = who["name"]
    owners = [name, *(one["name"] for one in who.get("orgs", []))]
    if slash and owner not in owners:
        raise HubError(f"{repo_id}: {owner} is none of {', '.join(owners)}")
    return name


def _may_write(token: Mapping[str, Any]) -> bool:
    """Tell whether a token with rights of its own may write into any repository."""
    scopes = token.get("fineGrained", {}).get("scoped", [])
    return any("repo.write" in scope.get("permissions", []) for scope in scopes)
