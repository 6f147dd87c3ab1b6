"""What goes wrong between here and the Hub is one line, without addresses."""

from pathlib import Path

import pytest
from httpx2 import Request, Response
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import hf_raise_for_status

from hf_captioners.hub.access import HubError, hub_errors

SIGNED = "https://hub.example/upload?signature=secret"


def answered(status, said=""):
    """The error of an answer, as huggingface_hub raises it."""
    with pytest.raises(HfHubHTTPError) as caught:
        hf_raise_for_status(Response(status, json={"error": said}, request=Request("PUT", SIGNED)))
    return caught.value


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answered(403, "not yours"), "the Hub says 403: not yours; the token or its owner may not do this; log in"),
        (answered(429), "the Hub says 429: Too Many Requests; too many requests; wait"),
        (answered(503), "the Hub says 503: Service Unavailable; try again later"),
        (answered(400, "the card\nis bad"), "the Hub says 400: the card is bad"),
        (HTTPError(f"broken {SIGNED}"), "cannot be reached: HTTPError; check the connection and try again"),
        (HFValidationError("no"), "'me/mine' is no name of a repository"),
    ],
)
def test_one_line(error, message):
    with pytest.raises(HubError) as caught, hub_errors("me/mine"):
        raise error
    assert message in str(caught.value) and "\n" not in str(caught.value) and "secret" not in str(caught.value)
    with pytest.raises(HubError) as caught, hub_errors("me/mine"):  # as the upload of a large file raises it
        raise RuntimeError("Error while uploading") from error
    assert message in str(caught.value)


def test_what_is_of_this_machine_stays():
    with pytest.raises(FileNotFoundError), hub_errors():
        Path("/nowhere/at/all").read_bytes()
    with pytest.raises(RuntimeError, match="of torch"), hub_errors():
        raise RuntimeError("of torch")
