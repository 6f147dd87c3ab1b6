"""Pictures from http(s) servers: bounded in bytes, with one deadline for the whole exchange."""

import functools
import http.client
import io
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from .captioner_image_limits import ImageError, shorten, too_many

_CHUNK = 2**16


class _Deadline:
    """The moment when an exchange must be over."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.end = time.monotonic() + timeout

    def remaining(self) -> float:
        """Seconds that are left. Raises `TimeoutError` where none are."""
        seconds = self.end - time.monotonic()
        if seconds <= 0:
            raise TimeoutError(f"not delivered within {self.timeout} seconds")
        return seconds


class _SocketReader(io.RawIOBase):
    """The receiving side of a socket, where every receive gets the time that is left."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self.connection, self.deadline = connection, deadline
        self.file = connection.makefile("rb", buffering=0)  # holds the connection open

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.connection.settimeout(self.deadline.remaining())
        return self.connection.recv_into(buffer)

    def close(self) -> None:
        self.file.close()
        super().close()


class _BoundedSocket:
    """Parts of a socket that `http.client` needs."""

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self.connection, self.deadline = connection, deadline
        self.close = connection.close

    def sendall(self, data: Any) -> None:
        self.connection.settimeout(self.deadline.remaining())
        self.connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_SocketReader(self.connection, self.deadline))


class _Connection(http.client.HTTPConnection):
    def __init__(self, *args: Any, deadline: _Deadline, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "timeout": deadline.remaining()})
        self.deadline = deadline

    def connect(self) -> None:
        super().connect()
        self.sock: Any = _BoundedSocket(self.sock, self.deadline)


class _SecureConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, deadline: _Deadline, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "timeout": deadline.remaining()})
        self.deadline = deadline

    def connect(self) -> None:  # the handshake, too, has one limit in Python's ssl
        super().connect()
        self.sock: Any = _BoundedSocket(self.sock, self.deadline)


class _HTTP(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def http_open(self, request: Any) -> Any:
        connection: Any = functools.partial(_Connection, deadline=self.deadline)
        return self.do_open(connection, request)


class _HTTPS(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self.deadline = deadline

    def https_open(self, request: Any) -> Any:
        connection: Any = functools.partial(_SecureConnection, deadline=self.deadline)
        return self.do_open(connection, request)


class _Redirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request: Any, response: Any, *args: Any) -> Any:
        response.close()  # or urllib would read its body, however long it is
        return super().redirect_request(request, response, *args)


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """urllib without its file:, ftp: and data: handlers, so that a redirect cannot reach them either."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HTTP(deadline),
        _HTTPS(deadline),
        _Redirect(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "hf-captioners"), ("Accept", "image/*,*/*;q=0.5")]
    return opener


def read_url(url: str, max_bytes: int, timeout: float) -> bytes:
    """Fetch a picture.

    Args:
        url (`str`): http or https.
        max_bytes (`int`): where the body is longer, one byte more than this is returned.
        timeout (`float`): seconds for connecting, redirects, headers and body together. The look-up of a host's name is
            the operating system's, with limits of its own, and each address of a host is tried for that long.

    Raises:
        [`ImageError`]: not delivered; the message lacks the URL.
    """
    ascii_url = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    deadline = _Deadline(timeout)
    try:
        with _opener(deadline).open(ascii_url) as response:
            expected = int(response.headers.get("Content-Length") or -1)
            if expected > max_bytes:
                raise too_many(expected, max_bytes, "bytes")
            body = bytearray()
            while len(body) <= max_bytes and (chunk := response.read1(_CHUNK)):
                body += chunk
    except ImageError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"HTTP status {error.code} ({shorten(str(error.reason))})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, TimeoutError):
            raise ImageError(f"not delivered within {timeout} seconds") from error
        raise ImageError(f"cannot be fetched ({shorten(str(error))})") from error
    if len(body) < expected:
        raise ImageError(f"the connection closed after {len(body)} of {expected} bytes")
    return bytes(body)
