"""The page in a real browser, and what can be asked of its server; skipped where Gradio or the browser is missing."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from contracts.reward_policies import tiny_policy, tiny_processor
from PIL import Image

from hf_captioners.demo.example_folder import ExampleFolder
from hf_captioners.demo.shown_captioner import ShownCaptioner
from hf_captioners.demo.visit import Exhibition, candidate_rows, decoding_of, open_upload, step_rows

pytest.importorskip("gradio", reason="needs Gradio (the extra demo)")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "examples").mkdir()
    Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(folder / "picture.png")
    for name in ("one", "two", "three", "four", "five", "six"):
        shutil.copy(folder / "picture.png", folder / "examples" / f"{name}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing of a picture")
    (folder / "secret.txt").write_text("hidden words")
    return folder


@pytest.fixture(scope="module")
def exhibition(place) -> Exhibition:
    kinds = ("satic", "scdnet")
    shown = [ShownCaptioner(kind, tiny_policy(kind), tiny_processor(kind)) for kind in kinds]
    return Exhibition(shown, examples=ExampleFolder(place / "examples"))


@pytest.fixture(scope="module")
def address(exhibition):
    from hf_captioners.demo.page import build_page, open_page

    page = build_page(exhibition)
    yield open_page(page, wait=False, quiet=True)
    page.close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"needs a browser: {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def tab(browser, address, request):
    tab = browser.new_page(viewport=request.param)
    tab.set_default_timeout(120_000)
    asked = []
    tab.on("request", lambda one: asked.append(one.url))
    tab.goto(address)
    tab.get_by_role("button", name="Caption", exact=True).wait_for()
    yield tab
    ours = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not ours, ours  # no other server is asked for anything
    tab.close()


def upload(tab, path):
    tab.locator("#picture input[type=file]").set_input_files(str(path))
    tab.locator("#picture img").wait_for()


def cut_off(tab, gallery) -> list[int]:
    """The pictures of a gallery that are not in its width as a whole."""
    box = tab.locator(gallery).bounding_box()
    boxes = [one.bounding_box() for one in tab.locator(f"{gallery} .gallery-item").all()]
    assert boxes
    return [
        n for n, one in enumerate(boxes) if one["x"] < box["x"] or one["x"] + one["width"] > box["x"] + box["width"]
    ]


def test_upload_and_caption(tab, place, exhibition):
    upload(tab, place / "picture.png")
    tab.locator("#caption").click()
    decoding = decoding_of(3, 3, False, 1.0, 0, "its own")
    for captioner in exhibition.captioners:
        rows, _ = candidate_rows(captioner, open_upload(str(place / "picture.png")), decoding)
        tab.get_by_text(rows[0][0]).filter(visible=True).first.wait_for()
    wide = tab.evaluate("document.documentElement.scrollWidth")
    assert wide <= tab.viewport_size["width"]
    assert cut_off(tab, "#examples") == []
    tab.get_by_text("Where each word looked").click()
    tab.locator("#words").click()
    tab.get_by_text("What is shown: cross-attention").filter(visible=True).wait_for()
    tab.locator("#maps .gallery-item img").first.wait_for()
    assert cut_off(tab, "#maps") == []
    tab.get_by_text("How the sentence becomes clear").click()
    tab.locator("#steps").click()
    last = step_rows(exhibition.denoising[0], open_upload(str(place / "picture.png")), decoding)[-1]
    tab.get_by_text(last[2]).filter(visible=True).first.wait_for()


def test_a_broken_file_gives_a_message(tab, place):
    tab.locator("#picture input[type=file]").set_input_files(str(place / "broken.png"))
    tab.wait_for_function("document.querySelector('#picture img') || document.querySelector('#picture button')")
    tab.wait_for_timeout(1500)
    tab.locator("#caption").click()
    said = tab.get_by_text("this picture cannot be read").filter(visible=True).first
    said.wait_for()
    assert str(place) not in tab.content()


def test_no_picture(tab):
    tab.locator("#caption").click()
    tab.get_by_text("give a picture first").filter(visible=True).first.wait_for()


def get(url: str, body: dict | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_no_file_of_the_machine_can_be_read(address, place):
    assert address.startswith("http://127.0.0.1:")
    for path in (place / "secret.txt", place / "examples/one.png", Path("/etc/hostname")):
        status, content = get(f"{address}gradio_api/file={path}")
        assert status in (403, 404) and b"hidden words" not in content, path
    for given in (str(place / "picture.png"), "/etc/hostname"):
        settings = [3, 3, False, 1.0, 0, "its own"]
        data = [{"path": given, "meta": {"_type": "gradio.FileData"}}, *settings]
        status, content = get(f"{address}gradio_api/call/caption", {"data": data})
        if status == 200:
            status, content = get(f"{address}gradio_api/call/caption/{json.loads(content)['event_id']}")
        assert b"event: complete" not in content and b"root:" not in content
