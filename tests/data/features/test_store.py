"""The feature store: what goes in comes out, whatever interrupts it, and nothing else is taken for it."""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import AutoProcessor

from hf_captioners import CaptionCollator
from hf_captioners.data.features.joined_stores import open_features
from hf_captioners.data.features.store import FeatureError, FeatureStore, FeatureWriter
from hf_captioners.data.rows import attach_features


def features_of(image_id, tokens=3, width=4):
    """Features that tell which image they belong to."""
    return torch.arange(tokens * width).reshape(tokens, width) / 16 + image_id


def write_store(folder, ids=(1, 2, 3), **kwargs):
    with FeatureWriter(folder, **kwargs) as writer:
        for image_id in ids:
            writer.add(image_id, features_of(image_id))
    return folder


def edit_index(folder, **fields):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **fields}))


class TestRoundTrip:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_regions_of_different_numbers(self, tmp_path, dtype):
        rows = {5: torch.randn(1, 8), 3: torch.randn(7, 8), "a/b.jpg": torch.randn(4, 8), "5": torch.randn(2, 8)}
        with FeatureWriter(tmp_path / "out", dtype=dtype, metadata={"backbone": "swin", "size": (384, 384)}) as writer:
            for image_id, features in rows.items():
                writer.add(image_id, features)
        store = FeatureStore(tmp_path / "out")
        assert store.ids == [5, 3, "a/b.jpg", "5"]  # an int and a str are different ids
        assert (len(store), store.feature_size, store.dtype) == (4, 8, dtype)
        assert store.metadata == {"backbone": "swin", "size": [384, 384]}
        for image_id, features in rows.items():
            assert torch.equal(store[image_id], features.to(dtype))

    def test_numpy_and_ids_of_numpy(self, tmp_path):
        with FeatureWriter(tmp_path) as writer:
            writer.add(np.int64(3), np.ones((2, 4), dtype=np.float64))
        assert FeatureStore(tmp_path)[3].tolist() == [[1.0] * 4] * 2

    def test_what_was_added_may_change_afterwards(self, tmp_path):
        features = torch.ones(2, 4)
        with FeatureWriter(tmp_path, dtype=torch.float32) as writer:
            writer.add(1, features)
            features.zero_()
        assert FeatureStore(tmp_path)[1].sum() == 8

    def test_changing_what_was_read_does_not_reach_the_next_read(self, tmp_path):
        store = FeatureStore(write_store(tmp_path))
        store[1].zero_()
        assert torch.equal(store[1], features_of(1).half())

    def test_shards(self, tmp_path):
        one_image = features_of(0).half().nbytes
        store = FeatureStore(write_store(tmp_path, range(5), shard_bytes=2 * one_image))
        shards = sorted(tmp_path.glob("*.safetensors"))
        assert [path.name for path in shards] == [f"features-0000{number}.safetensors" for number in range(3)]
        assert store.num_bytes == sum(path.stat().st_size for path in shards)
        assert all(torch.equal(store[image_id], features_of(image_id).half()) for image_id in range(5))

    def test_files_have_the_permissions_of_other_files(self, tmp_path):
        (tmp_path / "other").touch()
        write_store(tmp_path / "out")
        assert {path.stat().st_mode for path in (tmp_path / "out").iterdir()} == {(tmp_path / "other").stat().st_mode}

    def test_empty_store(self, tmp_path):
        store = FeatureStore(write_store(tmp_path, ids=()))
        assert (len(store), store.feature_size, store.ids) == (0, None, [])

    def test_missing_image(self, tmp_path):
        store = FeatureStore(write_store(tmp_path))
        assert 1 in store
        assert 9 not in store
        with pytest.raises(KeyError, match=r"no features of image 9 in .* \(3 images\)") as error:
            store[9]
        assert str(tmp_path) in str(error.value)


class TestRefusedAtWriting:
    @pytest.mark.parametrize(
        ("features", "message"),
        [
            (torch.tensor([[1.0, float("nan"), 0, 0]]), "have NaN or infinity$"),
            (torch.tensor([[1.0, float("inf"), 0, 0]]), "have NaN or infinity$"),
            (torch.tensor([[1.0, 70000, 0, 0]]), "features in float16 have NaN or infinity, too large for it"),
            (torch.ones(3, 5), "features are 5 wide, those in .* 4"),
            (torch.ones(4), r"of shape \[4\], expected floating point of shape \[num_tokens, feature_size\]"),
            (torch.ones(1, 3, 4), r"of shape \[1, 3, 4\]"),
            (torch.ones(0, 4), "with at least one token"),
            (torch.ones(3, 4, dtype=torch.int64), "torch.int64 of shape"),
            (torch.ones(3, 4, dtype=torch.complex64), "torch.complex64 of shape"),
        ],
    )
    def test_features(self, tmp_path, features, message):
        with FeatureWriter(tmp_path) as writer:
            writer.add(1, features_of(1))
            with pytest.raises(FeatureError, match=message) as error:
                writer.add(42, features)
            assert "image 42" in str(error.value)
            assert 42 not in writer
        assert FeatureStore(tmp_path).ids == [1]

    def test_numbers_that_cannot_be_computed_with(self, tmp_path):
        with FeatureWriter(tmp_path, dtype=torch.float32) as writer:
            writer.add(1, torch.full((2, 4), -1e12))
            with pytest.raises(FeatureError, match=r"image 2: features have 1e\+13, expected at most 1e\+12"):
                writer.add(2, torch.full((2, 4), -1e13))

    @pytest.mark.parametrize("image_id", [True, 1.5, None, torch.tensor(1)])
    def test_id(self, tmp_path, image_id):
        with FeatureWriter(tmp_path) as writer, pytest.raises(FeatureError, match="expected int or str"):
            writer.add(image_id, features_of(1))

    def test_image_twice(self, tmp_path):
        with FeatureWriter(tmp_path) as writer:
            writer.add(1, features_of(1))
            with pytest.raises(FeatureError, match="image 1: its features are already in"):
                writer.add(1, features_of(1))

    def test_settings(self, tmp_path):
        with pytest.raises(ValueError, match=r"dtype=torch\.int8"):
            FeatureWriter(tmp_path, dtype=torch.int8)
        with pytest.raises(ValueError, match="shard_bytes=0"):
            FeatureWriter(tmp_path, shard_bytes=0)


class TestResuming:
    def test_exception_keeps_what_was_added(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), FeatureWriter(tmp_path) as writer:
            writer.add(1, features_of(1))
            raise KeyboardInterrupt
        with pytest.raises(FeatureError, match="writing these features was interrupted"):
            FeatureStore(tmp_path)
        with FeatureWriter(tmp_path) as writer:
            assert 1 in writer
            assert len(writer) == 1
            writer.add(2, features_of(2))
        assert FeatureStore(tmp_path).ids == [1, 2]

    def test_killed_process_keeps_its_finished_shards(self, tmp_path):
        script = f"""
            import os, torch
            from hf_captioners.data.features.store import FeatureWriter
            with FeatureWriter({str(tmp_path)!r}, shard_bytes=40) as writer:
                for image_id in range(5):
                    writer.add(image_id, torch.full((3, 4), float(image_id)))  # 24 bytes: two make a shard
                os.kill(os.getpid(), 9)
        """
        killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
        assert killed.returncode == -9, killed.stderr
        with FeatureWriter(tmp_path, shard_bytes=40) as writer:
            assert [image_id for image_id in range(6) if image_id in writer] == [0, 1, 2, 3]
            writer.add(4, torch.full((3, 4), 4.0))
        store = FeatureStore(tmp_path)
        assert [store[image_id][0, 0].item() for image_id in store.ids] == [0, 1, 2, 3, 4]

    def test_leftovers_of_a_kill_between_shard_and_index(self, tmp_path):
        write_store(tmp_path, [1])
        save_file({"0": torch.zeros(3, 4)}, tmp_path / "features-00001.safetensors")
        left = tmp_path / f".features-00001.safetensors.{'0' * 32}.tmp"
        left.mkdir()
        (left / "features-00001.safetensors").write_bytes(b"half")
        write_store(tmp_path, [2])
        store = FeatureStore(tmp_path)
        assert torch.equal(store[2], features_of(2).half())
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "features-00000.safetensors",
            "features-00001.safetensors",
            "index.json",
            "verified.json",
        ]

    def test_finished_store_can_be_extended(self, tmp_path):
        write_store(tmp_path, [1])
        before = (tmp_path / "features-00000.safetensors").stat()
        write_store(tmp_path, [2])
        assert FeatureStore(tmp_path).ids == [1, 2]
        assert (tmp_path / "features-00000.safetensors").stat().st_mtime_ns == before.st_mtime_ns

    def test_failing_at_once_leaves_a_finished_store_finished(self, tmp_path):
        write_store(tmp_path, [1])
        with pytest.raises(RuntimeError), FeatureWriter(tmp_path):
            raise RuntimeError
        assert FeatureStore(tmp_path).ids == [1]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"dtype": torch.float32, "metadata": {"backbone": "swin"}}, "dtype: 'float16' there, 'float32' now"),
            ({"metadata": {"backbone": "clip"}}, "backbone: 'swin' there, 'clip' now"),
            ({}, "backbone: 'swin' there, None now"),
        ],
    )
    def test_other_settings(self, tmp_path, settings, message):
        write_store(tmp_path, metadata={"backbone": "swin"})
        with pytest.raises(FeatureError, match=message), FeatureWriter(tmp_path, **settings):
            pass
        assert len(FeatureStore(tmp_path)) == 3

    def test_other_width(self, tmp_path):
        write_store(tmp_path)
        with FeatureWriter(tmp_path) as writer, pytest.raises(FeatureError, match="image 9: features are 8 wide"):
            writer.add(9, torch.ones(2, 8))

    def test_foreign_shards_are_not_overwritten(self, tmp_path):
        (tmp_path / "features-00000.safetensors").write_bytes(b"precious")
        with pytest.raises(FeatureError, match=r"features without an index\.json would be overwritten"):
            write_store(tmp_path)
        assert (tmp_path / "features-00000.safetensors").read_bytes() == b"precious"

    def test_errors_are_noted_and_may_be_mended(self, tmp_path):
        with FeatureWriter(tmp_path) as writer:
            writer.record_error(1, "x.jpg: truncated")
            writer.record_error(2, "y.jpg: no such file")
        assert FeatureStore(tmp_path).errors == {1: "x.jpg: truncated", 2: "y.jpg: no such file"}
        with FeatureWriter(tmp_path) as writer:
            assert 1 not in writer
            writer.add(1, features_of(1))
            assert writer.errors == {2: "y.jpg: no such file"}
        assert FeatureStore(tmp_path).errors == {2: "y.jpg: no such file"}


class TestDamage:
    def test_not_a_store(self, tmp_path):
        with pytest.raises(FeatureError, match=r"no index\.json, so this is not a folder of image features"):
            FeatureStore(tmp_path)
        with pytest.raises(FeatureError, match="not a folder of image features"):
            FeatureStore(tmp_path / "none")

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "not the index"), (b"{}", "field 'format' is not")],
    )
    def test_index_is_something_else(self, tmp_path, content, message):
        (tmp_path / "index.json").write_bytes(content)
        with pytest.raises(FeatureError, match=message) as error:
            FeatureStore(tmp_path)
        assert str(tmp_path / "index.json") in str(error.value)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"version": 3}, "field 'version' is 3, this release reads 1 and 2"),
            ({"shards": [{"file": "features-00000.safetensors", "bytes": 1, "ids": [1, 1]}]}, "image 1 is in it twice"),
            (
                {"shards": [{"file": "features-00000.safetensors", "bytes": 1, "ids": []}] * 2},
                r"shard 'features-00000\.safetensors' is in it twice",
            ),
            ({"dtype": "int8"}, "field 'dtype' is 'int8'"),
            ({"shards": [{"file": "../x.safetensors", "bytes": 1, "ids": []}]}, "'../x.safetensors' is not the name"),
            ({"shards": [{"file": "features-00000.safetensors"}]}, "damaged, KeyError: 'ids'"),
            ({"feature_size": "4"}, "field 'feature_size' is not a number"),
            ({"complete": None}, "field 'complete'"),
            ({"shards": 5}, "damaged, TypeError"),
        ],
    )
    def test_index_is_wrong(self, tmp_path, fields, message):
        edit_index(write_store(tmp_path), **fields)
        with pytest.raises(FeatureError, match=message):
            FeatureStore(tmp_path)

    @pytest.mark.parametrize("opened_by", [FeatureStore, lambda folder: FeatureWriter(folder).__enter__()])
    def test_shard_missing_or_truncated(self, tmp_path, opened_by):
        shard = write_store(tmp_path) / "features-00000.safetensors"
        size = shard.stat().st_size
        os.truncate(shard, size - 10)
        with pytest.raises(FeatureError, match=f"damaged, it has {size - 10} bytes instead of {size}") as error:
            opened_by(tmp_path)
        assert str(shard) in str(error.value)
        shard.unlink()
        with pytest.raises(FeatureError, match="this shard of the features is missing"):
            opened_by(tmp_path)

    def test_shard_overwritten(self, tmp_path):
        shard = write_store(tmp_path) / "features-00000.safetensors"
        shard.write_bytes(b"x" * shard.stat().st_size)
        with pytest.raises(FeatureError, match=r"features-00000\.safetensors: damaged, its content is not what was"):
            FeatureStore(tmp_path)
        with pytest.raises(FeatureError, match=r"features-00000\.safetensors: damaged, cannot read the features of im"):
            FeatureStore(tmp_path, verify=False)[1]

    def test_shard_deleted_after_opening(self, tmp_path):
        store = FeatureStore(write_store(tmp_path))
        (tmp_path / "features-00000.safetensors").unlink()
        with pytest.raises(FeatureError, match="damaged, cannot read the features of image 2"):
            store[2]

    def test_shard_of_another_store(self, tmp_path):
        write_store(tmp_path)
        edit_index(tmp_path, feature_size=5)
        with pytest.raises(FeatureError, match=r"features of image 1 are torch\.float16 of shape \[3, 4\]"):
            FeatureStore(tmp_path)[1]


def flip_a_bit(path, keep_times=False):
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class TestChecksums:
    @pytest.mark.parametrize("keep_times", [False, True])
    def test_a_flipped_bit(self, tmp_path, keep_times):
        shard = write_store(tmp_path) / "features-00000.safetensors"
        flip_a_bit(shard, keep_times)
        with pytest.raises(
            FeatureError, match=r"features-00000\.safetensors: damaged, its content is not what was wri"
        ):
            FeatureStore(tmp_path)

    def test_a_shard_in_the_place_of_another(self, tmp_path):
        write_store(tmp_path, range(4), shard_bytes=48)
        shutil.copy(tmp_path / "features-00000.safetensors", tmp_path / "features-00001.safetensors")
        with pytest.raises(FeatureError, match=r"features-00001\.safetensors: damaged"):
            FeatureStore(tmp_path)

    def test_ids_in_another_order(self, tmp_path):
        """The shard is whole, and says itself what it holds."""
        shards = json.loads((write_store(tmp_path) / "index.json").read_text())["shards"]
        edit_index(tmp_path, shards=[{**shards[0], "ids": [3, 2, 1]}])
        with pytest.raises(FeatureError, match=r"features-00000.* features of other images than index\.json says"):
            FeatureStore(tmp_path)[1]

    def test_they_are_compared_once_after_a_copy_and_on_demand(self, tmp_path, monkeypatch):
        read = []

        def sha256(path):
            read.append(path.name)
            return hashlib.sha256(path.read_bytes()).hexdigest()

        monkeypatch.setattr("hf_captioners.data.features.store_index.sha256_of", sha256)
        folder = write_store(tmp_path / "store", range(4), shard_bytes=48)
        FeatureStore(folder)
        assert read == []  # they were written here
        copied = shutil.copytree(folder, tmp_path / "copy")
        FeatureStore(copied)
        assert read == ["features-00000.safetensors", "features-00001.safetensors"]
        FeatureStore(copied)
        assert len(read) == 2
        FeatureStore(copied, verify=True)
        assert len(read) == 4

    def test_going_on_vouches_for_its_own_shards_only(self, tmp_path):
        write_store(tmp_path, [1])
        flip_a_bit(tmp_path / "features-00000.safetensors")
        write_store(tmp_path, [2])
        with pytest.raises(FeatureError, match=r"features-00000\.safetensors: damaged"):
            FeatureStore(tmp_path)

    def test_stores_of_version_1(self, tmp_path):
        """Written as the first release did: no checksums, no ids in the shards."""
        rows = {"0": features_of(1).half(), "1": features_of(2).half()}
        save_file(rows, tmp_path / "features-00000.safetensors")
        size = (tmp_path / "features-00000.safetensors").stat().st_size
        shards = [{"file": "features-00000.safetensors", "bytes": size, "ids": [1, 2]}]
        index = {"format": "hf_captioners.image_features", "version": 1, "complete": True, "count": 2}
        index |= {"feature_size": 4, "dtype": "float16", "metadata": {}, "errors": [], "shards": shards}
        (tmp_path / "index.json").write_text(json.dumps(index))
        assert torch.equal(FeatureStore(tmp_path)[2], features_of(2).half())
        store = FeatureStore(write_store(tmp_path, [3]))
        assert [torch.equal(store[image_id], features_of(image_id).half()) for image_id in store.ids] == [True] * 3


class TestChecked:
    """Features are looked at when they are written; when they are read, only where nobody is known to have done so."""

    def collate(self, store, processor):
        rows = datasets.Dataset.from_dict({"image_id": store.ids, "captions": [["a red circle"]] * len(store)})
        pictured = attach_features(rows, store)
        assert type(pictured[0]) is type(pictured.__getitems__([0])[0])
        return CaptionCollator(processor)([pictured[number] for number in range(len(store))])

    @pytest.fixture
    def processor(self, tiny_captioner_dir):
        return AutoProcessor.from_pretrained(tiny_captioner_dir)

    def test_once(self, tmp_path, processor, monkeypatch):
        write_store(tmp_path / "a", ids=(1, 2))
        write_store(tmp_path / "b", ids=(3,))
        store = open_features([tmp_path / "a", tmp_path / "b"])
        assert store.is_checked
        expected = self.collate(store, processor)
        for module in ("training.collator", "modeling.processing_captioner"):
            monkeypatch.setattr(f"hf_captioners.{module}.check_features", None)
        batch = self.collate(store, processor)
        assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)

    @pytest.mark.parametrize("how", ["not verified", "earlier release", "version 1"])
    def test_each_time(self, tmp_path, processor, how):
        write_store(tmp_path, ids=(1, 2))
        path = tmp_path / "features-00000.safetensors"
        tensors = {"0": torch.ones(3, 4).half(), "1": torch.full((3, 4), torch.nan).half()}
        save_file(tensors, path, {"ids": json.dumps([1, 2])})
        index = json.loads((tmp_path / "index.json").read_text())
        shard = {**index["shards"][0], "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        if how == "version 1":
            del shard["sha256"]
            edit_index(tmp_path, version=1)
        edit_index(tmp_path, shards=[shard], checked=how == "not verified")
        store = FeatureStore(tmp_path, verify=None if how != "not verified" else False)
        assert not store.is_checked
        with pytest.raises(ValueError, match="image_id 2: image_features contains NaN or infinity"):
            self.collate(store, processor)

    def test_what_an_earlier_release_has_begun(self, tmp_path):
        write_store(tmp_path, ids=(1,))
        edit_index(tmp_path, checked=False)
        with FeatureWriter(tmp_path) as writer:
            writer.add(2, features_of(2))
        assert not FeatureStore(tmp_path).is_checked


class TestProcesses:
    def test_two_writers(self, tmp_path):
        with FeatureWriter(tmp_path) as writer:
            writer.add(1, features_of(1))
            with pytest.raises(FeatureError, match=f"{tmp_path}: another process is writing"):
                FeatureWriter(tmp_path).__enter__()
            script = f"""
                from hf_captioners.data.features.store import FeatureWriter
                with FeatureWriter({str(tmp_path)!r}):
                    pass
            """
            other = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
            assert other.returncode == 1 and "another process is writing features into it" in other.stderr
        store = FeatureStore(write_store(tmp_path, [2]))  # the lock is free again
        assert store.ids == [1, 2]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
    @pytest.mark.parametrize("name", ["index.json", "features-00000.safetensors"])
    def test_a_fifo_is_not_waited_for(self, tmp_path, name):
        (write_store(tmp_path) / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(FeatureError, match="is not a regular file"):
            FeatureStore(tmp_path)

    def test_pickle_with_open_shards(self, tmp_path):
        store = FeatureStore(write_store(tmp_path))
        store[1]
        assert torch.equal(pickle.loads(pickle.dumps(store))[3], features_of(3).half())

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_workers(self, tmp_path, method):
        store = FeatureStore(write_store(tmp_path / "out", range(6), shard_bytes=40))
        store[0]  # opened before the fork
        rows = attach_features(datasets.Dataset.from_dict({"image_id": [5, 0, 3, 1]}), store)
        loader = DataLoader(rows, 2, num_workers=2, multiprocessing_context=method, collate_fn=list)
        batches = [row for batch in loader for row in batch]
        assert [row["image_id"] for row in batches] == [5, 0, 3, 1]
        assert all(torch.equal(row["image_features"], features_of(row["image_id"]).half()) for row in batches)
