"""Several stores as one: every image from its own, and what does not belong together is refused."""

from __future__ import annotations

import pickle

import pytest
import torch

from hf_captioners.data.features.joined_stores import open_features
from hf_captioners.data.features.store import FeatureError, FeatureStore, FeatureWriter


@pytest.fixture
def write(tmp_path):
    def written(name, *ids, width=4, **options):
        with FeatureWriter(tmp_path / name, **options) as writer:
            for image_id in ids:
                boxes = torch.full((2, 4), float(image_id))
                writer.add(image_id, torch.full((2, width), float(image_id)), {"boxes": boxes})
            writer.record_error(f"no {name}", "cut off")
        return tmp_path / name

    return written


def test_every_image_is_that_of_its_store(write):
    folders = [write("a", 1, 2, metadata={"regions": "a.tsv"}), write("b", 3, metadata={"regions": "b.tsv"})]
    store = open_features(folders)
    assert isinstance(store, FeatureStore)
    assert (store.ids, len(store), store.feature_size, store.dtype) == ([1, 2, 3], 3, 4, torch.float16)
    assert 3 in store and 4 not in store
    assert all(torch.equal(store[one], torch.full((2, 4), float(one), dtype=torch.float16)) for one in store.ids)
    assert torch.equal(store.extra(3, "boxes"), torch.full((2, 4), 3.0))
    assert store.errors == {"no a": "cut off", "no b": "cut off"}
    assert store.num_bytes == sum(FeatureStore(folder).num_bytes for folder in folders)
    assert torch.equal(pickle.loads(pickle.dumps(store))[3], store[3])  # into workers
    with pytest.raises(KeyError, match=r"no features of image 4 in .*a, .*b \(3 images\)"):
        store[4]


def test_one(write):
    folder = write("a", 1)
    assert open_features(folder).folder == open_features([folder]).folder == folder


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ids": (3, 1)}, r"b: features of image 1 are in .*a, too"),
        ({"width": 5}, r"b: features made otherwise than those of .*a \(width: 4 there, 5 here\)"),
        ({"dtype": torch.float32}, r"\(dtype: torch.float16 there, torch.float32 here\)"),
        ({"metadata": {"l2_norm": True}}, r"\(l2_norm: None there, True here\)"),
    ],
)
def test_what_does_not_belong_together(write, other, message):
    folders = [write("a", 1), write("b", *other.pop("ids", (3,)), **other)]
    with pytest.raises(FeatureError, match=message):
        open_features(folders)
