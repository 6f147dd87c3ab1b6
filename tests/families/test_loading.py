"""Captioners of other people: tiny ones of transformers, against what transformers alone makes of them."""

import json
import pickle
import re

import pytest
import torch
from contracts.reward_policies import SIDE, TOKENIZER, tiny_policy
from contracts.tiny_families import KINDS, QWEN_IMAGES, QWEN_TEMPLATE, tiny_images, tiny_model, words_tokenizer
from PIL import Image
from transformers import (
    BlipForImageTextRetrieval,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.utils import is_bitsandbytes_available, is_torchvision_available

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.families import loading
from hf_captioners.families.loading import check_can_caption, load_captioner_model, load_processor, quantized
from hf_captioners.families.prompt import ask
from hf_captioners.inference.caption_files import caption_files

LONGEST = 10


def save_blip(folder):
    KINDS["blip"].processor().save_pretrained(folder)
    return tiny_model("blip")


def save_git(folder):
    KINDS["git"].processor().save_pretrained(folder)
    return tiny_model("git")


def save_blip_parts(folder):
    """An image processor and a tokenizer side by side, without a processor class."""
    processor = KINDS["blip"].processor()
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return tiny_model("blip")


def save_pair(folder):
    TOKENIZER.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return tiny_policy("vision-encoder-decoder")


@pytest.fixture(params=[save_blip, save_git, save_blip_parts, save_pair])
def foreign(request, tmp_path):
    """A folder as transformers leaves it, its model, its tokenizer."""
    torch.manual_seed(0)
    model = request.param(tmp_path / "captioner").eval()
    model.generation_config.max_length = LONGEST
    model.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner", model, TOKENIZER if request.param is save_pair else words_tokenizer(None)


@pytest.fixture()
def paths(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(4)]
    for path, colour in zip(paths, ("red", "lime", "blue", "white"), strict=True):
        Image.new("RGB", (SIDE, SIDE), colour).save(path)
    return paths


def alone(folder, model, tokenizer, paths):
    """Every picture's caption alone, by transformers: the words up to the first end token."""
    processor = load_processor(model, folder)
    captions = []
    for path in paths:
        ids = model.generate(**processor(images=[Image.open(path)], return_tensors="pt"))[0].tolist()[1:]
        ends = [index for index, token in enumerate(ids) if token == model.generation_config.eos_token_id]
        words = tokenizer.convert_ids_to_tokens(ids[: ends[0]] if ends else ids)
        captions.append(" ".join(word for word in words if word and word not in tokenizer.all_special_tokens))
    return captions


def test_captions_have_no_special_tokens_at_any_batch_size(foreign, paths, capfd):
    folder, model, tokenizer = foreign
    expected = alone(folder, model, tokenizer, paths)
    assert len(set(expected)) > 1
    processor = load_processor(model, folder)
    for size in (1, 4):
        assert [record["caption"] for record in caption_files(model, processor, paths, size)] == expected
    captioner = hf_captioners.pipeline(model=str(folder))
    assert [one[0]["generated_text"] for one in captioner(paths, batch_size=2)] == expected
    assert main(["caption", *paths, "--model", str(folder), "--batch-size", "3"]) == 0
    assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == expected


def test_other_classes_are_refused_by_name(tiny_captioner_dir, tmp_path):
    ours = hf_captioners.ExpansionNetV2ForImageCaptioning.from_pretrained(tiny_captioner_dir)
    check_can_caption(ours, "mine")
    small = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20, decoder_start_token_id=0)
    with pytest.raises(
        ValueError, match=r"theirs: a T5ForConditionalGeneration is a text model, which sees no images; "
    ):
        check_can_caption(T5ForConditionalGeneration(small), "theirs")


def test_what_is_no_captioner_is_told_apart(tmp_path):
    small = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20, decoder_start_token_id=0)
    T5ForConditionalGeneration(small).save_pretrained(tmp_path / "text")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTModel(ViTConfig(image_size=8, patch_size=8, **sizes)).save_pretrained(tmp_path / "vision")
    with pytest.raises(ValueError, match="text: is a t5, a text model, which sees no images; captioners are the capt"):
        load_captioner_model(tmp_path / "text")
    with pytest.raises(ValueError, match="vision: is a vit, which is no captioner; a vision model is the --backbone"):
        load_captioner_model(tmp_path / "vision")


def test_a_prompt_is_saved_with_the_captioner(tmp_path, paths, capfd):
    model = save_blip(tmp_path / "blip")
    ask(model, "photo of")
    model.save_pretrained(tmp_path / "blip")
    again = load_captioner_model(tmp_path / "blip")
    assert again.config.captioning_prompt == "photo of"
    plain = tiny_model("blip")
    processor = KINDS["blip"].processor()
    asked = [record["caption"] for record in caption_files(again.eval(), processor, paths, max_new_tokens=4)]
    ids = {"input_ids": torch.tensor([[0, *processor.tokenizer("photo of", add_special_tokens=False).input_ids, 0]])}
    for path, caption in zip(paths, asked, strict=True):
        pixels = processor(images=Image.open(path), return_tensors="pt")
        written = plain.generate(**pixels, input_ids=ids["input_ids"].clone(), max_new_tokens=4)[0]
        assert processor.tokenizer.decode(written, skip_special_tokens=True).strip() == f"photo of {caption}".strip()
    plain.save_pretrained(tmp_path / "blip")
    assert (
        main(["caption", *paths, "--model", str(tmp_path / "blip"), "--prompt", "photo of", "--max-new-tokens", "4"])
        == 0
    )
    assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == asked


def test_a_captioner_that_is_asked_nothing(tmp_path, paths, capsys):
    model = save_pair(tmp_path / "pair")
    with pytest.raises(ValueError, match="prompt 'photo of': a VisionEncoderDecoderModel is asked nothing"):
        ask(model, "photo of")
    model.save_pretrained(tmp_path / "pair")
    for option, message in (("--prompt=x", "--prompt 'x': a Vision"), ("--load-in-4bit", "pip install bitsandbytes")):
        assert main(["caption", *paths, "--model", str(tmp_path / "pair"), option]) == 2
        assert message in capsys.readouterr().err


def test_a_chat_model_is_asked_by_its_template(tmp_path, paths, capfd):
    model, processor = tiny_model("llava"), KINDS["llava"].processor()
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    words = ["caption", *paths, "--model", str(tmp_path / "llava"), "--max-new-tokens", "4"]
    assert main(words) == 0
    captions = [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()]
    assert captions == [record["caption"] for record in caption_files(model, processor, paths, max_new_tokens=4)]
    assert main([*words, "--prompt", "photo of"]) == 0
    assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] != captions
    (tmp_path / "llava" / "chat_template.jinja").unlink()
    assert main(words) == 2
    assert "has no chat template (chat_template.jinja), by which a model is asked" in capfd.readouterr().err


HUB = {  # what the repositories of the Hub have: the class of images and of all, and settings of videos
    "qwen2_5_vl": ("Qwen2VLImageProcessor", "Qwen2_5_VLProcessor", None),
    "qwen3_vl": ("Qwen2VLImageProcessorFast", "Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}


@pytest.mark.parametrize("kind", sorted(HUB))
def test_a_folder_of_qwen_is_read_as_the_hub_has_it(tmp_path, kind, capfd):
    model, processor = tiny_model(kind), KINDS[kind].processor()
    images, whole, videos = HUB[kind]
    folder, paths = tmp_path / "captioner", []
    model.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(QWEN_TEMPLATE)
    settings = {"image_processor_type": images, "processor_class": whole, **QWEN_IMAGES}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    if videos is not None:
        settings = {"video_processor_type": videos, "processor_class": whole, "fps": 2}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(settings))
    for index, image in enumerate(tiny_images(3)):
        paths.append(str(tmp_path / f"{index}.png"))
        image.save(paths[-1])
    expected = [record["caption"] for record in caption_files(model, processor, paths, max_new_tokens=4)]
    assert main(["caption", *paths, "--model", str(folder), "--max-new-tokens", "4"]) == 0
    assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == expected
    loaded = load_processor(model, folder)
    assert type(loaded).__name__ == whole
    loaded.save_pretrained(tmp_path / "again")
    if not is_torchvision_available():  # its settings are kept as they were
        saved = json.loads((tmp_path / "again" / "processor_config.json").read_text())
        assert saved["video_processor"] == settings
        assert vars(load_processor(model, tmp_path / "again"))["video_settings"] == settings
    again = pickle.loads(pickle.dumps(load_processor(model, tmp_path / "again")))
    assert [record["caption"] for record in caption_files(model, again, paths, max_new_tokens=4)] == expected


def test_what_bitsandbytes_is_asked_for(monkeypatch):
    """What it makes of it is tried on machines that have it."""
    assert quantized(False, False) == {}
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: True)
    for bits, dtype, expected in ((4, "auto", torch.float32), (4, "bfloat16", torch.bfloat16), (8, "auto", None)):
        config = quantized(bits == 4, bits == 8, dtype)["quantization_config"]
        assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
        assert expected is None or config.bnb_4bit_compute_dtype == expected
    with pytest.raises(ValueError, match="load_in_4bit and load_in_8bit exclude each other"):
        quantized(True, True)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.skipif(not is_bitsandbytes_available(), reason="bitsandbytes is not installed")
def test_linear_layers_in_few_bits(tmp_path, paths, bits, capfd):
    tiny_model("llava").save_pretrained(tmp_path / "llava")
    KINDS["llava"].processor().save_pretrained(tmp_path / "llava")
    words = ["caption", *paths, "--model", str(tmp_path / "llava"), f"--load_in_{bits}bit", "--max-new-tokens", "4"]
    assert main(words) == 0
    assert len(capfd.readouterr().out.splitlines()) == len(paths)


def bad_folder(tmp_path, kind, **settings):
    """A folder of a captioner with other settings in its configuration; `None` takes one out."""
    folder = tmp_path / kind
    tiny_model(kind).save_pretrained(folder)
    KINDS[kind].processor().save_pretrained(folder)
    config = {**json.loads((folder / "config.json").read_text()), **settings}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(folder, path, capsys, *words):
    """The line that says why."""
    assert main(["caption", path, "--model", str(folder), *words]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_type_of_model(tmp_path, paths, capsys):
    message = refused(bad_folder(tmp_path, "blip", model_type="foo"), paths[0], capsys)
    assert re.search(
        r"blip: is a 'foo', a model that transformers [\d.]+ does not know; captioners are the capt", message
    )
    assert message.endswith("docs/any_captioner.md says how to add a family.")


def test_the_weights_of_another_model_are_no_captioner(tmp_path, paths, capsys):
    config = tiny_model("blip").config
    KINDS["blip"].processor().save_pretrained(tmp_path / "other")
    BlipForImageTextRetrieval(config).save_pretrained(tmp_path / "other")
    message = refused(tmp_path / "other", paths[0], capsys)
    assert "other: is a BlipForImageTextRetrieval, which writes no captions of images; captioners are" in message
    settings = json.loads((tmp_path / "other" / "config.json").read_text())
    del settings["architectures"]
    (tmp_path / "other" / "config.json").write_text(json.dumps(settings))
    message = refused(tmp_path / "other", paths[0], capsys)
    assert "parameters of a BlipForConditionalGeneration, such as text_decoder.bert.embeddings.word" in message


def test_a_folder_without_tokenizer(tmp_path, paths, capsys):
    folder = bad_folder(tmp_path, "blip")  # of which transformers makes one of five words
    for file in folder.glob("token*"):
        file.unlink()
    assert "blip cannot be loaded: the folder has no tokenizer (tokenizer.json); save" in refused(
        folder, paths[0], capsys
    )


def test_a_task_that_writes_no_caption(tmp_path, paths, capsys):
    message = refused(bad_folder(tmp_path, "florence2"), paths[0], capsys, "--prompt", "<OD>")
    assert "error: --prompt '<OD>': Florence-2 writes captions for <CAPTION>, <DETAILED_CAPTION>, <MORE_D" in message


@pytest.mark.parametrize("kind", ["blip", "blip-2", "kosmos-2", "llava"])
def test_a_prompt_with_words_that_the_model_lacks(tmp_path, paths, kind):
    model, processor = tiny_model(kind), KINDS[kind].processor()
    known = model.get_input_embeddings().num_embeddings
    processor.tokenizer.add_tokens([f"extra{number}" for number in range(60)])
    ask(model, "extra59")
    (record,) = caption_files(model, processor, paths[:1], 1)
    last = len(processor.tokenizer) - 1
    assert f"'extra59' has the id {last}, and the model knows {known} words, counted from 0" in record["error"]


@pytest.mark.parametrize("sizes", [{"text_config": {"intermediate_size": 8}}, {"vision_config": {"hidden_size": 8}}])
def test_sizes_that_the_weights_do_not_have(tmp_path, paths, capsys, sizes):
    folder = bad_folder(tmp_path, "blip")
    config = json.loads((folder / "config.json").read_text())
    for part, values in sizes.items():
        config[part].update(values)
    (folder / "config.json").write_text(json.dumps(config))
    message = refused(folder, paths[0], capsys)
    assert "blip: " in message and "weights have other sizes than config.json says, such as " in message


def test_more_tokens_than_positions_of_opt(tmp_path, paths, capsys):
    folder = bad_folder(tmp_path, "blip-2")
    assert "+ max_new_tokens=" in refused(folder, paths[0], capsys, "--max-new-tokens", "64")


def test_more_tokens_than_positions(tmp_path, paths, capsys):
    folder = bad_folder(tmp_path, "blip")
    assert "1 + max_new_tokens=25 is beyond the model's 24" in refused(
        folder, paths[0], capsys, "--max-new-tokens", "24"
    )
    message = refused(folder, paths[0], capsys, "--prompt", "photo of " * 12)
    assert "its 25 tokens leave no place for a caption among the 24 positions of the model" in message


@pytest.mark.parametrize("template", ["{% for message in messages %}", "{{ raise_exception('no images here') }}"])
def test_a_chat_template_that_fails(tmp_path, paths, capsys, template):
    folder = bad_folder(tmp_path, "llava")
    (folder / "chat_template.jinja").write_text(template)
    message = refused(folder, paths[0], capsys)
    assert "llava cannot be loaded: " in message and "the chat template fails at a question about an image: " in message
