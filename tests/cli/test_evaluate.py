"""`hf-captioners evaluate`, on files and with the tiny captioner."""

import gzip
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from hf_captioners.cli import evaluate, main
from hf_captioners.conversion import convert
from hf_captioners.metrics import DEFAULT_METRICS, METRICS, CaptionMetrics, DocumentFrequencies

CAPTIONS = {1: "a red dog runs", 2: "two cats on a chair", 3: "the sea"}
REFERENCES = {
    1: ["A red dog is running.", "the dog runs"],
    2: ["Two cats sit on a chair.", "cats, on chairs"],
    3: ["The blue sea.", "waves of the sea"],
}
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """COCO results and COCO annotations."""
    predictions, references = tmp_path / "results.json", tmp_path / "annotations.json.gz"
    predictions.write_text(json.dumps([{"image_id": name, "caption": text} for name, text in CAPTIONS.items()]))
    annotations = [{"image_id": name, "caption": one} for name, several in REFERENCES.items() for one in several]
    images = [{"id": name, "file_name": f"{name}.png"} for name in REFERENCES]
    references.write_bytes(gzip.compress(json.dumps({"images": images, "annotations": annotations}).encode()))
    return predictions, references


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the verb; returns the exit status and the texts on stdout and stderr."""

    def run_here(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main.main(["evaluate", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run_here


class TestFiles:
    def expected(self, **options: Any) -> Any:
        return CaptionMetrics(**options)(list(CAPTIONS.values()), list(REFERENCES.values()), list(CAPTIONS))

    def test_json(self, run: Any, files: tuple[Path, Path]) -> None:
        status, out, err = run("--predictions", files[0], "--references", files[1], "--json", "--per-image")
        assert (status, err) == (0, "")
        content = json.loads(out)
        expected = self.expected()
        assert content["corpus"] == expected.corpus
        assert content["signature"] == expected.signature
        assert list(content["per_image"]["cider_d"].values()) == expected.per_image["cider_d"].tolist()
        assert list(content["per_image"]["cider_d"]) == ["1", "2", "3"]

    def test_table(self, run: Any, files: tuple[Path, Path]) -> None:
        status, out, _ = run("--predictions", files[0], "--references", files[1], "--metrics", "bleu", "cider")
        assert status == 0
        expected = self.expected(metrics=["bleu", "cider"])
        lines = [line.rsplit(None, 1) for line in out.splitlines()]
        assert [tuple(line) for line in lines[:5]] == [(f"{name}", value) for name, value in expected.table()]
        assert out.splitlines()[-1] == expected.signature_text

    def test_document_frequencies_of_another_corpus(self, run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
        corpus = {str(i): [f"a dog number {i}", "the sea"] for i in range(5)}
        path = tmp_path / "corpus.json"
        path.write_text(json.dumps(corpus))
        arguments = ["--predictions", files[0], "--references", files[1], "--metrics", "cider_d", "--json"]
        status, out, _ = run(*arguments, "--document-frequencies", path)
        frequencies = DocumentFrequencies.from_references(list(corpus.values()))
        expected = self.expected(metrics=["cider_d"], document_frequencies=frequencies)
        assert (status, json.loads(out)["corpus"]) == (0, expected.corpus)
        frequencies.save(tmp_path / "saved.safetensors")
        status, out, _ = run(*arguments, "--document-frequencies", tmp_path / "saved.safetensors")
        assert (status, json.loads(out)["corpus"]) == (0, expected.corpus)

    def test_document_frequencies_of_an_original(self, run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
        words = {"document_frequency": {("a",): 4.0, ("dog",): 2.0, ("a", "dog"): 2.0}, "ref_len": 5}
        ids = {"document_frequency": {("5",): 4.0, ("5", "0"): 2.0}, "ref_len": 5}
        arguments = ["--predictions", files[0], "--references", files[1], "--metrics", "cider_d", "--json"]
        for name, content in {"words": words, "ids": ids}.items():
            (tmp_path / f"{name}.p").write_bytes(pickle.dumps(content))
            convert("document_frequency", tmp_path / f"{name}.p", tmp_path / f"{name}.safetensors")
        status, out, _ = run(*arguments, "--document-frequencies", tmp_path / "words.safetensors")
        frequencies = DocumentFrequencies.from_counts(words["document_frequency"], 5)
        expected = self.expected(metrics=["cider_d"], document_frequencies=frequencies)
        assert (status, json.loads(out)["corpus"]) == (0, expected.corpus)
        status, out, err = run(*arguments, "--document-frequencies", tmp_path / "ids.safetensors")
        assert (status, out) == (2, "")
        assert "ids.safetensors: of token ids, which captions do not have" in err

    def test_tokenizer(self, run: Any, tmp_path: Path) -> None:
        predictions, references = {"1": "一只狗跑", "2": "两只猫"}, {"1": ["一只狗在跑"], "2": ["两只白猫"]}
        for name, captions in {"predictions": predictions, "references": references}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(captions))
        arguments = [
            "--predictions",
            tmp_path / "predictions.json",
            "--references",
            tmp_path / "references.json",
            "--json",
        ]
        status, out, _ = run(*arguments, "--tokenizer", "unicode")
        expected = CaptionMetrics(tokenizer="unicode")(list(predictions.values()), list(references.values()))
        assert (status, json.loads(out)["corpus"]) == (0, expected.corpus)
        assert json.loads(out)["signature"]["tokenizer"] == "unicode-lowercase-nopunct"
        corpus = DocumentFrequencies.from_references(list(references.values()), tokenizer="unicode")
        arguments += ["--document-frequencies", tmp_path / "references.json", "--tokenizer", "unicode"]
        signature = json.loads(run(*arguments)[1])["signature"]
        assert signature["cider_d"]["df_hash"] == corpus.content_hash[:12]
        status, _, err = run(*arguments, "--tokenizer", "jieba")
        assert status == 2 and "no tokenizer 'jieba'; expected 'ptb', 'unicode' or 'module:function'" in err

    def test_subset(self, run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
        rows = [{"image_id": name, "caption": CAPTIONS[name]} for name in (3, 1)] + [{"image_id": 99, "caption": "x"}]
        files[0].write_text(json.dumps(rows))
        arguments = ["--predictions", files[0], "--references", files[1], "--json"]
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert "99" in err and "no prediction: 2" in err
        status, out, err = run(*arguments, "--subset")
        assert status == 0
        assert "2 images scored; left out: 1 predictions without references, 1 images without prediction" in err
        expected = CaptionMetrics()([CAPTIONS[1], CAPTIONS[3]], [REFERENCES[1], REFERENCES[3]])
        assert json.loads(out)["corpus"] == expected.corpus

    def test_update_card(self, run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        inputs = ("--predictions", files[0], "--references", files[1], "--metrics", "cider_d")
        status, _, err = run(*inputs, "--update-card", tmp_path / "mine")
        assert status == 2 and "no folder of a captioner (config.json)" in err
        (tmp_path / "mine/config.json").write_text('{"model_type": "satic"}')
        status, _, err = run(*inputs, "--update-card", tmp_path / "mine")
        assert status == 0 and f"the card, with the scores: {tmp_path}/mine/README.md\n" in err
        card = ModelCard.load(tmp_path / "mine/README.md")
        (result,) = card.data.eval_results
        expected = self.expected(metrics=["cider_d"])
        assert result.metric_value == round(expected.corpus["cider_d"], 6)
        assert result.metric_args == {"signature": expected.signature_text} and expected.signature_text in card.text
        assert result.dataset_name == files[1].stem and "Scored on 3 pictures (fingerprint of the data " in card.text

    def test_report(self, run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
        for name in CAPTIONS:
            Image.new("RGB", (30, 20)).save(tmp_path / f"{name}.png")
        report = tmp_path / "report"
        status, _, err = run(
            "--predictions", files[0], "--references", files[1], "--image-root", tmp_path, "--report", report
        )
        assert status == 0 and f"hf-captioners evaluate: report: {report}/index.html\n" in err
        page = (report / "index.html").read_text("utf-8")
        assert all(caption in page for caption in CAPTIONS.values())
        rows = [json.loads(line) for line in (report / "per_image.jsonl").read_text("utf-8").splitlines()]
        assert [row["image_id"] for row in rows] == [1, 2, 3]
        assert list((report / "thumbnails").iterdir())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give --predictions with --references, or --model with --dataset"),
            (["--predictions", "p.json"], "--predictions goes with --references"),
            (["--predictions", "p.json", "--model", "m"], "give --predictions with"),
            (["--model", "m"], "--model goes with --dataset"),
            (["--predictions", "nothing.json", "--references", "r.json"], "nothing.json"),
            (
                ["--model", "m", "--dataset", "d", "--save-predictions", "/no/x.json"],
                "expected a file in a folder that",
            ),
            (["--model", "m", "--dataset", "d", "--subset"], "--subset without effect: all images of --dataset"),
            (["--model", "m", "--dataset", "d", "--per-image"], "--per-image without effect: the table has no"),
            (["--model", "m", "--dataset", "d", "--spice-java", "java"], "--spice-java without effect: --metrics has"),
            (
                ["--predictions", "p", "--references", "r", "--num-beams", "3", "--dtype", "float16"],
                "--num-beams, --dtype without effect: the captions are those of --predictions",
            ),
        ],
    )
    def test_mistakes(self, run: Any, arguments: list[str], message: str) -> None:
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert message in err and err.startswith("hf-captioners evaluate: error: ")

    def test_bad_captions_are_named(self, run: Any, files: tuple[Path, Path]) -> None:
        files[0].write_text('[{"image_id": 1, "caption": NaN}]')
        status, _, err = run("--predictions", files[0], "--references", files[1])
        assert status == 2
        assert "results.json" in err and "[0]" in err and "nan" in err.lower()

    def test_metrics_are_those_of_the_table(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main.main(["evaluate", "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert f"default: {' '.join(DEFAULT_METRICS)}" in text
        for name, metric in METRICS.items():
            needs = "" if metric.needs is None else f"; needs {metric.needs}"
            assert f"{name} {metric.summary}{needs}" in text

    def test_frequencies_that_no_metric_reads(self, run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "corpus.json").write_text('{"1": ["a dog"], "2": ["a cat"]}')
        arguments = ["--document-frequencies", tmp_path / "corpus.json", "--metrics", "bleu"]
        status, _, err = run("--predictions", files[0], "--references", files[1], *arguments)
        assert status == 2
        assert "document_frequencies are read by cider and cider_d, not by ('bleu',)" in err

    def test_clip_s_needs_a_model(self, run: Any, files: tuple[Path, Path]) -> None:
        status, _, err = run("--predictions", files[0], "--references", files[1], "--metrics", "clip_s")
        assert status == 2
        assert "--metrics clip_s needs --clip MODEL" in err


class TestModel:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Three pictures with captions in a metadata.jsonl."""
        folder = tmp_path / "pictures"
        folder.mkdir()
        rows = []
        for name, several in REFERENCES.items():
            pixels = np.random.default_rng(name).integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
            rows.append(json.dumps({"file_name": f"{name}.png", "captions": several}))
        (folder / "metadata.jsonl").write_text("\n".join(rows))
        return folder

    def test_captions_and_scores(self, run: Any, folder: Path, tiny_captioner_dir: Path, tmp_path: Path) -> None:
        results = tmp_path / "results.json"
        arguments = ["--model", tiny_captioner_dir, "--dataset", folder, "--max-new-tokens", "6"]
        status, out, _ = run(*arguments, "--json", "--save-predictions", results)
        assert status == 0
        captions = [row["caption"] for row in json.loads(results.read_text())]
        assert json.loads(out)["corpus"] == CaptionMetrics()(captions, list(REFERENCES.values())).corpus
        again = run("--predictions", results, "--references", folder / "metadata.jsonl", "--json")
        assert json.loads(again[1])["corpus"] == json.loads(out)["corpus"]

    def test_a_folder_of_splits_as_training_reads_it(
        self,
        run: Any,
        folder: Path,
        tiny_captioner_dir: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        pytest.importorskip("datasets")
        data, store = tmp_path / "my [2024] data", tmp_path / "store"
        for split in ("train", "validation"):
            shutil.copytree(folder, data / split)
        common = ["--max-new-tokens", "6", "--metrics", "bleu", "--json"]
        status, whole, _ = run("--model", tiny_captioner_dir, "--dataset", folder, *common)
        assert status == 0
        validation = ["--model", tiny_captioner_dir, "--dataset", data, "--split", "val", *common]
        assert run(*validation)[:2] == (0, whole)
        options = ["--model", tiny_captioner_dir, "--data-dir", data, "--out", store, "--dtype", "float32"]
        assert main.main(["features", *map(str, options)]) == 0
        assert json.loads(capsys.readouterr().out)["count"] == 6
        assert run(*validation, "--features", store)[:2] == (0, whole)
        captions = []
        for more in ([], ["--features", store]):
            arguments = ["--model", tiny_captioner_dir, "--data-dir", data, "--split", "validation", *more]
            assert main.main(["caption", *map(str, arguments), "--max-new-tokens", "6"]) == 0
            records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            captions.append([(record["image_id"], record["caption"]) for record in records])
        assert captions[0] == captions[1]
        monkeypatch.setattr("hf_captioners.data.archive.constants.HF_HOME", str(tmp_path / "hf"))
        archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", data)
        packed = [archive if argument == data else argument for argument in validation]
        assert run(*packed)[:2] == run(*packed, "--features", store)[:2] == (0, whole)
        assert [image_id for image_id, _ in captions[0]] == [f"validation/{name}.png" for name in (1, 2, 3)]

    @pytest.fixture
    def tars(self, folder: Path, tmp_path: Path) -> Path:
        """The pictures of the folder in two tars, captions beside them."""
        for number, (name, several) in enumerate(REFERENCES.items()):
            with tarfile.open(tmp_path / f"{number % 2}.tar", "a") as tar:
                for suffix, content in (
                    ("png", (folder / f"{name}.png").read_bytes()), ("json", json.dumps(several).encode())
                ):  # fmt: skip
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        return tmp_path / "{0..1}.tar"

    def test_tars(
        self, run: Any, folder: Path, tars: Path, tiny_captioner_dir: Path, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """As the folder of the same pictures, also by metrics that see them, in the report, and beside predictions."""
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        config = CLIPConfig(
            text_config={**TINY, "vocab_size": 40, "max_position_embeddings": 20, "bos_token_id": 2, "eos_token_id": 3},
            vision_config={**TINY, "image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
        CLIPModel(config).save_pretrained(tmp_path / "clip")
        AutoTokenizer.from_pretrained(tiny_captioner_dir).save_pretrained(tmp_path / "clip")
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
            tmp_path / "clip"
        )
        scored = ["--metrics", "bleu", "cider_d", "clip_s", "--clip", tmp_path / "clip", "--json", "--per-image"]
        results = []
        for name, source in (("folder", folder), ("tars", tars)):
            arguments = ["--model", tiny_captioner_dir, "--dataset", source, "--max-new-tokens", "6"]
            status, out, _ = run(*arguments, *scored, "--report", tmp_path / f"report_{name}")
            assert status == 0
            results.append(json.loads(out))
            assert len(list((tmp_path / f"report_{name}").rglob("*.jpg"))) == len(REFERENCES)
        assert results[0]["corpus"] == results[1]["corpus"] and results[0]["data"] == results[1]["data"]
        captioned = ["caption", str(tars), "--model", str(tiny_captioner_dir), "--max-new-tokens", "6"]
        captioned += ["--out", str(tmp_path / "captions.jsonl")]
        assert main.main(captioned) == 0
        status, out, err = run("--predictions", tmp_path / "captions.jsonl", "--references", tars, *scored)
        assert status == 0, err
        settings = results[1]["signature"].pop("captions")
        assert {name: settings[name] for name in ("num_beams", "max_new_tokens", "dtype")} == {
            "num_beams": AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).generation_config.num_beams
            or 1,
            "max_new_tokens": 6,
            "dtype": "float32",
        }
        assert json.loads(out) == results[1]  # of captions of a file nobody knows how they were decoded

    def test_without_split_the_one_to_evaluate_on_is_taken(
        self, run: Any, folder: Path, tiny_captioner_dir: Path, tmp_path: Path
    ) -> None:
        """Pictures that were trained on say nothing."""
        data = tmp_path / "data"
        common = ["--model", tiny_captioner_dir, "--dataset", data, "--max-new-tokens", "3", "--metrics", "bleu"]
        expected = [(["train"], 3, None), (["validation"], 3, "validation"), (["test"], 2, "test")]
        for splits, images, chosen in expected:
            for split in splits:
                shutil.copytree(folder, data / split)
            if chosen == "test":  # of another size
                lines = (data / "test" / "metadata.jsonl").read_text().splitlines()
                (data / "test" / "metadata.jsonl").write_text("\n".join(lines[:2]))
            status, out, err = run(*common, "--json")
            assert status == 0
            assert json.loads(out)["signature"]["images"] == images
            assert (f"; --split {chosen} is scored" in err) == (chosen is not None)
        status, out, err = run(*common, "--json", "--split", "all")
        assert json.loads(out)["signature"]["images"] == 8 and "is scored" not in err

    def test_karpathy_split(self, run: Any, folder: Path, tiny_captioner_dir: Path, tmp_path: Path) -> None:
        images = [
            {
                "filename": f"{name}.png",
                "imgid": name,
                "split": "test" if name < 3 else "val",
                "sentences": [{"raw": one} for one in several],
            }
            for name, several in REFERENCES.items()
        ]
        (tmp_path / "karpathy.json").write_text(json.dumps({"images": images}))
        status, out, _ = run(
            "--model", tiny_captioner_dir, "--dataset", tmp_path / "karpathy.json", "--image-root", folder,
            "--split", "test", "--json",
        )  # fmt: skip
        assert status == 0
        assert json.loads(out)["signature"]["images"] == 2
        arguments = ["--model", tiny_captioner_dir, "--dataset", tmp_path / "karpathy.json", "--image-root", folder]
        status, again, err = run(*arguments, "--json")
        assert (status, again) == (0, out)
        assert "karpathy.json has val, test; --split test is scored" in err

    def test_cached_features_give_the_same(
        self, run: Any, folder: Path, tiny_captioner_dir: Path, tmp_path: Path
    ) -> None:
        images = [
            {"filename": f"{name}.png", "imgid": name, "split": "test", "sentences": [{"raw": one} for one in several]}
            for name, several in REFERENCES.items()
        ]
        dataset, store = tmp_path / "karpathy.json", tmp_path / "features"
        dataset.write_text(json.dumps({"images": images}))
        options = ["--annotations", dataset, "--image-root", folder, "--out", store, "--dtype", "float32"]
        assert main.main(["features", "--model", str(tiny_captioner_dir), *map(str, options)]) == 0
        both = [
            run("--model", tiny_captioner_dir, "--dataset", dataset, "--json", *more)[1]
            for more in (["--image-root", folder], ["--features", store])
        ]
        of_images, of_features = map(json.loads, both)
        assert of_images["data"].pop("mean_size") == [30, 20] and of_features["data"].pop("mean_size") is None
        assert of_images == of_features
        dataset.write_text(json.dumps({"images": [*images, {**images[0], "imgid": 99}]}))
        status, _, err = run("--model", tiny_captioner_dir, "--dataset", dataset, "--features", store)
        assert status == 2 and "no features of 1 images, as image 99" in err

    def test_metrics_are_checked_before_pictures_are_captioned(
        self, run: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluate, "_write_captions", lambda *_: pytest.fail("captioned first"))
        status, _, err = run("--model", "captioner", "--dataset", folder, "--metrics", "pac_s")
        assert status == 2 and "--metrics pac_s needs --pac MODEL" in err

    def test_broken_picture_is_left_out(self, run: Any, folder: Path, tiny_captioner_dir: Path) -> None:
        (folder / "2.png").write_bytes(b"no picture")
        status, out, err = run("--model", tiny_captioner_dir, "--dataset", folder, "--json")
        assert status == 1
        assert json.loads(out)["signature"]["images"] == 2
        assert "2.png" in err

    def test_no_picture_at_all(self, run: Any, folder: Path, tiny_captioner_dir: Path) -> None:
        for path in folder.glob("*.png"):
            path.write_bytes(b"no picture")
        status, _, err = run("--model", tiny_captioner_dir, "--dataset", folder)
        assert status == 2
        assert "none of the pictures could be captioned" in err

    def test_missing_model(self, run: Any, folder: Path, tmp_path: Path) -> None:
        shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
        status, _, err = run("--model", tmp_path / "nothing", "--dataset", folder)
        assert status == 2
        assert "no such folder" in err
