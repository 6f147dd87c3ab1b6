"""The caption retriever: the nearest captions against a plain loop, its own left out, ties, and broken folders."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random

import pytest
import torch
from contracts.metric import random_images
from contracts.tiny_retriever import CAPTIONS, IDS, POOL, rows, save_clip
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from hf_captioners.inference.build_retriever import build_retriever, pool_captions
from hf_captioners.metrics.clip.features import ClipFeatures
from hf_captioners.modeling.captioner_retriever import CaptionRetriever, RetrieverError


def nearest_by_loop(query, embeddings, allowed, top):
    """Cosines one by one, in Python's numbers; the first of equal ones wins."""
    query, embeddings = torch.nn.functional.normalize(query, dim=0), torch.nn.functional.normalize(embeddings.float())
    found = []
    for place in allowed:
        cosine = sum(a * b for a, b in zip(query.tolist(), embeddings[place].tolist(), strict=True))
        found.append((-round(cosine, 10), place))
    return [place for _, place in sorted(found)[:top]]


def whole_vectors(number, width, seed):
    """Vectors of few whole numbers: many are equal."""
    draw = random.Random(seed)
    return torch.tensor([[draw.choice([1, 2, 3]) for _ in range(width)] for _ in range(number)]).float()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("retriever") / "retrieval"
    build_retriever(rows(), clip, folder, device="cpu")
    return folder


class TestNearest:
    def test_it_finds_what_a_loop_finds(self):
        embeddings, queries = whole_vectors(60, 3, 1), whole_vectors(20, 3, 2)
        owners = [[place // 5] for place in range(60)]  # pictures 0 to 11 have five captions each
        retriever = CaptionRetriever([str(place) for place in range(60)], owners, embeddings, "clip")
        for top in (1, 7, 58):
            found = retriever.nearest(queries, top, list(range(20)))
            for row, query in enumerate(queries):
                allowed = [place for place in range(60) if place // 5 != row]
                assert found[row] == [str(place) for place in nearest_by_loop(query, embeddings, allowed, top)]

    def test_neither_batches_nor_chunks_change_anything(self, monkeypatch):
        embeddings, queries = torch.randn(50, 8), torch.randn(9, 8)
        embeddings[7] = embeddings[41] = embeddings[20]
        queries[3] = embeddings[20] * 5
        retriever = CaptionRetriever([str(place) for place in range(50)], [[]] * 50, embeddings, "clip")
        together = retriever.nearest(queries, 4)
        assert together[3][:3] == ["7", "20", "41"]
        assert [retriever.nearest(query[None], 4)[0] for query in queries] == together
        monkeypatch.setattr("hf_captioners.modeling.captioner_retriever._CELLS", 120)
        assert retriever.nearest(queries, 4) == together

    def test_a_picture_without_other_captions_is_named(self):
        retriever = CaptionRetriever(["a", "b"], [[1], [1]], torch.eye(2), "clip")
        assert retriever.nearest(torch.ones(1, 2), 5, [2]) == [["a", "b"]]
        with pytest.raises(RetrieverError, match="image 1 has all captions"):
            retriever.nearest(torch.ones(1, 2), 1, [1])
        with pytest.raises(RetrieverError, match=r"shape \(1, 3\).*expected \(images, 2\)"):
            retriever.nearest(torch.ones(1, 3))

    def test_faiss_finds_the_same(self):
        pytest.importorskip("faiss")
        embeddings, queries = torch.randn(200, 8), torch.randn(30, 8)
        owners = [[place // 5] for place in range(200)]
        found = [
            CaptionRetriever([str(place) for place in range(200)], owners, embeddings, "clip", search).nearest(
                queries, 3, list(range(30))
            )
            for search in ("exact", "faiss")
        ]
        assert found[0] == found[1]

    def test_without_faiss_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "faiss", None)
        retriever = CaptionRetriever(["a", "b"], [[], []], torch.eye(2), "clip", search="faiss")
        with pytest.raises(ImportError, match=r"pip install faiss-cpu datasets, or take search=\"exact\""):
            retriever.nearest(torch.ones(1, 2))

    def test_pools_that_are_none(self):
        for captions, ids, embeddings, message in (
            ([], [], torch.zeros(0, 2), "0 captions"),
            (["a"], [[1]], torch.ones(2, 2), "expected as many of each"),
            (["a", "b"], [[1], [2]], torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "embedding 1 has the length 0"),
            (["a"], [[1]], torch.full((1, 2), torch.nan), "embedding 0 has the length nan"),
        ):
            with pytest.raises(RetrieverError, match=message):
                CaptionRetriever(captions, ids, embeddings, "clip")
        with pytest.raises(RetrieverError, match="search='near'"):
            CaptionRetriever(["a"], [[1]], torch.ones(1, 2), "clip", search="near")


class TestFolder:
    def test_captions_that_are_alike_are_one(self, folder):
        retriever = CaptionRetriever.from_pretrained(folder)
        assert retriever.captions == pool_captions(rows())[0] == POOL
        assert retriever.image_ids[0] == [0, 1, 2]

    def test_pictures_get_the_nearest_captions_but_not_their_own(self, folder, clip):
        retriever, features = CaptionRetriever.from_pretrained(folder), ClipFeatures(clip)
        images, texts = features.image_features(random_images(4)), features.text_features(POOL).half()
        found = retriever(random_images(4), 7, IDS)
        for row, own in enumerate(CAPTIONS):
            known = {" ".join(caption.lower().split()).rstrip(" .") for caption in own}
            allowed = [place for place, text in enumerate(POOL) if text.lower().rstrip(" .") not in known]
            assert found[row] == [POOL[place] for place in nearest_by_loop(images[row], texts, allowed, 7)]
        assert retriever(random_images(1), 7)[0] != found[0]

    def test_saved_again_it_is_the_same(self, folder, tmp_path):
        loaded = CaptionRetriever.from_pretrained(folder)
        loaded.save_pretrained(tmp_path / "unused")
        expected = loaded(random_images(4), 3)
        loaded.save_pretrained(tmp_path / "used")
        for place in ("unused", "used"):
            again = CaptionRetriever.from_pretrained(tmp_path / place)
            assert again(random_images(4), 3) == expected
        assert pickle.loads(pickle.dumps(again))(random_images(4), 3) == expected
        assert copy.deepcopy(again) is again

    @pytest.mark.parametrize(
        "name, change, message",
        [
            ("retriever_config.json", None, "no caption retriever"),
            ("retriever_config.json", lambda text: text[:20], "retriever_config.json: cannot be read"),
            ("retriever_config.json", lambda text: text.replace('"width"', '"depth"'), "no width"),
            ("retriever_config.json", lambda text: text.replace('"version": 1', '"version": 2'), "version 2"),
            ("captions.jsonl", None, "captions.jsonl: cannot be read"),
            ("captions.jsonl", lambda text: text.split("\n", 1)[1], r"has 6 captions of width 8, but .* says 7"),
            ("captions.jsonl", lambda text: text[:-9], "cannot be read after 6 captions"),
            (
                "captions.jsonl",
                lambda text: text.replace("image_ids", "images", 1),
                "line 1 has no list of 'image_ids'",
            ),
            ("captions.safetensors", None, "captions.safetensors: cannot be read"),
            ("captions.safetensors", lambda text: text[:30], "captions.safetensors: cannot be read"),
        ],
    )
    def test_a_broken_folder_is_named(self, folder, tmp_path, name, change, message):
        CaptionRetriever.from_pretrained(folder).save_pretrained(tmp_path)
        text = (tmp_path / name).read_text(encoding="latin-1")
        (tmp_path / name).unlink()
        if change is not None:
            (tmp_path / name).write_text(change(text), encoding="latin-1")
        with pytest.raises(RetrieverError, match=message):
            CaptionRetriever.from_pretrained(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
    @pytest.mark.parametrize("name", ["retriever_config.json", "captions.jsonl", "captions.safetensors"])
    def test_a_fifo_is_not_waited_for(self, folder, tmp_path, name):
        CaptionRetriever.from_pretrained(folder).save_pretrained(tmp_path)
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        with pytest.raises(RetrieverError, match=f"{name}: is no file"):
            CaptionRetriever.from_pretrained(tmp_path)

    def test_embeddings_of_another_retriever(self, folder, tmp_path):
        CaptionRetriever.from_pretrained(folder).save_pretrained(tmp_path)
        save_file({"embeddings": torch.ones(7, 5)}, tmp_path / "captions.safetensors")
        with pytest.raises(RetrieverError, match=r"has 7 captions of width 5, but .* says 7 and 8"):
            CaptionRetriever.from_pretrained(tmp_path)
        save_file({"texts": torch.ones(7, 5)}, tmp_path / "captions.safetensors")
        with pytest.raises(RetrieverError, match="has no embeddings"):
            CaptionRetriever.from_pretrained(tmp_path)

    def test_another_encoder_than_the_captions_were_embedded_with(self, folder, tmp_path):
        CaptionRetriever.from_pretrained(folder).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["text_projection.weight"].mul_(-1)
        save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(RetrieverError, match="is not the dual encoder that the captions"):
            CaptionRetriever.from_pretrained(tmp_path)(random_images(1))
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(RetrieverError, match="dual encoder of the retriever cannot be loaded"):
            CaptionRetriever.from_pretrained(tmp_path)(random_images(1))

    def test_an_encoder_that_is_none(self, tmp_path):
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path / "bert")
        with pytest.raises(ValueError, match="BertModel is no CLIPModel"):
            build_retriever(rows(), tmp_path / "bert", tmp_path / "out", device="cpu")

    def test_what_is_there_stays(self, folder, clip):
        before = json.loads((folder / "retriever_config.json").read_text())
        with pytest.raises(ValueError, match="is not empty"):
            build_retriever(rows(), clip, folder, device="cpu")
        assert json.loads((folder / "retriever_config.json").read_text()) == before
