"""The verbs on the folder of an exported captioner of pictures."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from contracts.exported import needs_onnx
from contracts.loopback_hub import LoopbackHub
from PIL import Image

from hf_captioners import pipeline
from hf_captioners.cli.common import UsageError
from hf_captioners.cli.export_quality import compare
from hf_captioners.cli.main import main
from hf_captioners.data.captions.load import load_captions
from hf_captioners.export import ExportedCaptioner
from hf_captioners.export.planning import plan_export
from hf_captioners.export.writing import write_export
from hf_captioners.inference.loading import load_captioners

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = """
import json, sys
from hf_captioners import pipeline
from hf_captioners.cli.main import main
from hf_captioners.export import ExportedCaptioner
exported = ExportedCaptioner.from_pretrained("me/mine")
captions = pipeline(model="me/mine/onnx")(sys.argv[1:])
print(json.dumps([isinstance(exported, ExportedCaptioner), captions]))
main(["caption", *sys.argv[1:], "--model", "me/mine/onnx"])
"""
SCORED = ("evaluate", "--dataset", "metadata.jsonl", "--image-root", ".", "--metrics", "bleu", "--json", "--model")


@pytest.fixture(scope="module")
def tiny_plan(tiny_captioner_dir):
    needs_onnx()
    return plan_export(*load_captioners([str(tiny_captioner_dir)], "cpu", "float32"), "pixels")


@pytest.fixture
def pictures(tmp_path):
    """Three captioned pictures."""
    for number in range(3):
        picture = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1 + number / 4, 1.5), 50).convert("RGB")
        picture.save(tmp_path / f"{number}.png")
    rows = [{"file_name": f"{number}.png", "captions": ["a red circle", "a star"]} for number in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_captions(tmp_path)


class TestVerbs:
    @pytest.fixture(scope="class", params=[False, True], ids=["float32", "int8"])
    def folder(self, request, tiny_plan, tiny_captioner_dir, tmp_path_factory):
        out = tmp_path_factory.mktemp("verbs") / "new" / "onnx"  # neither is there
        with pytest.MonkeyPatch.context() as patch:  # traced once for both
            patch.setattr("hf_captioners.export.writing.plan_export", lambda *_: tiny_plan)
            words = ["export", "onnx", str(tiny_captioner_dir), "--out", str(out), "--greedy-graph"]
            words += ["--int8"] * request.param
            assert main(words) == 0
        return out, request.param

    def test_pictures(self, folder, tiny_captioner_dir, tmp_path, capfd):
        out, int8 = folder
        paths = []
        for number in range(3):
            paths.append(tmp_path / f"{number}.png")
            Image.effect_mandelbrot((40, 30), (-2, -1.5, 1 + number / 4, 1.5), 50).convert("RGB").save(paths[-1])
        expected = [caption[0]["generated_text"] for caption in pipeline(model=tiny_captioner_dir)([*map(str, paths)])]
        found = [caption[0]["generated_text"] for caption in pipeline(model=out)([*map(str, paths)], batch_size=2)]
        assert int8 or found == expected
        capfd.readouterr()
        assert main(["caption", *map(str, paths), "--model", str(out)]) == 0
        assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == found
        rows = [{"file_name": path.name, "captions": ["a square"]} for path in paths]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        results = tmp_path / "results.json"
        words = ["--dataset", tmp_path, "--metrics", "rouge_l", "--save-predictions", results]
        assert main(["evaluate", "--model", str(out), *map(str, words)]) == 0
        assert [row["caption"] for row in json.loads(results.read_text())] == found

    def test_greedy_graph(self, folder, tiny_captioner_dir, pictures):
        import onnxruntime

        out, int8 = folder
        model, processor = load_captioners([str(tiny_captioner_dir)], "cpu", "float32")
        model = ExportedCaptioner.from_pretrained(out) if int8 else model
        inputs = processor.prepare_rows(list(pictures))
        session = onnxruntime.InferenceSession(out / "greedy.onnx", providers=["CPUExecutionProvider"])
        found = session.run(["sequences"], {"pixel_values": inputs["pixel_values"].numpy()})[0]
        assert found.tolist() == model.generate(**inputs, num_beams=1).tolist()

    def test_weights_are_integers(self, folder):
        import onnx_ir

        out, int8 = folder
        for name in ("encoder", "decoder", "greedy"):
            kinds = {node.op_type for node in onnx_ir.load(out / f"{name}.onnx").graph.all_nodes()}
            assert ("MatMulInteger" in kinds) == int8

    def test_provider(self, folder):
        with pytest.raises(ValueError, match="did not get TensorrtExecutionProvider and would run on CPU"):
            ExportedCaptioner.from_pretrained(
                folder[0], providers=["TensorrtExecutionProvider", "CPUExecutionProvider"]
            )

    def test_quality(self, folder, tiny_captioner_dir, pictures):
        out, int8 = folder
        model, processor = load_captioners([str(tiny_captioner_dir)], "cpu", "float32")
        found = compare(pictures, [model, ExportedCaptioner.from_pretrained(out)], processor)
        assert int8 or (found["same"] == 1 and found["cider_d"] == found["exported_cider_d"])

    def test_mistakes(self, folder, tiny_captioner_dir, capfd):
        out, _ = folder
        for words, message in (
            (["export", "onnx", out, "--out", out / "again"], "an exported one already"),
            (["push", out, "me/mine", "--dry-run", out / "again"], "and push that one"),
            (["export", "onnx", tiny_captioner_dir, "--out", out], "must be a new or an empty folder"),
            (["caption", "x.png", "--model", out, "--dtype", "bfloat16"], "its precision is that of the export"),
            (["caption", "x.png", "--model", out, tiny_captioner_dir], "captions alone, in no ensemble"),
        ):
            assert main([*map(str, words)]) == 2
            assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("export_format", "options", "library"),
    [("onnx", ["--int8", "--greedy-graph"], "onnxscript"), ("openvino", ["--int8"], "nncf")],
)
def test_libraries_say_nothing(export_format, options, library, tiny_captioner_dir, tmp_path):
    pytest.importorskip(library)
    words = ["export", export_format, str(tiny_captioner_dir), "--out", "exported", *options]
    command = [sys.executable, "-m", "hf_captioners", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["out_dir"] == "exported"


def test_over_the_hub(tiny_plan, tiny_captioner_dir, pictures, tmp_path, monkeypatch, capfd):
    run = Path(shutil.copytree(tiny_captioner_dir, tmp_path / "run"))
    write_export(tiny_plan, run / "onnx")
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    with LoopbackHub() as hub:

        def say(home: str, *words: str) -> str:
            env = {**hub.environment(tmp_path / home), "PYTHONPATH": str(ROOT)}
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=tmp_path)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        say("home", "-m", "hf_captioners", "push", str(run), "me/mine", "--private")
        sent = hub.repositories["me/mine"].files()
        first, *records = map(json.loads, say("other_home", "-c", BY_NAME, *names).splitlines())
        scored = say("other_home", "-m", "hf_captioners", *SCORED, "me/mine/onnx")
    assert {path.name for path in (run / "onnx").iterdir()} == {Path(name).name for name in sent if "onnx/" in name}
    assert sent["onnx/decoder.onnx"] == (run / "onnx" / "decoder.onnx").read_bytes()
    expected = pipeline(model=tiny_captioner_dir)(names)
    assert first == [True, expected]
    assert [record["caption"] for record in records] == [caption[0]["generated_text"] for caption in expected]
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    assert main([*SCORED, str(tiny_captioner_dir)]) == 0
    assert json.loads(scored)["corpus"] == json.loads(capfd.readouterr().out)["corpus"]


def test_a_loss_is_refused(tiny_captioner_dir, pictures, monkeypatch, tmp_path, capfd):
    model, processor = load_captioners([str(tiny_captioner_dir)], "cpu", "float32")
    scores = iter([2.0, 0.5, 0.505, 0.5])
    metric = importlib.import_module("hf_captioners.metrics.cider.cider")
    monkeypatch.setattr(metric, "cider_d", lambda *_: SimpleNamespace(corpus={"cider_d": next(scores)}))
    with pytest.raises(UsageError, match=r"loses 150.00 points of CIDEr-D on 3 pictures \(200.00 to 50.00\)"):
        compare(pictures, [model, model], processor, "--int8")
    assert compare(pictures, [model, model], processor, "--int8")["cider_d"] == 50.5
    words = ["export", "onnx", tiny_captioner_dir, "--out", tmp_path / "new", "--int8", "--force"]
    assert main([*map(str, words)]) == 2
    assert "without --annotations nothing is compared" in capfd.readouterr().err


@pytest.mark.parametrize("there_is", [True, False])
def test_bfloat16_is_scored_in_bfloat16_or_refused(
    there_is, tiny_captioner_dir, pictures, monkeypatch, tmp_path, capfd
):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    scores = iter([2.0, 0.5, 2.0, 0.5])
    metric = importlib.import_module("hf_captioners.metrics.cider.cider")
    monkeypatch.setattr(metric, "cider_d", lambda *_: SimpleNamespace(corpus={"cider_d": next(scores)}))
    monkeypatch.setattr("hf_captioners.export.runtime.computes_in_bfloat16", lambda _: there_is)
    out = tmp_path / "exported"
    words = [*map(str, ["export", "openvino", tiny_captioner_dir, "--out", out, "--bf16", "--annotations", tmp_path])]
    assert main(words) == 2
    said = "--bf16 loses 150.00 points" if there_is else "--bf16: this processor has no bfloat16"
    assert said in capfd.readouterr().err and not out.exists()
    assert main([*words, "--force"]) == 0
    assert json.loads((out / "export.json").read_text())["captioner"]["bfloat16"] is True


def test_without_the_libraries(tiny_captioner_dir, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("hf_captioners.extras.find_spec", lambda name: None)
    assert main(["export", "onnx", str(tiny_captioner_dir), "--out", str(tmp_path / "out")]) == 2
    assert "is not installed; it is of the extra onnx" in capfd.readouterr().err
