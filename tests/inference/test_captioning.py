"""Folders of pictures: which files, in which order, and what a broken one does to the others.

Order and faults are tested with a stand-in whose caption says which picture it saw; what depends on a real model (batch
sizes, generation options) with the tiny captioner.
"""

import itertools
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.feature_extraction_utils import BatchFeature

from hf_captioners import CaptionerImageProcessor
from hf_captioners.inference.caption_files import caption_files
from hf_captioners.inference.captioning import CaptionRecord, caption_rows
from hf_captioners.inference.image_files import find_images
from hf_captioners.modeling.captioner_image_io import open_image

REFUSED, FAILING, EXHAUSTING, LOST = 201, 202, 203, 204


class ShadeProcessor:
    """Sees of a picture its shade, and refuses one of them, as processors do: with a ValueError for the whole batch."""

    image_processor = CaptionerImageProcessor()

    def __call__(self, images: list[Image.Image], return_tensors: str) -> BatchFeature:
        shades = [int(np.asarray(image)[0, 0, 0]) for image in images]
        if REFUSED in shades:
            raise ValueError("Unable to infer channel\ndimension format")
        return BatchFeature({"pixel_values": torch.tensor(shades).float()})

    def batch_decode(self, ids: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        return [f"shade {shade}" for shade in ids[:, 0].tolist()]


class ShadeModel:
    """Writes the shade down, and fails in several ways."""

    device, dtype, training = torch.device("cpu"), torch.float32, False

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.options: dict[str, Any] = {}

    def generate(self, pixel_values: torch.Tensor, **options: Any) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        self.batches.append(len(pixel_values))
        self.options = options
        if FAILING in pixel_values:
            raise RuntimeError("probability tensor contains either inf, nan or element < 0")
        if EXHAUSTING in pixel_values:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if LOST in pixel_values:
            raise NotImplementedError("no kernel")
        return pixel_values.long()[:, None]


def caption(model: Any, paths: Any, **options: Any) -> Iterator[CaptionRecord]:
    processor: Any = ShadeProcessor()
    return caption_files(model, processor, paths, **options)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Saves pictures of the given shades; a string is the content of a file that is none. Returns their paths."""

    def save(*shades: int | str) -> list[Path]:
        paths = [tmp_path / f"{index:03d}.png" for index in range(len(shades))]
        for path, shade in zip(paths, shades, strict=True):
            if isinstance(shade, str):
                path.write_text(shade)
            else:
                Image.new("L", (4, 4), shade).save(path)
        return paths

    return save


class TestOrderAndFaults:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
    @pytest.mark.parametrize("num_workers", [None, 1, 4])
    def test_one_record_per_path_in_order(self, make: Any, batch_size: int, num_workers: int | None) -> None:
        shades = [10, "text", 20, "", 30, 30, "x", "y", "z", 40]
        paths = [*make(*shades), Path("missing.jpg")]
        records = list(caption(ShadeModel(), paths, batch_size=batch_size, num_workers=num_workers))
        assert [record["image"] for record in records] == [str(path) for path in paths]
        assert [record.get("caption") for record in records] == [
            f"shade {shade}" if isinstance(shade, int) else None for shade in [*shades, None]
        ]
        for record in records:
            assert set(record) in ({"image", "caption"}, {"image", "error"})
            assert record.get("error", f"{record['image']}: ").startswith(f"{record['image']}: ")
        assert records[-1]["error"] == "missing.jpg: no such file"

    def test_batches_are_full(self, make: Any) -> None:
        model = ShadeModel()
        list(caption(model, make(*range(10)), batch_size=4))
        assert model.batches == [4, 4, 2]

    @pytest.mark.parametrize("shade", [REFUSED, FAILING])
    @pytest.mark.parametrize("batch_size", [1, 2, 4, 10])
    def test_only_the_guilty_picture_fails(self, make: Any, shade: int, batch_size: int) -> None:
        paths = make(1, 2, shade, 3, shade, "text", 4)
        records = list(caption(ShadeModel(), paths, batch_size=batch_size))
        assert [record.get("caption") for record in records] == [
            "shade 1",
            "shade 2",
            None,
            "shade 3",
            None,
            None,
            "shade 4",
        ]
        reason = "Unable to infer channel dimension format" if shade == REFUSED else "probability tensor contains"
        assert records[2]["error"].startswith(f"{paths[2]}: {reason}")
        assert "\n" not in records[2]["error"]

    def test_a_folder_of_refused_pictures(self, make: Any) -> None:
        records = list(caption(ShadeModel(), make(*[REFUSED] * 5), batch_size=2))
        assert ["error" in record for record in records] == [True] * 5

    @pytest.mark.parametrize(("shade", "error"), [(EXHAUSTING, torch.OutOfMemoryError), (LOST, NotImplementedError)])
    def test_faults_that_are_not_a_pictures(self, make: Any, shade: int, error: type[Exception]) -> None:
        records = caption(ShadeModel(), make(1, 2, shade, 3), batch_size=2)
        assert [next(records)["caption"], next(records)["caption"]] == ["shade 1", "shade 2"]
        with pytest.raises(error):
            next(records)

    def test_a_model_that_never_works_is_not_the_pictures_fault(self, make: Any) -> None:
        with pytest.raises(RuntimeError, match="probability tensor"):
            list(caption(ShadeModel(), make("text", *[FAILING] * 3), batch_size=2))

    def test_the_first_picture_may_be_the_guilty_one(self, make: Any) -> None:
        records = list(caption(ShadeModel(), make(FAILING, 1), batch_size=2))
        assert ["error" in record for record in records] == [True, False]

    def test_programming_errors_come_through(self, make: Any) -> None:
        broken = SimpleNamespace(training=False, device=torch.device("cpu"), dtype=torch.float32)
        with pytest.raises(AttributeError, match="generate"):
            list(caption(broken, make(1, 2)))

    def test_arguments(self, make: Any) -> None:
        for options in ({"batch_size": 0}, {"num_workers": 0}):
            with pytest.raises(ValueError, match="1 or more"):
                caption(ShadeModel(), [], **options)
        training = ShadeModel()
        training.training = True
        with pytest.raises(ValueError, match="eval"):
            caption(training, [])
        model = ShadeModel()
        assert [record["caption"] for record in caption(model, str(make(7)[0]), num_beams=3, max_new_tokens=4)] == [
            "shade 7"
        ]
        assert model.options == {"num_beams": 3, "max_new_tokens": 4, "num_return_sequences": 1}
        list(caption(model, make(7)))
        assert model.options == {"num_return_sequences": 1}


class TestStreaming:
    def test_nothing_to_do(self) -> None:
        assert list(caption(ShadeModel(), [])) == []

    def test_endless_paths(self, make: Any) -> None:
        good, bad = make(5, "text")
        records = caption(ShadeModel(), itertools.cycle([good, bad]), batch_size=3)
        assert [record.get("caption") for record in itertools.islice(records, 40)] == ["shade 5", None] * 20

    @pytest.mark.parametrize("shade", [50, REFUSED, FAILING])
    def test_two_batches_in_memory(self, make: Any, monkeypatch: pytest.MonkeyPatch, shade: int) -> None:
        alive = most = 0
        lock = threading.Lock()

        def forget() -> None:
            nonlocal alive
            with lock:
                alive -= 1

        def count(_: Any, row: Any) -> dict[str, Any]:
            nonlocal alive, most
            image = open_image(row["image"])
            weakref.finalize(image, forget)
            with lock:
                alive += 1
                most = max(most, alive)
            return {**row, "image": image}

        monkeypatch.setattr("hf_captioners.inference.captioning.open_row", count)
        for _ in caption(ShadeModel(), make(1, *[shade, 7] * 30), batch_size=4):
            assert alive <= 8
        assert 4 < most <= 8
        assert alive == 0

    def test_leaving_early_stops_the_threads(self, make: Any) -> None:
        before = threading.active_count()
        records = caption(ShadeModel(), make(*range(50)), batch_size=4)
        next(records)
        assert threading.active_count() > before
        records.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


def test_runs_beside_each_other_give_the_usual_turns_of_threads_back(make):
    usual = sys.getswitchinterval()
    paths = make(10, 20)
    first, second = caption(ShadeModel(), paths, batch_size=1), caption(ShadeModel(), paths, batch_size=1)
    next(first)
    next(second)
    assert sys.getswitchinterval() < usual
    list(first)
    assert sys.getswitchinterval() < usual  # the second run goes on
    second.close()
    assert sys.getswitchinterval() == pytest.approx(usual)


class TestTinyCaptioner:
    @pytest.fixture(scope="class")
    def captioner(self, tiny_captioner_dir: Path) -> tuple[Any, Any]:
        model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).eval()
        return model, AutoProcessor.from_pretrained(tiny_captioner_dir)

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """13 pictures of noise, of all shapes and several modes, and a broken one."""
        folder = tmp_path_factory.mktemp("pictures")
        rng = np.random.default_rng(0)
        for index in range(13):
            height, width = rng.integers(8, 80, 2)
            image = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
            image.convert(("RGB", "L", "RGBA", "P")[index % 4]).save(folder / f"{index:02d}.png")
        data = (folder / "04.png").read_bytes()
        (folder / "04.png").write_bytes(data[: len(data) // 2])
        return folder

    @pytest.mark.parametrize("options", [{}, {"num_beams": 1}, {"num_beams": 3, "max_new_tokens": 6}])
    def test_batch_size_does_not_change_a_caption(self, captioner: Any, folder: Path, options: dict[str, int]) -> None:
        model, processor = captioner
        runs = [
            list(caption_files(model, processor, find_images(folder), batch_size=batch_size, **options))
            for batch_size in (1, 3, 8, 50)
        ]
        assert runs[0] == runs[1] == runs[2] == runs[3]
        assert len(runs[0]) == 13
        assert [index for index, record in enumerate(runs[0]) if "error" in record] == [4]
        assert len({record["caption"] for record in runs[0] if "caption" in record}) > 1

    def test_equals_one_call_of_generate(self, captioner: Any, folder: Path) -> None:
        model, processor = captioner
        records = [record for record in caption_files(model, processor, find_images(folder)) if "caption" in record]
        pixel_values = torch.cat([processor(images=open_image(record["image"])).pixel_values for record in records])
        assert [record["caption"] for record in records] == processor.batch_decode(model.generate(pixel_values))

    def test_options_that_the_model_refuses(self, captioner: Any, folder: Path) -> None:
        model, processor = captioner
        with pytest.raises(ValueError, match="max_position_embeddings"):
            list(caption_files(model, processor, find_images(folder), max_new_tokens=1000))


class TestRows:
    """Captions for cached features equal those for the images they were computed from."""

    @pytest.fixture(scope="class")
    def captioner(self, tiny_captioner_dir):
        model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).eval()
        return model, AutoProcessor.from_pretrained(tiny_captioner_dir)

    @pytest.fixture(scope="class")
    def pictures(self):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (5, 32, 32, 3), generator=generator, dtype=torch.uint8)
        return [Image.fromarray(one.numpy()) for one in noise]

    @pytest.fixture(scope="class")
    def rows(self, captioner, pictures):
        model, processor = captioner
        with torch.no_grad():
            features = model.extract_image_features(**processor(images=pictures))
        return [{"image_id": 10 + index, "image_features": one} for index, one in enumerate(features)]

    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    def test_equal_those_of_the_pictures(self, captioner, pictures, rows, batch_size):
        model, processor = captioner
        expected = processor.batch_decode(model.generate(**processor(images=pictures), num_beams=3))
        records = list(caption_rows(model, processor, iter(rows), batch_size, num_beams=3))
        assert records == [{"image_id": 10 + i, "caption": caption} for i, caption in enumerate(expected)]
        assert len(set(expected)) > 1

    def test_several_captions_each(self, captioner, pictures, rows):
        model, processor = captioner
        ids = model.generate(**processor(images=pictures), num_beams=3, num_return_sequences=3)
        expected = processor.batch_decode(ids)
        records = list(caption_rows(model, processor, rows, 2, num_beams=3, num_return_sequences=3))
        assert [record["captions"] for record in records] == [expected[i : i + 3] for i in range(0, 15, 3)]

    def test_training_mode_is_refused(self, captioner, rows):
        model, processor = captioner
        model.train()
        try:
            with pytest.raises(ValueError, match=r"call model\.eval"):
                next(caption_rows(model, processor, rows))
        finally:
            model.eval()

    def test_pictures_and_files_of_rows(self, captioner, pictures, rows, tmp_path):
        model, processor = captioner
        expected = [record["caption"] for record in caption_rows(model, processor, rows)]
        pictures[1].save(tmp_path / "one.png")
        (tmp_path / "broken.png").write_bytes(b"no picture")
        mixed = [
            {"image_id": 0, "image": pictures[0]},
            {"image_id": 1, "image": {"path": str(tmp_path / "one.png"), "bytes": None}},
            {"image": tmp_path / "broken.png", "captions": ["a"]},
        ]
        first, second, third = caption_rows(model, processor, mixed, batch_size=3)
        assert first == {"image_id": 0, "caption": expected[0]}
        assert second == {"image_id": 1, "image": str(tmp_path / "one.png"), "caption": expected[1]}
        assert third["image"] == str(tmp_path / "broken.png") and third["error"].startswith(third["image"])

    def test_features_that_the_model_does_not_take(self, captioner, rows):
        model, processor = captioner
        wrong = {"image_id": 7, "image_features": torch.zeros(3, 5)}
        with pytest.raises(ValueError, match="image_features must be"):  # nothing has worked yet
            list(caption_rows(model, processor, [wrong]))
        records = list(caption_rows(model, processor, [*rows[:2], wrong], batch_size=1))
        assert records[2]["image_id"] == 7 and "image_features must be" in records[2]["error"]
