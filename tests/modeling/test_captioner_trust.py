"""Foreign code runs if the user said so, at every place that loads a model; stdin is full of `y` here."""

from __future__ import annotations

import ast
import io
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.reward_policies import SIDE, tiny_policy, tiny_processor
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, dynamic_module_utils

import hf_captioners
from hf_captioners import (
    ClipGpt2ForImageCaptioning,
    ClipGpt2Processor,
    DicoCaptionerConfig,
    DicoForImageCaptioning,
    DicoProcessor,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    SaticConfig,
    SaticForImageCaptioning,
    SCSTConfig,
)
from hf_captioners.cli import main as cli
from hf_captioners.cli.training.captioner_arguments import CaptionerArguments, load_captioner
from hf_captioners.conversion import convert
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.inference.extract_features import FeatureExtractor
from hf_captioners.metrics.clip.clip_score import ClipScorer
from hf_captioners.metrics.clip.pac_score import PacScorer
from hf_captioners.modeling.captioner_trust import RemoteCodeError, foreign_code, load_pretrained

ROOT = Path(__file__).resolve().parents[2]
OPTION = "trust_remote_code"
CODE = """
from pathlib import Path
Path({mark!r}).touch()
raise RuntimeError("the foreign code ran")
"""
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor")


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), "utf-8")


def write_hostile(folder: Path, mark: Path) -> Path:
    """A folder whose code leaves a mark, whatever of it is loaded: model, tokenizer, processor, pipeline."""
    (folder / "custom_generate").mkdir(parents=True)
    for name in ("foreign.py", "custom_generate/generate.py"):
        (folder / name).write_text(CODE.format(mark=str(mark)))
    auto_map: dict[str, Any] = dict.fromkeys(AUTO_CLASSES, "foreign.Foreign")
    auto_map["AutoTokenizer"] = ["foreign.Foreign", "foreign.Foreign"]
    pipelines = {"image-to-text": {"impl": "foreign.Foreign", "pt": ["AutoModelForImageTextToText"]}}
    write_json(folder / "config.json", {"model_type": "foreign", "auto_map": auto_map, "custom_pipelines": pipelines})
    for name in ("tokenizer_config", "preprocessor_config", "processor_config"):
        write_json(folder / f"{name}.json", {"auto_map": auto_map})
    return folder


@pytest.fixture()
def mark(tmp_path: Path) -> Path:
    return tmp_path / "the_code_ran"


@pytest.fixture()
def hostile(tmp_path: Path, mark: Path) -> Path:
    return write_hostile(tmp_path / "hostile", mark)


@pytest.fixture(autouse=True)
def yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every question on the terminal would be answered with yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 1000))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    before = list(sys.path), dynamic_module_utils.TIME_OUT_REMOTE_CODE
    yield
    assert before[1] == dynamic_module_utils.TIME_OUT_REMOTE_CODE
    sys.path[:] = before[0]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_world(tmp_path_factory.mktemp("world"), num_train=2, num_val=1, num_test=1, size=32)


def module_of(path: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / path))


# --- the places: each is called with the hostile folder, a folder to write to, the sample world, and trust


def command(*words: Any) -> Callable[..., Any]:
    """A verb; `HOSTILE`, `OUT`, `WORLD` in its arguments are put in."""

    def call(hostile: Path, out: Path, world: Path, trust: bool) -> None:
        out.mkdir(exist_ok=True)
        (out / "captions.json").write_text('[{"image_id": 0, "caption": "a"}]')
        (out / "refs.json").write_text('{"0": ["a"]}')
        Image.new("RGB", (8, 8)).save(out / "a.png")
        named = {"HOSTILE": hostile, "OUT": out, "WORLD": world}
        line = [str(word) for word in words]
        for name, path in named.items():
            line = [word.replace(name, str(path)) for word in line]
        assert cli.main([*line, *([f"--{OPTION}"] if trust else [])]) == 2

    return call


def script(name: str, *words: Any) -> Callable[..., Any]:
    """An example."""

    def call(hostile: Path, out: Path, world: Path, trust: bool) -> None:
        given = [str(word).replace("HOSTILE", str(hostile)).replace("OUT", str(out)) for word in words]
        given += ["--annotations", str(world / "dataset_karpathy.json"), "--image_root", str(world / "images")]
        given += ["--output_dir", str(out / "run"), "--report_to", "none", "--use_cpu", "true"]
        module_of(f"examples/{name}.py")["main"]([*given, *([f"--{OPTION}"] if trust else [])])

    return call


def converted(model_type: str, option: str, checkpoint: Callable[[Path], Path]) -> Callable[..., Any]:
    def call(hostile: Path, out: Path, world: Path, trust: bool) -> None:
        out.mkdir()
        given: dict[str, Any] = {option: hostile, OPTION: trust}
        convert(model_type, checkpoint(out), out / "new", **given)

    return call


def clipcap(out: Path) -> Path:
    torch.save(module_of("tests/conversion/test_clip_gpt2.py")["random_checkpoint"]("mlp"), out / "clipcap.pt")
    return out / "clipcap.pt"


def dico_folder(out: Path) -> Path:
    return module_of("tests/conversion/test_dico.py")["write_original"](out / "original")


def scst_adapters(hostile: Path, out: Path, world: Path, trust: bool) -> None:
    out.mkdir()
    write_json(out / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": str(hostile), "r": 2})
    load_captioner(CaptionerArguments(str(out), trust_remote_code=trust))


def api(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the package, called with the folder and `trust_remote_code`."""
    return lambda hostile, out, world, trust: function(str(hostile), trust_remote_code=trust)


FEATURES = ("--annotations", "WORLD/dataset_karpathy.json", "--image-root", "WORLD/images", "--out", "OUT/features")
SCORES = ("evaluate", "--predictions", "OUT/captions.json", "--references", "OUT/refs.json", "--device", "cpu")
DATA = ("--dataset", "WORLD/dataset_karpathy.json", "--image-root", "WORLD/images")
VISION = '{"vision_config": {"model_type": "swin", "image_size": 32, "embed_dim": 8, "depths": [1], "num_heads": [2]}}'
FRESH = ("--new_captioner", VISION, "--train_backbone", "all")
SCST = ("train_scst", "--rewards", "length", "--max_words", 5)

PLACES: dict[str, Callable[..., Any]] = {
    "caption": command("caption", "OUT/a.png", "--model", "HOSTILE"),
    "evaluate --model": command("evaluate", "--model", "HOSTILE", *DATA),
    "evaluate --clip": command(*SCORES, "--clip", "HOSTILE", "--metrics", "clip_s"),
    "evaluate --pac": command(*SCORES, "--pac", "HOSTILE", "--metrics", "pac_s"),
    "features": command("features", "--model", "HOSTILE", *FEATURES),
    "features pooled": command("features", "--model", "HOSTILE", "--tokens", "pooled", *FEATURES),
    "convert clip_gpt2 tokenizer": converted("clip_gpt2", "tokenizer", clipcap),
    "convert dico tokenizer": converted("dico", "tokenizer", dico_folder),
    "train_expansionnet_v2 --model": script("train_expansionnet_v2", "--model", "HOSTILE"),
    "train_expansionnet_v2 --backbone": script("train_expansionnet_v2", "--backbone", "HOSTILE"),
    "train_satic --model": script("train_satic", "--model", "HOSTILE"),
    "train_satic --backbone": script("train_satic", "--backbone", "HOSTILE"),
    "train_clip_gpt2 --model": script("train_clip_gpt2", "--model", "HOSTILE"),
    "train_clip_gpt2 --backbone": script("train_clip_gpt2", "--backbone", "HOSTILE"),
    "train_clip_gpt2, gpt2": script("train_clip_gpt2", "--new_captioner", '{"gpt2": "HOSTILE"}', "--backbone", "x"),
    "train_dico xe --model": script("train_dico", "xe", "--model", "HOSTILE"),
    "train_dico xe --backbone": script("train_dico", "xe", "--backbone", "HOSTILE", "--tokenizer", "words"),
    "train_dico xe, tokenizer": script("train_dico", "xe", "--tokenizer", "HOSTILE", *FRESH),
    "train_dico dico": script("train_dico", "dico", "--model", "HOSTILE"),
    "train_scst": script(*SCST, "--model", "HOSTILE"),
    "train_scst, base of adapters": scst_adapters,
    "train_mini_clip": script("train_mini_clip", "--backbone", "HOSTILE"),
    "pipeline": api(lambda folder, **options: hf_captioners.pipeline(model=folder, **options)),
    "FeatureExtractor": api(FeatureExtractor.from_pretrained),
    "ClipScorer": api(ClipScorer),
    "PacScorer": api(PacScorer),
    "ExpansionNetV2 backbone": api(
        lambda folder, **options: ExpansionNetV2ForImageCaptioning.from_backbone(
            folder, ExpansionNetV2Config(features_only=True), **options
        )
    ),
    "SATIC backbone": api(
        lambda folder, **options: SaticForImageCaptioning.from_backbone(folder, SaticConfig(), **options)
    ),
    "DiCO backbone": api(
        lambda folder, **options: DicoForImageCaptioning.from_backbone(
            folder, DicoCaptionerConfig(features_only=True), **options
        )
    ),
    "CLIP-GPT2 towers": api(
        lambda folder, **options: ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(
            folder, "nowhere", encoder_kwargs=options
        )
    ),
    "DiCO processor": api(DicoProcessor.from_backbone),
    "CLIP-GPT2 processor": api(
        lambda folder, **options: ClipGpt2Processor.from_encoder_decoder_pretrained(None, folder, **options)
    ),
    "benchmarks and the rest": api(lambda folder, **options: load_pretrained(AutoProcessor, folder, **options)),
}


@pytest.mark.parametrize("place", PLACES)
def test_code_does_not_run_unasked(place, hostile, mark, world, tmp_path, capfd):
    try:
        PLACES[place](hostile, tmp_path / "out", world, False)
        said = capfd.readouterr().err.splitlines()[-1]
    except (SystemExit, ValueError) as error:
        said = str(error)
    assert not mark.exists()
    assert str(hostile) in said and OPTION in said


@pytest.mark.parametrize("place", PLACES)
def test_code_runs_with_the_switch(place, hostile, mark, world, tmp_path):
    with pytest.raises((RuntimeError, SystemExit, ValueError, AssertionError)):
        PLACES[place](hostile, tmp_path / "out", world, True)
        raise SystemExit  # a verb: its status is 2
    assert mark.exists()


def test_a_refusal_is_one_line(hostile, mark, world, tmp_path, capfd):
    PLACES["caption"](hostile, tmp_path / "out", world, False)
    out, err = capfd.readouterr()
    start = f"hf-captioners caption: error: --model {hostile}: brings Python code of its own, which runs only with --"
    assert out == "" and len(err.splitlines()) == 1 and err.startswith(start)
    assert sys.stdin.read(2) == "y\n"  # nobody has asked
    assert not mark.exists()


class TestFoldersOfOurs:
    """A captioner of this package, of which a part is foreign."""

    @pytest.fixture()
    def folder(self, tmp_path, mark, hostile):
        tiny_policy("satic").save_pretrained(tmp_path / "satic")
        tiny_processor("satic").save_pretrained(tmp_path / "satic")
        for path in hostile.glob("*.py"):
            (tmp_path / "satic" / path.name).write_bytes(path.read_bytes())
        return tmp_path / "satic"

    def edit(self, path, **changes):
        write_json(path, {**json.loads(path.read_text("utf-8")), **changes})

    @pytest.mark.parametrize("trust", [False, True])
    def test_shipped_code_is_not_needed(self, tmp_path, trust):
        captioner = hf_captioners.pipeline(model=tiny_policy("satic"), processor=tiny_processor("satic"))
        captioner.save_pretrained(tmp_path / "shipped", ship_code=True)
        again = hf_captioners.pipeline(model=str(tmp_path / "shipped"), trust_remote_code=trust)
        assert type(again.model) is SaticForImageCaptioning
        assert cli.main(["caption", str(tmp_path), "--model", str(tmp_path / "shipped")]) == 2  # it has no picture
        model, _, _ = load_captioner(CaptionerArguments(str(tmp_path / "shipped")))
        assert type(model) is SaticForImageCaptioning

    def test_parts_that_name_code(self, folder, mark):
        """transformers' AutoProcessor forgets `trust_remote_code` on its way to these."""
        auto_map = dict.fromkeys(AUTO_CLASSES, "foreign.Foreign") | {"AutoTokenizer": ["foreign.Foreign"] * 2}
        for name, dropped in (("processor_config", "processor_class"), ("tokenizer_config", "tokenizer_class")):
            path = folder / f"{name}.json"
            settings = json.loads(path.read_text("utf-8"))
            settings.pop(dropped, None)
            settings.pop("processor_class", None)
            write_json(path, {**settings, "auto_map": auto_map})
        loads: list[Callable[[], Any]] = [
            lambda: hf_captioners.pipeline(model=str(folder)),
            lambda: load_captioner(CaptionerArguments(str(folder))),
            lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
            lambda: hf_captioners.SaticProcessor.from_pretrained(folder),
        ]
        for load in loads:
            try:
                load()
            except ValueError as error:  # a refusal is as good as a class of our own
                assert OPTION in str(error)
        assert not mark.exists()

    def test_a_backbone_that_names_code(self, folder, mark):
        config = json.loads((folder / "config.json").read_text("utf-8"))
        vision = {**config["vision_config"], "auto_map": {"AutoModel": f"{folder}--foreign.Foreign"}}
        for model_type in (vision["model_type"], "clip_text_model"):  # with a model of transformers, and with another
            self.edit(folder / "config.json", vision_config={**vision, "model_type": model_type})
            try:
                hf_captioners.pipeline(model=str(folder))
            except (ValueError, TypeError, RuntimeError) as error:
                assert "the foreign code ran" not in str(error)
        assert not mark.exists()

    def test_generation_code(self, folder, hostile, mark):
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_bytes((hostile / "custom_generate/generate.py").read_bytes())
        self.edit(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)
        model = load_captioner(CaptionerArguments(str(folder)))[0]
        pixels = torch.zeros(1, 3, SIDE, SIDE)
        assert model.generate(pixel_values=pixels, max_length=4).shape[0] == 1
        with pytest.raises(ValueError, match="trust_remote_code"):
            model.generate(pixel_values=pixels, max_length=4, custom_generate=str(folder))
        for options in ({"custom_generate": str(folder)}, {"trust_remote_code": True}):
            with pytest.raises(ValueError, match=rf"generation_kwargs must not have {next(iter(options))}"):
                SCSTConfig(output_dir="nowhere", use_cpu=True, generation_kwargs=options)
        assert not mark.exists()
        with pytest.raises(RuntimeError, match="the foreign code ran"):
            load_captioner(CaptionerArguments(str(folder), trust_remote_code=True))

    @pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
    def test_kernels_of_the_hub(self, folder, name):
        self.edit(folder / "config.json", **{name: "someone/kernel"})
        with pytest.raises(RemoteCodeError, match=r"satic: config\.json names code of the Hub, 'someone/kernel'"):
            load_captioner(CaptionerArguments(str(folder)))
        self.edit(folder / "config.json", **{name: None, "vision_config": {name: {"": "someone/kernel"}}})
        with pytest.raises(RemoteCodeError, match="someone/kernel"):
            hf_captioners.pipeline(model=str(folder))

    def test_modules_that_peft_would_import(self, folder):
        named = {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(folder)}
        write_json(folder / "adapter_config.json", {**named, "megatron_config": {"a": 1}, "megatron_core": "foreign"})
        with pytest.raises(RemoteCodeError, match=r"adapter_config\.json names a module, 'foreign'"):
            load_captioner(CaptionerArguments(str(folder)))
        with pytest.raises(RemoteCodeError, match="foreign"):
            hf_captioners.pipeline(model=str(folder))


class TestRecipes:
    """A file of options comes from anywhere: it cannot allow what the command line has not."""

    @pytest.mark.parametrize("value", ["true", "'yes'", "1"])
    def test_top_level(self, hostile, mark, world, tmp_path, value):
        (tmp_path / "recipe.yaml").write_text(f"{OPTION}: {value}\n")
        with pytest.raises(
            SystemExit, match=rf"{OPTION}(: expected true| is not for a recipe; .* on the command line)"
        ):
            script(*SCST, "--model", "HOSTILE", "--config", tmp_path / "recipe.yaml")(hostile, tmp_path, world, False)
        assert not mark.exists()

    def test_on_the_command_line_too(self, hostile, mark, world, tmp_path):
        (tmp_path / "recipe.yaml").write_text(f"{OPTION}: true\n")
        with pytest.raises(RuntimeError, match="the foreign code ran"):
            script(*SCST, "--model", "HOSTILE", "--config", tmp_path / "recipe.yaml")(hostile, tmp_path, world, True)

    @pytest.mark.parametrize("name", [OPTION, "custom_generate", "auto_map", "attn_implementation", "dtype", "config"])
    def test_model_options_are_fields(self, tmp_path, name):
        tiny_policy("satic").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"--model_options {name}: no field of SaticConfig; "):
            load_captioner(CaptionerArguments(str(tmp_path), model_options={name: True}))

    def test_model_options_of_a_foreign_model(self, hostile, mark, world, tmp_path):
        with pytest.raises(SystemExit, match=rf"{hostile}: brings Python code"):
            options = json.dumps({OPTION: True})
            script(*SCST, "--model", "HOSTILE", "--model_options", options)(hostile, tmp_path, world, False)
        assert not mark.exists()

    def test_model_options_misspelt(self, tmp_path):
        tiny_policy("satic").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"drop_out: no field of SaticConfig; do you mean dropout"):
            load_captioner(CaptionerArguments(str(tmp_path), model_options={"drop_out": 0.1}))
        with pytest.raises(ValueError, match=r"--model_options \['dropout'\]: expected names"):
            load_captioner(CaptionerArguments(str(tmp_path), model_options='["dropout"]'))

    def test_features(self, tmp_path, capfd):
        (tmp_path / "features.yaml").write_text("trust-remote-code: true\n")
        assert cli.main(["features", "--config", str(tmp_path / "features.yaml"), "--out", "out"]) == 2
        assert "trust-remote-code is not for a file; give it on the command line" in capfd.readouterr().err


def test_other_errors_pass():
    with pytest.raises(ValueError, match="another"), foreign_code("nowhere", False):
        raise ValueError("another")
    with pytest.raises(ValueError, match="trust_remote_code=True") as caught, foreign_code("nowhere", True):
        raise ValueError("give trust_remote_code=True")
    assert not isinstance(caught.value, RemoteCodeError)


def test_every_loader_of_the_project_says_it():
    """`from_pretrained` of an Auto class, a pipeline or a `PeftModel` stands where `trust_remote_code` is given."""
    silent = []
    for path in (path for name in ("hf_captioners", "examples", "benchmarks") for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = ast.unparse(node.func.value)
            if node.func.attr in ("from_pretrained", "from_config") and owner.startswith("Auto"):
                said = ast.unparse(node)
                if "trust_remote_code" not in said and "**options" not in said:
                    silent.append(f"{path.name}: {said}")
    assert silent == []
