"""The entry points of the image-to-text pipeline, and what registering leaves alone."""

import importlib
import os
import subprocess
import sys

import datasets
import pytest
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers import pipelines as transformers_pipelines

import hf_captioners
from hf_captioners import ExpansionNetV2Config, ExpansionNetV2Processor, ImageToTextPipeline
from hf_captioners.modeling.modeling_expansionnet_v2 import ExpansionNetV2ForImageCaptioning


@pytest.fixture(scope="module")
def picture():
    return Image.effect_mandelbrot((50, 50), (-2, -1.5, 1, 1.5), 50)


@pytest.fixture(scope="module")
def caption(tiny_captioner_dir, picture):
    model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).eval()
    processor = AutoProcessor.from_pretrained(tiny_captioner_dir)
    return processor.decode(model.generate(**processor(images=picture))[0])


class TestEntryPoints:
    @pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
    def test_hf_captioners(self, tiny_captioner_dir, picture, caption, kind):
        captioner = hf_captioners.pipeline("image-to-text", model=kind(tiny_captioner_dir))
        assert type(captioner) is ImageToTextPipeline
        assert captioner.task == "image-to-text"
        assert captioner(picture) == [{"generated_text": caption}]
        assert hf_captioners.pipeline(model=kind(tiny_captioner_dir))(picture) == [{"generated_text": caption}]

    def test_transformers(self, tiny_captioner_dir, picture, caption):
        captioner = transformers.pipeline("image-to-text", model=str(tiny_captioner_dir))
        assert type(captioner) is ImageToTextPipeline
        assert captioner.task == "image-to-text"
        assert captioner(picture) == [{"generated_text": caption}]

    @pytest.mark.parametrize("entry_point", [hf_captioners.pipeline, transformers.pipeline])
    def test_a_model_and_its_processor(self, tiny_captioner_dir, picture, caption, entry_point):
        model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir)
        processor = AutoProcessor.from_pretrained(tiny_captioner_dir)
        captioner = entry_point("image-to-text", model=model, processor=processor)
        assert captioner(picture) == [{"generated_text": caption}]

    def test_a_column_of_a_data_set(self, tiny_captioner_dir, picture, caption):
        rows = datasets.Dataset.from_dict({"image": [picture, picture]}, datasets.Features({"image": datasets.Image()}))
        captioner = hf_captioners.pipeline(model=str(tiny_captioner_dir))
        assert captioner(rows["image"]) == captioner(list(rows["image"])) == [[{"generated_text": caption}]] * 2
        assert captioner((picture,)) == [[{"generated_text": caption}]]
        assert captioner(rows["image"][:0]) == []

    def test_auto_classes(self, tiny_captioner_dir):
        assert type(AutoConfig.from_pretrained(tiny_captioner_dir)) is ExpansionNetV2Config
        assert type(AutoProcessor.from_pretrained(tiny_captioner_dir)) is ExpansionNetV2Processor
        for auto_class in (AutoModel, AutoModelForImageTextToText):
            assert type(auto_class.from_pretrained(tiny_captioner_dir)) is ExpansionNetV2ForImageCaptioning

    def test_the_image_text_to_text_pipeline_of_transformers(self, tiny_captioner_dir, picture, caption):
        captioner = transformers.pipeline("image-text-to-text", model=str(tiny_captioner_dir))
        assert type(captioner) is transformers.ImageTextToTextPipeline
        (empty,) = captioner(picture, text="")
        assert empty["generated_text"] == caption
        (begun,) = captioner(picture, text="two small")
        assert begun["input_text"] == "two small"
        assert begun["generated_text"].startswith("two small")


WITHOUT_NETWORK = """
import socket, sys

def refuse(*address, **options):
    sys.exit(f"a connection to {address}")

socket.socket.connect = socket.getaddrinfo = refuse
import hf_captioners
import transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = sys.argv[1]
picture = Image.new("RGB", (50, 50), "red")
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
caption = processor.decode(model.generate(**processor(images=picture))[0])
for task in "image-to-text", None:
    captioner = transformers.pipeline(task, model=folder)
    assert type(captioner) is hf_captioners.ImageToTextPipeline
    assert captioner(picture) == [{"generated_text": caption}]
"""


def test_a_folder_needs_no_network(tiny_captioner_dir):
    """In a process that may ask the Hub and must not: nothing of a folder is looked up there, not even its task."""
    online = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    command = [sys.executable, "-c", WITHOUT_NETWORK, str(tiny_captioner_dir)]
    run = subprocess.run(command, capture_output=True, text=True, env=online)
    assert run.returncode == 0, run.stderr


class TestErrors:
    def test_another_task(self):
        with pytest.raises(ValueError, match=r"knows the task 'image-to-text', not 'fill-mask'"):
            hf_captioners.pipeline("fill-mask", model="somewhere")

    def test_no_model(self):
        with pytest.raises(ValueError, match="give model=: a folder or Hub name"):
            hf_captioners.pipeline("image-to-text")

    def test_a_folder_that_is_no_captioner_has_no_task(self, tmp_path):
        transformers.CLIPConfig().save_pretrained(tmp_path)
        with pytest.raises(RuntimeError, match="infer task"):
            transformers.pipeline(model=str(tmp_path))

    def test_a_model_without_its_processor(self, tiny_captioner_dir):
        model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir)
        with pytest.raises(Exception, match="processor"):
            hf_captioners.pipeline(model=model)


class TestRegistration:
    def test_again_changes_nothing(self, tiny_captioner_dir, picture, caption):
        before = dict(transformers_pipelines.PIPELINE_REGISTRY.supported_tasks)
        rename = transformers_pipelines._resolve_deprecated_task
        hf_captioners.register()
        importlib.reload(hf_captioners)
        importlib.reload(hf_captioners.pipelines).register()
        assert before == transformers_pipelines.PIPELINE_REGISTRY.supported_tasks
        assert transformers_pipelines._resolve_deprecated_task is rename
        captioner = transformers.pipeline("image-to-text", model=str(tiny_captioner_dir))
        assert captioner(picture) == [{"generated_text": caption}]

    def test_other_tasks_resolve_as_before(self):
        for task in ("image-text-to-text", "fill-mask", "sentiment-analysis"):
            assert transformers_pipelines._resolve_deprecated_task(task) == task
        assert transformers_pipelines.check_task("sentiment-analysis")[0] == "text-classification"
        assert transformers_pipelines.REMOVED_TASKS
        for task in transformers_pipelines.REMOVED_TASKS:
            with pytest.raises(KeyError, match=f"The task {task} has been removed"):
                transformers_pipelines.check_task(task)
        with pytest.raises(KeyError, match="translation_en_to_fr has been removed"):
            transformers_pipelines.check_task("translation_en_to_fr")
        with pytest.raises(KeyError, match="Unknown task"):
            transformers_pipelines.check_task("no-such-task")

    def test_the_task_is_listed(self):
        assert "image-to-text" in transformers_pipelines.get_supported_tasks()
        assert transformers_pipelines.check_task("image-to-text")[1]["impl"] is ImageToTextPipeline
