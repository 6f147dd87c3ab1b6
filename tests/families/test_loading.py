"""Captioners of other people: tiny ones of transformers, against what transformers alone makes of them."""

import json
import pickle

import pytest
import torch
from contracts.reward_policies import SIDE, TOKENIZER, tiny_policy
from contracts.tiny_families import KINDS, QWEN_IMAGES, QWEN_TEMPLATE, tiny_images, tiny_model, words_tokenizer
from PIL import Image
from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTImageProcessorPil, ViTModel
from transformers.utils import is_torchvision_available

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.families.loading import check_can_caption, load_captioner_model, load_processor
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
