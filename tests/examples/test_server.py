"""The server of the documents: it captions what is posted, and refuses what is no picture or too large."""

from __future__ import annotations

import io

import pytest
from contracts.documents import blocks
from PIL import Image


@pytest.fixture
def client(tmp_path, tiny_captioner_dir, monkeypatch):
    pytest.importorskip("fastapi", reason="fastapi is not installed")
    from fastapi.testclient import TestClient

    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart/captioner").symlink_to(tiny_captioner_dir)
    monkeypatch.chdir(tmp_path)
    code = next(block.code for block in blocks() if block.title.endswith("server.py"))
    module: dict = {}
    exec(compile(code, "server.py", "exec"), module)
    return TestClient(module["app"])


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    return file.getvalue()


def test_a_picture_is_captioned_as_by_the_pipeline(client):
    from hf_captioners import pipeline

    said = pipeline(model="quickstart/captioner")(Image.new("RGB", (40, 30), "red"), num_beams=3)[0]["generated_text"]
    answer = client.post("/caption", content=picture())
    assert (answer.status_code, answer.json()) == (200, {"caption": said})
    assert client.post("/caption?num_beams=1000", content=picture()).status_code == 200
    assert client.post("/caption?num_beams=many", content=picture()).status_code == 422


@pytest.mark.parametrize(("body", "status"), [(b"no picture", 422), (b"", 422), (bytes(16 * 2**20 + 1), 413)])
def test_what_is_no_picture_is_refused(client, body, status):
    answer = client.post("/caption", content=body)
    assert answer.status_code == status
    assert answer.json()["detail"]
