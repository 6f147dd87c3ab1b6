"""Pictures from servers: what they may do wrong is done by one on this machine."""

import http.server
import io
import threading
import time
from collections.abc import Iterator

import pytest
from PIL import Image

from hf_captioners.modeling.captioner_image_io import ImageError, open_image


def encode(image: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


class PictureServer(http.server.BaseHTTPRequestHandler):
    """Answers by path; `picture` is what it serves."""

    picture = encode(Image.new("RGB", (12, 8), (255, 0, 0)), "PNG")
    poured = 0

    def do_GET(self) -> None:
        route = self.path.partition("?")[0]
        if route == "/missing.png":
            self.send_error(404)
        elif route == "/redirect.png":
            self.redirect("/cat.png")
        elif route == "/to_file.png":
            self.redirect("file:///etc/hostname")
        elif route == "/to_ftp.png":
            self.redirect("ftp://127.0.0.1/cat.png")
        elif route == "/around.png":
            self.redirect("/around.png")
        elif route == "/announced_large.png":
            self.answer(b"", length=10**12)
        elif route == "/endless.png":
            self.answer_without_length(pause=0.0)
        elif route == "/drip.png":
            self.answer_without_length(pause=0.05)
        elif route == "/drip_headers.png":
            self.drip(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % index for index in range(50)))
        elif route == "/drip_status.png":
            self.drip(b"HTTP/1.1 200 " + bytes(1000))
        elif route == "/drip_redirect.png":
            self.redirect("/drip_redirect.png?again", wait=0.2)
        elif route == "/drip_length.png":
            self.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000))
        elif route == "/large_redirect.png":
            self.send_response(302)
            self.send_header("Location", "/cat.png")
            self.send_header("Content-Length", "1000000000000")
            self.end_headers()
            self.pour()
        elif route == "/long_reason.png":
            self.send_response(404, "\x1b[31m" + "no " * 10_000)
            self.end_headers()
        elif route == "/no_http.png":
            self.wfile.write(b"220 " + b"mail " * 1000 + b"\r\n")
        elif route == "/silent.png":
            time.sleep(1.5)
        elif route == "/cut.png":
            self.answer(self.picture[:-30], length=len(self.picture))
        elif route in ("/cat.png", "/caf%C3%A9.png"):
            self.answer(self.picture, length=len(self.picture))
        elif route == "/page.png":
            self.answer(b"<html>please log in</html>", length=26)

    def drip(self, content: bytes) -> None:
        """Sends a byte every now and then: each comes long before any timeout of a single receive."""
        try:
            for index in range(len(content)):
                self.wfile.write(content[index : index + 1])
                time.sleep(0.01)
        except OSError:  # the client hung up, as it should
            pass

    def pour(self) -> None:
        try:
            while True:
                self.wfile.write(bytes(2**20))
                PictureServer.poured += 2**20
        except OSError:
            pass

    def redirect(self, target: str, wait: float = 0.0) -> None:
        time.sleep(wait)
        self.send_response(302)
        self.send_header("Location", target)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def answer_without_length(self, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(self.picture if pause else self.picture * 1000)
                time.sleep(pause)
        except OSError:  # the client hung up, as it should
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), PictureServer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class TestUrl:
    @pytest.fixture(autouse=True)
    def no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("no_proxy", "*")

    @pytest.mark.parametrize("route", ["/cat.png", "/cat.png?size=large&x=1", "/redirect.png", "/café.png"])
    def test_picture(self, server: str, route: str) -> None:
        assert open_image(server + route).getpixel((0, 0)) == (255, 0, 0)
        assert open_image({"path": server + route, "bytes": None}).size == (12, 8)

    @pytest.mark.parametrize(
        ("route", "reason"),
        [
            ("/missing.png", "HTTP status 404"),
            ("/announced_large.png", "1000000000000 bytes, more than"),
            ("/endless.png", "more than the 100000 allowed"),
            ("/drip.png", "not delivered within 0.3 seconds"),
            ("/silent.png", "not delivered within 0.3 seconds"),
            ("/drip_headers.png", "not delivered within 0.3 seconds"),
            ("/drip_status.png", "not delivered within 0.3 seconds"),
            ("/drip_redirect.png", "not delivered within 0.3 seconds"),
            ("/drip_length.png", "not delivered within 0.3 seconds"),
            ("/long_reason.png", "HTTP status 404"),
            ("/no_http.png", "cannot be fetched"),
            ("/cut.png", "the connection closed after"),
            ("/page.png", "not a readable picture"),
            ("/around.png", "HTTP status 302"),
            ("/to_file.png", "file:"),
            ("/to_ftp.png", "ftp"),
        ],
    )
    def test_failures(self, server: str, route: str, reason: str) -> None:
        with pytest.raises(ImageError, match=reason) as caught:
            open_image(server + route, max_bytes=100_000, timeout=0.3)
        assert str(caught.value).startswith(server + route)
        assert len(str(caught.value)) < 500 and str(caught.value).isprintable()

    def test_the_body_of_a_redirect_is_not_read(self, server: str) -> None:
        """urllib reads it whole, whatever its length."""
        assert open_image(f"{server}/large_redirect.png").size == (12, 8)
        assert PictureServer.poured < 2**26  # what the sockets of the machine hold

    def test_nobody_answers(self) -> None:
        with pytest.raises(ImageError, match="cannot be fetched"):
            open_image("http://127.0.0.1:9/cat.png", timeout=1)
        with pytest.raises(ImageError, match="cannot be fetched"):
            open_image("http://", timeout=1)

    @pytest.mark.parametrize("url", ["ftp://host/cat.png", "file:///etc/hostname", "s3://bucket/cat.png", "zip://a::b"])
    def test_other_schemes(self, url: str) -> None:
        with pytest.raises(ImageError, match=r"URL scheme '\w+' is not supported"):
            open_image(url)
