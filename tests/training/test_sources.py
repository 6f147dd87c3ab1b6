"""The same pictures and captions from tars, Parquet, a folder with text files and Karpathy's JSON: one training."""

import io
import itertools
import json
import shutil
import tarfile
from pathlib import Path

import datasets
import pytest
from contracts.reward_policies import tiny_policy, tiny_processor

from hf_captioners import XEConfig, XETrainer
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.data.row_stream import RowStream
from hf_captioners.training.data_arguments import DataArguments, load_rows

NUMBER = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_sample_world(
        tmp_path_factory.mktemp("drawn") / "world", num_train=NUMBER, num_val=0, num_test=0, size=16
    )


@pytest.fixture(scope="module", params=[1, 5])
def sources(request, world, tmp_path_factory):
    """Options of each source, with one caption a picture, or with five and the same ids in all."""
    root = tmp_path_factory.mktemp(f"sources_{request.param}")
    content = json.loads((world / "dataset_karpathy.json").read_text())
    (root / "folder" / "train").mkdir(parents=True)
    tars = [tarfile.open(root / f"{number}.tar", "w") for number in range(2)]  # noqa: SIM115
    lines = []
    for index, image in enumerate(content["images"]):
        image["sentences"] = image["sentences"][: request.param]
        captions = [sentence["raw"] for sentence in image["sentences"]]
        stem, picture = f"{image['imgid']:03d}", world / "images" / image["filename"]
        shutil.copy(picture, root / "folder" / "train" / f"{stem}.png")
        (root / "folder" / "train" / f"{stem}.txt").write_text("\n".join(captions))
        lines.append({"file_name": f"{stem}.png", "captions": captions, "image_id": image["imgid"]})
        for suffix, member in (("png", picture.read_bytes()), ("json", json.dumps(captions).encode())):
            info = tarfile.TarInfo(f"{stem}.{suffix}")
            info.size = len(member)
            tars[2 * index // NUMBER].addfile(info, io.BytesIO(member))
    for tar in tars:
        tar.close()
    if request.param > 1:  # text files have no ids of their own
        for path in (root / "folder" / "train").glob("*.txt"):
            path.unlink()
        (root / "folder" / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "karpathy.json").write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        rows = load_karpathy(root / "karpathy.json", world / "images", "train")
        rows = rows.select_columns(["image", "captions", "image_id"])
        for number in range(2):
            rows.shard(2, number, contiguous=True).to_parquet(root / "parquet" / f"train-{number}.parquet")
    return {
        "karpathy": {
            "annotations": f"{root}/karpathy.json", "image_root": f"{world}/images", "eval_split": "train"
        },
        "folder": {"data_dir": f"{root}/folder"},
        "parquet": {"dataset_name": f"{root}/parquet"},
        "tars": {"annotations": f"{root}/{{0..1}}.tar"},
    }  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def trained(folder, rows, **options):
    args = {
        "max_steps": 4, "per_device_train_batch_size": 5, "logging_steps": 1, "learning_rate": 1e-2, "seed": 7,
        "save_strategy": "no", "max_unknown_words": 1.0, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    trainer = XETrainer(
        tiny_policy("satic"),
        XEConfig(str(folder), **{**args, **options}),
        rows,
        processing_class=tiny_processor("satic"),
    )
    trainer.train(resume_from_checkpoint=options.get("resume_from_checkpoint"))
    return [(entry["loss"], entry["epoch"]) for entry in trainer.state.log_history if "loss" in entry]


def test_one_loss_curve(sources, tmp_path):
    curves = {}
    for name, options in sources.items():
        rows, _ = load_rows(DataArguments(**options))
        assert len(rows) == NUMBER
        curves[name] = trained(tmp_path / name, rows)
    assert len(set(curves["karpathy"])) == 4
    assert all(curve == curves["karpathy"] for curve in curves.values()), curves


def spoilt(name, options, folder):
    """Options of the source with a file more, of four rows that cannot be used."""
    bad = [(None, "a dog"), (b"no picture", "a dog"), (b"", "a dog"), (b"GIF8", "...")]
    if name == "tars":
        for path in Path(options["annotations"]).parent.glob("*.tar"):
            shutil.copy(path, folder / path.name)
        with tarfile.open(folder / "2.tar", "w") as tar:
            for number, (picture, caption) in enumerate(bad):
                for suffix, content in (("png", picture), ("txt", caption.encode())):
                    if content is not None:
                        info = tarfile.TarInfo(f"in_the_way{number}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        return {"annotations": f"{folder}/{{0..2}}.tar"}
    rows = datasets.load_dataset(options["dataset_name"], split="train").cast_column("image", datasets.Image(False))
    images = [None if picture is None else {"bytes": picture, "path": None} for picture, _ in bad]
    more = [
        {"image": image, "image_id": number, "captions": [caption]}
        for number, (image, (_, caption)) in enumerate(zip(images, bad, strict=True), start=100)
    ]
    rows = datasets.Dataset.from_list([*rows, *more]).cast_column("image", datasets.Image())
    rows.to_parquet(folder / "parquet" / "train-0.parquet")
    return {"dataset_name": f"{folder}/parquet"}


class TestStreaming:
    @pytest.fixture
    def stream(self, sources):
        def stream(name):
            rows, evaluation = load_rows(DataArguments(**sources[name], streaming=True, stream_buffer_size=4))
            assert isinstance(rows, RowStream) and evaluation is None
            return rows

        return stream

    def test_one_loss_curve(self, stream, tmp_path):
        curves = [trained(tmp_path / name, stream(name)) for name in ("tars", "parquet")]
        assert curves[0] == curves[1] and len(set(curves[0])) == 4

    @pytest.mark.parametrize("sources", [1], indirect=True)
    @pytest.mark.parametrize("workers", [0, 2])
    def test_goes_on_in_the_middle(self, stream, tmp_path, workers):
        """Bit for bit as without the stop, past the end of a pass."""
        options = {"max_steps": 5, "dataloader_num_workers": workers}
        whole = trained(tmp_path / "whole", stream("tars"), **options)
        saving = {"save_strategy": "steps", "save_steps": 2}
        trained(tmp_path / "run", stream("tars"), **options, **saving)
        shutil.rmtree(tmp_path / "run" / "checkpoint-4")
        for path in (tmp_path / "run").glob("*checkpoint-5"):
            shutil.rmtree(path)
        again = trained(tmp_path / "run", stream("tars"), **options, **saving, resume_from_checkpoint=True)
        assert again == whole

    @pytest.mark.parametrize("sources", [1], indirect=True)
    @pytest.mark.parametrize("name", ["tars", "parquet"])
    def test_bad_rows_are_left_out(self, sources, name, tmp_path, caplog):
        """As without them, in a stream and in memory."""
        options = spoilt(name, sources[name], tmp_path) | {"on_bad_row": "skip"}
        rows, _ = load_rows(DataArguments(**options))
        assert len(rows) == NUMBER and "4 rows left out" in caplog.text
        caplog.clear()
        rows, _ = load_rows(DataArguments(**options, streaming=True, stream_buffer_size=4))
        ids = [row["image_id"] for row in itertools.islice(iter(rows), NUMBER + 1)][:NUMBER]
        expected, _ = load_rows(DataArguments(**sources[name]))
        assert sorted(ids) == sorted(expected["image_id"]) and "4 rows left out" in caplog.text
        assert len(trained(tmp_path / "run", rows)) == 4
        rows, _ = load_rows(DataArguments(**options | {"on_bad_row": "error"}, streaming=True))
        with pytest.raises(ValueError, match=r"in_the_way|row 1[2-5]"):
            next(iter(rows))

    @pytest.mark.parametrize("sources", [1], indirect=True)
    def test_other_workers_share_it_in_another_way(self, stream, tmp_path):
        options = {"save_strategy": "steps", "save_steps": 2}
        trained(tmp_path, stream("tars"), max_steps=2, **options)
        with pytest.raises(ValueError, match="read the stream with 1 processes of 1 workers, not 1 of 2"):
            trained(tmp_path, stream("tars"), **options, dataloader_num_workers=2, resume_from_checkpoint=True)

    @pytest.mark.parametrize("sources", [1], indirect=True)
    def test_what_cannot_be_streamed(self, sources):
        for name in ("karpathy", "folder"):
            with pytest.raises(ValueError, match="--streaming is for tars"):
                load_rows(DataArguments(**sources[name], streaming=True))
        with pytest.raises(ValueError, match="--features x has no effect with --streaming"):
            load_rows(DataArguments(**sources["tars"], streaming=True, features="x"))
