"""Every option of data, captioner and rewards: an effect, an equality by definition, or a refusal.

Those of the trainers are in `tests/training/test_every_option.py`. A new field fails here until it has an entry.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Any

import datasets
import pytest
import torch
from contracts.reward_policies import TOKENIZER, tiny_policy, tiny_processor, tiny_rows
from PIL import Image

from hf_captioners import DiCOConfig, SCSTConfig, XEConfig
from hf_captioners.cli.image_options import use_retrieval
from hf_captioners.cli.training.captioner_arguments import CaptionerArguments, load_captioner
from hf_captioners.cli.training.reward_arguments import RewardArguments, load_rewards
from hf_captioners.cli.training.run_report import ReportArguments
from hf_captioners.cli.training.script import check_switches
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.row_stream import RowStream
from hf_captioners.data.rows import undecoded
from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
from hf_captioners.rewards.cider import END
from hf_captioners.training.data_arguments import DataArguments, load_rows

SPLITS = ["train", "train", "restval", "val", "val", "test", "test"]


@dataclass
class Option:
    """Effect of an option.

    Attributes:
        kind (`str`): "effect": other rows, another captioner or rewards, or an error in their place; "equal": the same;
            "refused".
        value: that it is tried with; the names of what `Files` has are put in.
        beside (`dict`): what it is tried together with, and without.
        alone (`bool`): whether it is refused without what is beside it.
    """

    kind: str
    value: Any
    beside: dict[str, Any] = field(default_factory=dict)
    alone: bool = False


ANNOTATIONS = {"annotations": "{annotations}", "image_root": "{images}"}
DATA = {
    "annotations": Option("effect", "{annotations}"),
    "data_dir": Option("effect", "{folder}"),
    "image_root": Option("effect", "{images}", {"annotations": "{annotations}"}, alone=True),
    "dataset_name": Option("effect", "{parquet}"),
    "dataset_config_name": Option("refused", "dataset_config_name", {"dataset_name": "{parquet}"}),  # it has none
    "image_column": Option("effect", "photo", {"dataset_name": "{photos}"}, alone=True),
    "caption_column": Option("effect", ["caption"], {"dataset_name": "{parquet}"}, alone=True),
    "image_id_column": Option("effect", "number", {"dataset_name": "{parquet}"}, alone=True),
    "streaming": Option("effect", True, {"dataset_name": "{parquet}"}, alone=True),
    "stream_buffer_size": Option("effect", 1, {"dataset_name": "{parquet}", "streaming": True}, alone=True),
    "eval_annotations": Option("effect", "{tokens}", ANNOTATIONS),
    "eval_image_root": Option("effect", "{others}", {**ANNOTATIONS, "eval_annotations": "{annotations}"}, alone=True),
    "labels": Option("refused", "x.h5", {"data_dir": "{folder}"}),  # its rows: tests/training/test_data_arguments.py
    "train_split": Option("effect", "restval", ANNOTATIONS, alone=True),
    "eval_split": Option("effect", "test", ANNOTATIONS, alone=True),
    "features": Option("effect", "{features}", ANNOTATIONS),
    "distilled": Option("effect", "{teacher}", ANNOTATIONS),
    "missing_distilled": Option("effect", "keep", {**ANNOTATIONS, "distilled": "{half}"}, alone=True),
    "sentences": Option("effect", ["guide={teacher}"], {**ANNOTATIONS, "eval_split": "restval"}),
    "check_images": Option("effect", False, {"data_dir": "{broken}"}),
    "on_bad_row": Option("effect", "skip", {"data_dir": "{broken}"}),
}
SAVED = {"model": "{captioner}"}
LORA = {**SAVED, "lora_rank": 2}
CAPTIONER = {
    "model": Option("effect", "{captioner}"),
    "model_type": Option("refused", "dico", SAVED),
    "backbone": Option("equal", "x", SAVED),  # of a new captioner, which the log says; see test_captioner_arguments.py
    "tokenizer": Option("equal", "x", SAVED),
    "new_captioner": Option("equal", {"d_model": 32}, SAVED),
    "model_options": Option("effect", {"group_size": 1}, SAVED),
    "retrieval": Option("refused", "x", SAVED),  # of SCD-Net: tests/cli/test_retrieval.py
    "prompt": Option("refused", "x", SAVED),  # of other captioners: tests/families/test_loading.py
    "load_in_4bit": Option("refused", True, SAVED),  # only under adapters
    "load_in_8bit": Option("refused", True, SAVED),
    "lora_rank": Option("effect", 2, SAVED),
    "lora_alpha": Option("effect", 1.0, LORA, alone=True),
    "lora_target_modules": Option("effect", ["linear_q"], LORA, alone=True),
    "trust_remote_code": Option("equal", True, SAVED),  # there is no code; see tests/modeling/test_captioner_trust.py
}
LENGTH = {"rewards": ["length"], "max_words": 9}
REWARDS = {
    "rewards": Option("effect", ["bleu_4"]),
    "clip_model": Option("refused", "x"),  # of rewards that look at pictures: test_reward_arguments.py
    "clip_variant": Option("refused", "dico"),
    "document_frequencies": Option("effect", "{frequencies}"),
    "min_words": Option("effect", 5, LENGTH, alone=True),
    "max_words": Option("effect", 1, {"rewards": ["length"], "min_words": 1}, alone=True),
    "reward_tokenizer": Option("effect", "builtins:list"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures and captions in both layouts, their features, a teacher's captions, a captioner."""
    folder = tmp_path_factory.mktemp("files")
    found = {name: folder / name for name in ("images", "others", "folder", "broken", "features", "captioner")}
    found["images"].mkdir()
    rows = tiny_rows(found["images"], len(SPLITS))
    shutil.copytree(found["images"], found["others"])
    entries = [
        {
            "filename": f"{row['image_id']}.png", "split": split, "imgid": row["image_id"],
            "sentences": [{"raw": one, "tokens": one.split()} for one in row["captions"]],
        }
        for row, split in zip(rows, SPLITS, strict=True)
    ]  # fmt: skip
    found["annotations"] = folder / "dataset.json"
    found["annotations"].write_text(json.dumps({"dataset": "tiny", "images": entries}))
    found["tokens"] = folder / "all.token"
    found["tokens"].write_text("".join(f"{row['image_id']}.png#0\ta star\n" for row in rows))
    for name, column in (("parquet", "image"), ("photos", "photo")):
        found[name] = folder / name
        table = {column: [row["image"] for row in rows], "captions": [row["captions"] for row in rows]}
        table |= {"caption": ["a star"] * len(rows), "number": [row["image_id"] for row in rows]}
        features = datasets.Dataset.from_dict(table).cast_column(column, datasets.Image())
        features.to_parquet(found[name] / "train.parquet")
    for name in ("folder", "broken"):
        (found[name] / "train").mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(found[name] / "train" / "a.png")
        (found[name] / "train" / "b.png").write_bytes((found[name] / "train" / "a.png").read_bytes())
        lines = [json.dumps({"file_name": f"{one}.png", "captions": ["a red star"]}) for one in "ab"]
        (found[name] / "train" / "metadata.jsonl").write_text("\n".join(lines))
    (found["broken"] / "train" / "b.png").write_bytes(b"no picture")
    with FeatureWriter(found["features"]) as writer:
        for row in rows:
            writer.add(row["image_id"], torch.ones(2, 4))
    for name, number in (("teacher", 3), ("half", 2)):
        found[name] = folder / f"{name}.jsonl"
        records = [{"image_id": index, "captions": ["two stars"]} for index in range(number)]
        found[name].write_text("\n".join(map(json.dumps, records)))
    tiny_policy("satic").save_pretrained(found["captioner"])
    tiny_processor("satic").save_pretrained(found["captioner"])
    found["frequencies"] = folder / "frequencies.safetensors"
    DocumentFrequencies.from_references([["a red star above"], ["a square"], ["x"]], eos=END).save(found["frequencies"])
    return {name: str(path) for name, path in found.items()}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def filled(options: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    """Options with the paths of files in the place of their names."""

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(one) for one in value]
        return value.format(**files) if isinstance(value, str) and "{" in value else value

    return {name: fill(value) for name, value in options.items()}


def rows_of(options: dict[str, Any]) -> Any:
    parts = load_rows(DataArguments(**options))
    closed = [undecoded(part) if isinstance(part, datasets.Dataset) else part for part in parts]
    return [
        list(islice(iter(part), 40)) if isinstance(part, RowStream) else part and [part[i] for i in range(len(part))]
        for part in closed
    ]


def captioner_of(options: dict[str, Any]) -> Any:
    model, processor, adapters = load_captioner(CaptionerArguments(**options), [{"captions": ["a star"]}])
    use_retrieval(model, processor, options.get("retrieval"), False)
    state = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values())).hexdigest()
    settings = adapters and {**adapters.to_dict(), "target_modules": sorted(adapters.target_modules or ())}
    return model.config.to_dict(), state, len(processor.tokenizer), settings


def rewards_of(options: dict[str, Any]) -> Any:
    rows = [{"image_id": 0, "captions": ["a red star above a circle"]}, {"image_id": 1, "captions": ["a square"]}]
    given = {"completions": ["a red star above", "a"], "captions": [row["captions"] for row in rows]}
    given["completion_ids"] = [[5, 6, TOKENIZER.eos_token_id], [5, TOKENIZER.eos_token_id]]
    functions = load_rewards(RewardArguments(**options), rows, tiny_processor("satic"))
    return [function(**given) for function in functions]


KINDS = {"data": (DataArguments, DATA, rows_of), "captioner": (CaptionerArguments, CAPTIONER, captioner_of)}
KINDS["rewards"] = (RewardArguments, REWARDS, rewards_of)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_has_an_entry(kind):
    assert {one.name for one in fields(ReportArguments)} == {"report"}  # see test_script.py
    arguments, options, _ = KINDS[kind]
    assert options.keys() == {one.name for one in fields(arguments)}


def outcome(load: Any, options: dict[str, Any]) -> str:
    try:
        return repr(load(options))
    except ValueError as error:
        return f"refused: {error}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, table, _) in KINDS.items() for name in table])
def test_an_option_is_honoured_or_refused(files, kind, name, caplog):
    _, table, load = KINDS[kind]
    option = table[name]
    beside, value = filled(option.beside, files), filled({name: option.value}, files)
    caplog.set_level(logging.INFO)
    plain, tried = outcome(load, beside), outcome(load, {**beside, **value})
    if option.kind == "refused":
        assert tried.startswith("refused: ") and name in tried
        return
    if option.alone:
        alone = {"data": {"data_dir": files["folder"]}, "captioner": {"model": files["captioner"]}, "rewards": {}}
        refused = outcome(load, {**alone[kind], **value})
        assert refused.startswith("refused: ") and name in refused
    assert not tried.startswith("refused: ")
    assert (plain == tried) == (option.kind == "equal")
    if name in ("backbone", "tokenizer", "new_captioner"):
        assert "those of a new one are not read" in caplog.text


@pytest.mark.parametrize("config", [XEConfig, SCSTConfig, DiCOConfig])
def test_switches_of_a_command(tmp_path, config):
    """Training is what the command does; an evaluation that does not happen is refused."""
    make = lambda **options: check_switches(config(str(tmp_path), use_cpu=True, **options))  # noqa: E731
    make()
    make(do_train=True)
    make(eval_with_generation=True, eval_strategy="epoch")
    make(eval_with_generation=True, eval_on_start=True)
    for name in ("do_eval", "eval_with_generation"):
        with pytest.raises(ValueError, match=f"--{name} has no effect without --eval_strategy epoch or steps"):
            make(**{name: True})
    with pytest.raises(ValueError, match="--do_predict has no effect: `hf-captioners evaluate` scores"):
        make(do_predict=True)
