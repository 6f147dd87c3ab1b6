"""The report of an evaluation: right numbers, a sound page whatever the captions, and a folder whole or not at all."""

from __future__ import annotations

import base64
import json
import re
import statistics
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from hf_captioners.data.captions.predictions import image_paths, match, read_predictions, read_references
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.scores import Scores
from hf_captioners.reports import score_report as module
from hf_captioners.reports.score_report import check_report_folder, write_report

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "&lt;b&gt; &amp; </p></li></body>",
    "$title ${caption} $$ {0} %s",
    "a\x00b\x1b[31mc\x85d\ufffe",
    "\u202eright to left\u2028line\u2029end",
    "犬が走る \U0001f600 é",
    "w" * 3000,
    "   ",
]
# what HTML cannot hold is replaced; the parser below joins text as it stands
SHOWN = [text if index != 4 else "a\ufffdb\ufffd[31mc\ufffdd\ufffd" for index, text in enumerate(HOSTILE)]
SHOWN[-1] = "(empty caption)"

VOID = {"meta", "img", "source", "br", "link"}


class Page(HTMLParser):
    """Content of a page; fails where tags are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []  # tag or its class, and all text inside
        self.open: list[tuple[str, str, list[str]]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("class") or tag, []))

    def handle_endtag(self, tag: str) -> None:
        opened, name, texts = self.open.pop()
        assert opened == tag
        self.texts.append((name, "".join(texts)))

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, name: str) -> list[str]:
        return [text for other, text in self.texts if other == name]

    def sections(self) -> dict[str, list[str]]:
        """Headline -> image ids, in order."""
        found: dict[str, list[str]] = {}
        for name, text in self.texts:
            if name == "h2":
                found[text] = []
            elif name == "h3":
                found[list(found)[-1]].append(text.split(" · ")[0].removeprefix("Image "))
        return found


def example(values: list[float], **others: list[float]) -> tuple[Scores, list[int], list[str], list[list[str]]]:
    """Scores and captions of images 100, 101, ..."""
    per_image = {"cider_d": np.array(values), **{name: np.array(several) for name, several in others.items()}}
    corpus = {name: float(several.mean()) for name, several in per_image.items()}
    ids = [100 + index for index in range(len(values))]
    return Scores(corpus, per_image), ids, [f"caption {one}" for one in ids], [[f"reference {one}"] for one in ids]


def report(folder: Path, values: list[float], **options: Any) -> Page:
    return Page(write_report(folder, *example(values), **{"signature": {}, **options}))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def pictures(tmp_path: Path) -> dict[int, Path]:
    """Pictures of images 100 (wide), 101 (small, transparent), 102 (cut off); 103 has no file."""
    paths = {one: tmp_path / f"picture {one}.png" for one in range(100, 104)}
    Image.new("RGB", (1200, 300), "red").save(paths[100])
    Image.new("RGBA", (20, 30), (0, 0, 0, 0)).save(paths[101])
    paths[102].write_bytes(paths[100].read_bytes()[:80])
    return paths


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take most of a report's time, and are part of the page elsewhere."""
    monkeypatch.setattr(module, "_charts", lambda *_: "")


class TestNumbers:
    def test_scores_json(self, tmp_path: Path) -> None:
        signature = {"tokenizer": "ptb", "cider": {"n": 4, "eos": False}, "metrics": ["a", "b"], "note": None}
        scores, *captions = example([0.1, 1 / 3], clip_s=[0.7, 0.8], length=[3, 4])
        write_report(tmp_path / "out", scores, *captions, signature=signature)
        assert json.loads((tmp_path / "out" / "scores.json").read_text("utf-8")) == {
            "corpus": {"cider_d": (0.1 + 1 / 3) / 2, "clip_s": 0.75, "length": 3.5},
            "scale": 1,
            "scale_in_papers": {"cider_d": 100, "clip_s": 1, "length": 1},
            "num_images": 2,
            "signature": signature,
        }

    def test_per_image(self, tmp_path: Path) -> None:
        scores, ids, captions, references = example([0.1, 1 / 3], bleu_1=[1, 0.5])
        captions, references, ids = ["", "犬\u2028"], [["a", "b"], ["c"]], [7, "ü.jpg"]
        write_report(tmp_path / "out", scores, ids, captions, references, signature={})
        path = tmp_path / "out" / "per_image.jsonl"
        assert [json.loads(line) for line in path.read_text("utf-8").removesuffix("\n").split("\n")] == [
            {"image_id": 7, "caption": "", "references": ["a", "b"], "cider_d": 0.1, "bleu_1": 1.0},
            {"image_id": "ü.jpg", "caption": "犬\u2028", "references": ["c"], "cider_d": 1 / 3, "bleu_1": 0.5},
        ]
        assert "犬" in path.read_text("utf-8")
        assert read_predictions(path).captions == {7: "", "ü.jpg": "犬\u2028"}  # it can be scored again

    def test_table_of_the_page(self, tmp_path: Path) -> None:
        scores, *captions = example([1.0, 1.5434], clip_s=[0.7, 0.8222], mean_length=[9, 10])
        page = Page(write_report(tmp_path / "out", scores, *captions, signature={"cider": {"n": 4}, "split": "test"}))
        rows = page.all("tr")
        assert "CIDEr-D1.2717100127.2" in rows
        assert "CLIP-S0.761110.7611" in rows
        assert "mean length9.500019.5" in rows
        assert rows[-2:] == ["cider.n4", "splittest"]
        assert "CIDEr-D154.3CLIP-S0.8222mean length10" in page.all("scores")

    def test_spread(self, tmp_path: Path) -> None:
        values = [0.5, 0.01, 2.25, 1.0, 0.75, 0.125]
        (text,) = report(tmp_path / "out", values).all("figcaption")
        quartiles = [100 * value for value in statistics.quantiles(values, method="inclusive")]
        expected = [1, *quartiles, 225, 100 * statistics.mean(values)]
        numbers = re.findall(r"(?:lowest|quartile|median|highest|mean) ([0-9.]*[0-9])", text)
        assert [float(number) for number in numbers] == pytest.approx(expected, rel=1e-3)

    def test_charts_show_the_scores(self, tmp_path: Path) -> None:
        scores, *captions = example([1.0, 1.5434], mean_length=[900, 1000])
        page = Page(write_report(tmp_path / "out", scores, *captions, signature={}))
        alt = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
        assert alt == ["Corpus scores × 100: CIDEr-D 127.2", "Histogram of CIDEr-D × 100, in words below"]
        sources = [
            attributes.get("srcset") or attributes["src"] for tag, attributes in page.tags if tag in ("img", "source")
        ]
        assert len(set(sources)) == 4  # both in dark and in light ink
        for source in sources:
            kind, content = str(source).split(",")
            assert kind == "data:image/svg+xml;base64"
            assert ElementTree.fromstring(base64.b64decode(content)).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.usefixtures("no_charts")
class TestImages:
    @pytest.mark.parametrize(
        ("max_images", "lowest", "highest"),
        [
            (0, [], []),
            (1, [103], []),
            (2, [103], [101]),
            (4, [103, 100], [101, 104]),
            (5, [103, 100, 102], [101, 104]),
            (200, [103, 100, 102], [101, 104]),
        ],
    )
    def test_worst_first_and_best_first(self, tmp_path: Path, max_images: int, lowest: list, highest: list) -> None:
        page = report(tmp_path / "out", [0.2, 0.9, 0.3, 0.1, 0.8], max_images=max_images)
        parts = {"The lowest CIDEr-D": lowest, "The highest CIDEr-D": highest}
        assert page.sections() == {head: [str(one) for one in ids] for head, ids in parts.items() if ids}

    def test_equal_scores_show_every_image_once(self, tmp_path: Path) -> None:
        sections = report(tmp_path / "out", [0.5] * 7).sections()
        assert sections == {
            "The lowest CIDEr-D": ["100", "101", "102", "103"],
            "The highest CIDEr-D": ["106", "105", "104"],
        }

    def test_place_among_all(self, tmp_path: Path) -> None:
        page = report(tmp_path / "out", [0.2, 0.9, 0.3])
        assert [text.split(" · ")[1] for text in page.all("h3")] == [
            "CIDEr-D 20.0, lowest 1 of 3",
            "CIDEr-D 30.0, lowest 2 of 3",
            "CIDEr-D 90.0, highest 1 of 3",
        ]

    def test_sorted_by_another_score(self, tmp_path: Path) -> None:
        scores, *captions = example([0.1, 0.2, 0.3], bleu_4=[0.3, 0.1, 0.2])
        page = Page(write_report(tmp_path / "a", scores, *captions, signature={}, sort_by="bleu_4"))
        assert page.sections() == {"The lowest BLEU-4": ["101", "102"], "The highest BLEU-4": ["100"]}
        without = Scores({}, {"spice": np.array([0.2, 0.1, 0.3])})
        page = Page(write_report(tmp_path / "b", without, *captions, signature={}))
        assert page.sections() == {"The lowest SPICE": ["101", "100"], "The highest SPICE": ["102"]}

    def test_thumbnails(self, tmp_path: Path, pictures: dict[int, Path], caplog: pytest.LogCaptureFixture) -> None:
        page = report(tmp_path / "out", [0.1, 0.2, 0.3, 0.4, 0.5], images=pictures)
        shown = {attributes["alt"]: attributes["src"] for tag, attributes in page.tags if tag == "img"}
        assert shown.pop("Picture of image 100") == "thumbnails/000000.jpg"
        assert shown.pop("Picture of image 101") == "thumbnails/000001.jpg"
        assert names(tmp_path / "out" / "thumbnails") == ["000000.jpg", "000001.jpg"]
        with Image.open(tmp_path / "out" / "thumbnails" / "000000.jpg") as image:
            assert (image.format, image.size) == ("JPEG", (400, 100))
        missing = page.all("missing")
        assert missing[0].startswith(f"{pictures[102]}: broken or truncated picture")
        assert missing[1:] == ["no picture given", f"{pictures[103]}: no such file"]
        assert str(pictures[102]) in caplog.text

    def test_only_pictures_on_the_page_are_opened(self, tmp_path: Path, pictures: dict[int, Path]) -> None:
        pictures[102].unlink()
        report(tmp_path / "out", [0.1, 0.5, 0.3], images=pictures, max_images=2)
        assert names(tmp_path / "out" / "thumbnails") == ["000000.jpg", "000001.jpg"]

    def test_nothing_is_fetched(self, tmp_path: Path) -> None:
        page = report(tmp_path / "out", [0.1], images={100: "https://example.invalid/a.jpg"})
        assert page.all("missing")[0].endswith("no such file")


class TestPage:
    def test_captions_cannot_break_it(self, tmp_path: Path) -> None:
        scores, _, _, _ = example([index / 10 for index in range(len(HOSTILE))])
        scores.per_image[HOSTILE[1]] = scores.per_image["cider_d"]
        scores.corpus[HOSTILE[1]] = 0.5
        signature = {HOSTILE[0]: HOSTILE[1], "a": {HOSTILE[2]: [HOSTILE[3]]}}
        references = [[*HOSTILE[:-1], "x", text] for text in HOSTILE]
        path = write_report(
            tmp_path / "out",
            scores,
            HOSTILE,
            HOSTILE,
            references,
            signature=signature,
            title=HOSTILE[0],
            sort_by="cider_d",
        )
        page = Page(path)
        middle = -(-len(HOSTILE) // 2)
        assert page.all("caption")[2:] == SHOWN[:middle] + SHOWN[middle:][::-1]
        assert page.all("h1") == page.all("title") == [HOSTILE[0]]
        assert f"{HOSTILE[0]}{HOSTILE[1]}" in page.all("tr")
        assert page.all("li")[0] == HOSTILE[0]
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"script", "iframe", "object", "link", "base", "form"}
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]

    def test_many_references_are_folded(self, tmp_path: Path) -> None:
        scores, ids, captions, _ = example([0.1])
        page = Page(write_report(tmp_path / "out", scores, ids, captions, [list("abcdefgh")], signature={}))
        assert page.all("summary") == ["3 more"]
        assert page.all("ul") == ["abcde", "fgh"]

    def test_needs_nothing_from_outside(self, tmp_path: Path, pictures: dict[int, Path]) -> None:
        page = report(tmp_path / "out", [0.1, 0.2], images=pictures)
        links = [
            str(attributes[name])
            for _, attributes in page.tags
            for name in ("src", "href", "srcset")
            if name in attributes
        ]
        beside = [link for link in links if not link.startswith("data:image/svg+xml;base64,")]
        assert sorted(beside) == ["per_image.jsonl", "scores.json", "thumbnails/000000.jpg", "thumbnails/000001.jpg"]
        assert all((tmp_path / "out" / link).is_file() for link in beside)
        text = (tmp_path / "out" / "index.html").read_text("utf-8")
        assert "http" not in re.sub(r"base64,[^\"]*", "", text)
        assert "@import" not in text and "url(" not in text

    def test_is_fit_for_all_readers(self, tmp_path: Path, pictures: dict[int, Path]) -> None:
        page = report(tmp_path / "out", [0.1, 0.2], images=pictures)
        assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
        assert ("html", {"lang": "en"}) in page.tags
        assert ("meta", {"charset": "utf-8"}) in page.tags
        assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
        assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
        assert "prefers-color-scheme: dark" in "".join(page.all("style"))

    def test_is_the_same_every_time(self, tmp_path: Path, pictures: dict[int, Path]) -> None:
        for name in ("a", "b"):
            report(tmp_path / name, [0.1, 0.2], images=pictures, signature={"x": 1})
        assert names(tmp_path / "a") == names(tmp_path / "b")
        for name in names(tmp_path / "a"):
            if (tmp_path / "a" / name).is_file():
                assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_without_matplotlib(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        page = report(tmp_path / "out", [0.1, 0.2])
        assert "No charts here: matplotlib is not installed (the extra 'plot')." in page.all("note")[0]
        assert "median 15" in page.all("note")[0]
        assert not [tag for tag, _ in page.tags if tag == "img"]
        assert 'pip install -e ".[plot]"' in caplog.text

    def test_a_name_that_is_not_utf8(self, tmp_path: Path) -> None:
        scores, _, captions, references = example([0.1])
        path = write_report(tmp_path / "out", scores, ["\udcff.jpg"], captions, references, signature={})
        assert Page(path).sections() == {"The lowest CIDEr-D": ["\ufffd.jpg"]}
        assert json.loads((tmp_path / "out" / "per_image.jsonl").read_text("utf-8"))["image_id"] == "\udcff.jpg"


@pytest.mark.usefixtures("no_charts")
class TestFolder:
    def test_replaces_an_earlier_report_whole(self, tmp_path: Path, pictures: dict[int, Path]) -> None:
        out = tmp_path / "reports" / "out"
        report(out, [0.1, 0.2], images=pictures)
        assert "thumbnails/000001.jpg" in names(out)
        report(out, [0.1])
        assert names(out) == ["index.html", "per_image.jsonl", "scores.json"]
        assert names(tmp_path / "reports") == ["out", *(f"out/{name}" for name in names(out))]

    def test_an_empty_folder_and_a_link_to_one(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "ordinary").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        report(tmp_path / "link", [0.1])
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "index.html").is_file()
        assert (tmp_path / "real").stat().st_mode == (tmp_path / "ordinary").stat().st_mode

    @pytest.mark.parametrize(
        "name", ["notes.txt", "index.html", "thumbnails/mine.png", "thumbnails/more/0.jpg", ".git/x"]
    )
    def test_what_is_not_of_a_report_is_never_replaced(self, tmp_path: Path, name: str) -> None:
        out = tmp_path / "out"
        if name != "index.html":
            report(out, [0.1])
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        before = names(tmp_path)
        for attempt in (check_report_folder, lambda folder: report(folder, [0.2])):
            with pytest.raises(
                FileExistsError, match=rf"out: holds '{name.split('/')[0]}', which is not of an earlier"
            ):
                attempt(out)
        assert names(tmp_path) == before
        assert (out / name).read_text() == "mine"

    def test_a_file_is_no_folder(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(FileExistsError, match=r"out: is not a folder"):
            report(tmp_path / "out", [0.1])

    @pytest.mark.parametrize("earlier", [False, True])
    def test_nothing_changes_after_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
    ) -> None:
        if earlier:
            report(tmp_path / "out", [0.1])
        before = names(tmp_path)
        monkeypatch.setattr(module, "_write_per_image", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            report(tmp_path / "out", [0.2])
        assert names(tmp_path) == before

    def test_what_a_killed_run_left_is_removed_or_brought_back(self, tmp_path: Path) -> None:
        report(tmp_path / "out", [0.1])
        (tmp_path / "out").rename(tmp_path / f"out.old-{'0' * 32}")
        (tmp_path / f".out.{'0' * 32}.new").mkdir()
        check_report_folder(tmp_path / "out")
        assert (tmp_path / "out" / "index.html").is_file()
        report(tmp_path / "out", [0.2])
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_the_earlier_report_comes_back_when_the_new_one_cannot_take_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        report(tmp_path / "out", [0.1])
        before = (tmp_path / "out" / "per_image.jsonl").read_bytes()
        rename = Path.rename

        def refuse(path: Path, target: Path) -> Path:
            if path.suffix == ".new":
                raise OSError("disk full")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="disk full"):
            report(tmp_path / "out", [0.2])
        assert (tmp_path / "out" / "per_image.jsonl").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestMistakes:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"scores": Scores({"a": float("nan")}, {"a": np.zeros(2)})}, r"scores\.corpus\['a'\] is nan"),
            ({"scores": Scores({}, {"a": np.array([0, np.inf])})}, r"scores\.per_image\['a'\]: image 101 has inf"),
            ({"scores": Scores({}, {"a": np.zeros(3)})}, r"scores\.per_image\['a'\] has shape \(3,\), expected \(2,\)"),
            ({"scores": Scores({}, {"caption": np.zeros(2)})}, r"a score named 'caption'"),
            ({"scores": Scores({"a": 1.0}, {})}, r"scores\.per_image is empty"),
            ({"image_ids": [1, 1.5]}, r"image_ids has 1\.5"),
            ({"image_ids": [1, 1]}, r"image 1: occurs twice"),
            ({"predictions": ["x", None]}, r"image 101: the prediction is None"),
            ({"references": [["x"], []]}, r"image 101: no references"),
            ({"signature": {"a": {"b": Path("x")}}}, r"signature\['a'\] is .* expected what JSON can hold"),
            ({"signature": {"a": float("nan")}}, r"signature\['a'\] is nan"),
            ({"sort_by": "meteor"}, r"sort_by is 'meteor', expected one of cider_d"),
            ({"max_images": -1}, r"max_images is -1"),
        ],
        ids=[
            "NaN corpus", "inf image", "shape", "reserved name", "no images", "float id", "id twice", "no text",
            "no references", "path in signature", "NaN in signature", "no such score", "negative",
        ],
    )  # fmt: skip
    def test_are_refused_before_anything_is_written(self, tmp_path: Path, change: dict, message: str) -> None:
        scores, ids, predictions, references = example([0.1, 0.2])
        given = {
            "scores": scores,
            "image_ids": ids,
            "predictions": predictions,
            "references": references,
            "signature": {},
        }
        with pytest.raises(ValueError, match=message):
            write_report(tmp_path / "out", **{**given, **change})
        assert names(tmp_path) == []

    def test_captions_raise_what_metrics_raise(self, tmp_path: Path) -> None:
        scores, ids, predictions, references = example([0.1, 0.2])
        with pytest.raises(MetricInputError):
            write_report(tmp_path / "out", scores, ids, predictions[:1], references, signature={})


def test_real_pictures(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "coco_mini"
    references = read_references(root / "dataset_karpathy.json", "val+test")
    everything = read_predictions(shared_data / "coco_captions" / "results_satic_val2014.json.gz")
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": one, "caption": everything.captions[one]} for one in references.captions]))
    predictions = read_predictions(path)
    ids, captions, several = match(predictions, references)
    lengths = np.array([len(caption) for caption in captions]) / 100
    page = Page(
        write_report(
            tmp_path / "out",
            Scores({"bleu_1": 0.5}, {"bleu_1": lengths}),
            ids,
            captions,
            several,
            signature={},
            images=image_paths(predictions, references, ids, root / "images"),
            max_images=20,
        )
    )
    lowest, highest = page.sections().values()
    assert len(lowest) == len(highest) == 10 and page.all("missing") == []
    assert len(list((tmp_path / "out" / "thumbnails").iterdir())) == 20
    by_length = sorted(captions, key=len)
    assert page.all("caption")[2] == by_length[0] and len(page.all("caption")[12]) == len(by_length[-1])
