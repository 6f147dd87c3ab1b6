"""ClipCap checkpoints in the original's layout against a forward pass and two beam searches written here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
)

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.conversion import convert
from hf_captioners.conversion.writing import ConversionError

WIDTH, HEADS, LAYERS, POSITIONS, EMBEDDING = 64, 4, 2, 90, 24
END, STOP, FAVOURITES = 0, 14, 4  # "<|endoftext|>", "." and how many words the model likes to write
CAPTIONS = ["a red circle above a blue square.", "two small green stars.", "the large star left of a circle."]


# -- the original, from its description ------------------------------------------------------------------------------


def random_checkpoint(kind: str, seed: int = 0, vocab: int = 269, width: int = WIDTH) -> dict[str, Tensor]:
    """Random weights under ClipCap's names; few words are likely, the full stop among them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.2) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    state = {"gpt.transformer.wte.weight": random(vocab, width, scale=0.02)}
    state["gpt.transformer.wte.weight"][STOP - FAVOURITES + 1 : STOP + 1] *= 30
    state["gpt.transformer.wpe.weight"] = random(POSITIONS, width)
    for index in range(LAYERS):
        layer = f"gpt.transformer.h.{index}."
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            state[f"{layer}{name}.weight"], state[f"{layer}{name}.bias"] = random(rows, columns), random(columns)
        for norm in ("ln_1", "ln_2"):
            state[f"{layer}{norm}.weight"], state[f"{layer}{norm}.bias"] = 1 + random(width), random(width)
        state[f"{layer}attn.bias"] = torch.ones(1, 1, POSITIONS, POSITIONS).tril().bool()  # of older files
        state[f"{layer}attn.masked_bias"] = torch.tensor(-1e4)
    state["gpt.transformer.ln_f.weight"], state["gpt.transformer.ln_f.bias"] = 1 + random(width), random(width)
    state["gpt.lm_head.weight"] = state["gpt.transformer.wte.weight"]
    linears = {"model.0": (width * 4 // 2, EMBEDDING), "model.2": (width * 4, width * 4 // 2)}
    if kind == "transformer":
        linears = {"linear": (3 * width, EMBEDDING)}
        state["clip_project.prefix_const"] = random(4, width)
        for index in range(3):
            layer = f"transformer.layers.{index}."
            linears |= {f"{layer}attn.project": (width, width)}
            linears |= {f"{layer}mlp.fc1": (2 * width, width), f"{layer}mlp.fc2": (width, 2 * width)}
            state[f"clip_project.{layer}attn.to_queries.weight"] = random(width, width)
            state[f"clip_project.{layer}attn.to_keys_values.weight"] = random(2 * width, width)
            for norm in ("norm1", "norm2"):
                state[f"clip_project.{layer}{norm}.weight"] = 1 + random(width)
                state[f"clip_project.{layer}{norm}.bias"] = random(width)
    for name, (rows, columns) in linears.items():
        state[f"clip_project.{name}.weight"], state[f"clip_project.{name}.bias"] = random(rows, columns), random(rows)
    return state


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool) -> Tensor:
    """(L, d) each, head by head."""
    outputs, size = [], query.shape[1] // heads
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:, part].T / math.sqrt(size)
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        outputs.append(scores.softmax(1) @ value[:, part])
    return torch.cat(outputs, dim=1)


def original_prefix(state: dict[str, Tensor], embedding: Tensor) -> Tensor:
    """Image tokens (P, d) of one embedding (D,)."""
    w = {name.removeprefix("clip_project."): value for name, value in state.items() if name.startswith("clip_project.")}
    width = state["gpt.transformer.wte.weight"].shape[1]
    if "model.0.weight" in w:
        hidden = linear(embedding, w["model.0.weight"], w["model.0.bias"]).tanh()
        return linear(hidden, w["model.2.weight"], w["model.2.bias"]).view(-1, width)
    clip = linear(embedding, w["linear.weight"], w["linear.bias"]).view(-1, width)
    hidden = torch.cat((clip, w["prefix_const"]))
    for index in range(sum(name.endswith("fc1.weight") for name in w)):
        x = f"transformer.layers.{index}."
        normed = layer_norm(hidden, (width,), w[f"{x}norm1.weight"], w[f"{x}norm1.bias"])
        both = normed @ w[f"{x}attn.to_keys_values.weight"].T
        mixed = attend(normed @ w[f"{x}attn.to_queries.weight"].T, both[:, :width], both[:, width:], 8, causal=False)
        hidden = hidden + linear(mixed, w[f"{x}attn.project.weight"], w[f"{x}attn.project.bias"])
        normed = layer_norm(hidden, (width,), w[f"{x}norm2.weight"], w[f"{x}norm2.bias"])
        inner = linear(normed, w[f"{x}mlp.fc1.weight"], w[f"{x}mlp.fc1.bias"]).relu()
        hidden = hidden + linear(inner, w[f"{x}mlp.fc2.weight"], w[f"{x}mlp.fc2.bias"])
    return hidden[len(clip) :]


def original_logits(state: dict[str, Tensor], prefix: Tensor, words: list[int], heads: int = HEADS) -> Tensor:
    """Scores (len(words) + 1, V) of the words behind image tokens (P, d): GPT-2 in plain operations."""
    w = {name.removeprefix("gpt.transformer."): value for name, value in state.items()}
    width = prefix.shape[1]
    hidden = torch.cat((prefix, w["wte.weight"][words]))
    hidden = hidden + w["wpe.weight"][: len(hidden)]
    for index in range(LAYERS):
        x = f"h.{index}."
        normed = layer_norm(hidden, (width,), w[f"{x}ln_1.weight"], w[f"{x}ln_1.bias"])
        projected = normed @ w[f"{x}attn.c_attn.weight"] + w[f"{x}attn.c_attn.bias"]
        mixed = attend(*projected.split(width, dim=1), heads, causal=True)
        hidden = hidden + mixed @ w[f"{x}attn.c_proj.weight"] + w[f"{x}attn.c_proj.bias"]
        normed = layer_norm(hidden, (width,), w[f"{x}ln_2.weight"], w[f"{x}ln_2.bias"])
        inner = gelu(normed @ w[f"{x}mlp.c_fc.weight"] + w[f"{x}mlp.c_fc.bias"], approximate="tanh")
        hidden = hidden + inner @ w[f"{x}mlp.c_proj.weight"] + w[f"{x}mlp.c_proj.bias"]
    hidden = layer_norm(hidden, (width,), w["ln_f.weight"], w["ln_f.bias"])
    return hidden[len(prefix) - 1 :] @ state["gpt.lm_head.weight"].T


def original_greedy(state: dict[str, Tensor], prefix: Tensor, length: int) -> list[int]:
    words: list[int] = []
    while len(words) < length and not set(words) & {END, STOP}:
        words.append(int(original_logits(state, prefix, words)[-1].argmax()))
    return words


def original_beams(state: dict[str, Tensor], prefix: Tensor, length: int, beams: int) -> list[tuple[float, list[int]]]:
    """The original's search, hypothesis by hypothesis: (mean log-probability, words), best first."""
    hypotheses: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(length):
        candidates = []
        for total, words in hypotheses:
            if set(words) & {END, STOP}:
                candidates.append((total, words))
                continue
            scores = original_logits(state, prefix, words)[-1].log_softmax(0)
            candidates += [(total + score, [*words, word]) for word, score in enumerate(scores.tolist())]
        hypotheses = sorted(candidates, key=lambda one: -one[0] / len(one[1]))[:beams]
    return [(total / len(words), words) for total, words in hypotheses]


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> Path:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(CAPTIONS, vocab_size=269, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end, unk_token=end)
    assert tokenizer(".").input_ids == [STOP] and len(tokenizer) == 269
    folder = tmp_path_factory.mktemp("gpt2_tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**size, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**size, "image_size": 32, "patch_size": 8, "projection_dim": EMBEDDING},
        projection_dim=EMBEDDING,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(params=["mlp", "transformer"])
def kind(request) -> str:
    return request.param


def converted(folder: Path, state: dict[str, Tensor], tokenizer_dir: Path, **options: Any) -> Any:
    torch.save(state, folder / "clipcap.pt")
    options = {"tokenizer": tokenizer_dir, "num_heads": HEADS, **options}
    return convert("clip_gpt2", folder / "clipcap.pt", folder / "out", **options)


def written(words: Tensor) -> list[int]:
    """The generated words up to the token that ends them."""
    ids = words.tolist()[1:]
    stop = next((index + 1 for index, word in enumerate(ids) if word in (END, STOP)), len(ids))
    assert set(ids[stop:]) <= {END}
    return ids[:stop]


@pytest.mark.parametrize("normalize", [False, True])
def test_logits_are_the_originals(kind, normalize, tokenizer_dir, tmp_path):
    state = random_checkpoint(kind)
    converted(tmp_path, state, tokenizer_dir, normalize_prefix=normalize)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    embeddings, words = 3 * torch.randn(2, EMBEDDING), [[30, 7, 200, 5], [8, 8, 31, 268]]
    with torch.no_grad():
        ours = model(image_features=embeddings, labels=torch.tensor(words)).logits
    for row, (embedding, caption) in enumerate(zip(embeddings, words, strict=True)):
        seen = embedding / embedding.norm() if normalize else embedding
        expected = original_logits(state, original_prefix(state, seen), caption[:-1])
        torch.testing.assert_close(ours[row], expected, atol=2e-4, rtol=1e-4)


def test_captions_are_the_originals(kind, tokenizer_dir, tmp_path):
    state = random_checkpoint(kind, seed=3)
    converted(tmp_path, state, tokenizer_dir)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    embeddings = torch.randn(4, EMBEDDING, generator=torch.Generator().manual_seed(2))
    greedy = model.generate(**processor(image_features=embeddings), num_beams=1, max_new_tokens=12)
    out = model.generate(
        image_features=embeddings,
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=6,
        return_dict_in_generate=True,
        output_scores=True,
    )
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    torch.testing.assert_close(
        steps,
        model.sequence_log_probs(out.sequences, image_features=embeddings.repeat_interleave(3, 0)),
        atol=1e-4,
        rtol=1e-4,
    )
    stopped = []
    for row, embedding in enumerate(embeddings):
        prefix = original_prefix(state, embedding)
        assert written(greedy[row]) == original_greedy(state, prefix, 12)
        expected = original_beams(state, prefix, 6, beams=3)
        assert [written(one) for one in out.sequences[3 * row : 3 * row + 3]] == [words for _, words in expected]
        scores = torch.tensor([score for score, _ in expected])
        torch.testing.assert_close(out.sequences_scores[3 * row : 3 * row + 3], scores, atol=1e-4, rtol=1e-4)
        stopped += [words[-1] == STOP for _, words in expected]
    assert any(stopped) and not all(stopped)  # finished and unfinished hypotheses have competed


def test_transformers_own_beam_search_is_one_option_away(kind, tokenizer_dir, tmp_path):
    state = random_checkpoint(kind, seed=3)
    converted(tmp_path, state, tokenizer_dir)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    embeddings = torch.randn(4, EMBEDDING)
    prefix = torch.stack([original_prefix(state, embedding) for embedding in embeddings])
    ours = model.generate(image_features=embeddings, decoding="standard", max_new_tokens=9)
    options = {"num_beams": 5, "eos_token_id": [END, STOP], "pad_token_id": END}
    own = model.gpt.generate(
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2]), max_new_tokens=9, **options
    )
    assert torch.equal(ours[:, 1:], own)


def test_the_folder_decodes_as_the_original(kind, tokenizer_dir, tmp_path):
    report = converted(tmp_path, random_checkpoint(kind), tokenizer_dir)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    settings = model.generation_config
    assert (settings.num_beams, settings.decoding, settings.max_length) == (5, "paper", 68)
    assert settings.eos_token_id == [END, STOP]
    config = model.config
    assert (config.mapping_type, config.prefix_length, config.feature_size) == (kind, 4, EMBEDDING)
    assert (config.text_config.n_layer, config.text_config.n_head, config.vocab_size) == (LAYERS, HEADS, 269)
    if kind == "transformer":
        assert (config.clip_length, config.mapping_layers, config.mapping_heads, config.mapping_ratio) == (3, 3, 8, 2)
    assert config.features_only and not config.normalize_prefix
    assumed = {"normalize_prefix": False, **({"mapping_heads": 8} if kind == "transformer" else {})}
    assert report.assumed == assumed
    assert report.special_tokens == dict.fromkeys(("PAD", "SOS", "EOS"), (END, "<|endoftext|>"))
    assert model.gpt.lm_head.weight is model.gpt.transformer.wte.weight


def test_every_tensor_is_used_or_named_as_dropped(kind, tokenizer_dir, tmp_path):
    state = random_checkpoint(kind)
    report = converted(tmp_path, state, tokenizer_dir)
    assert sorted(report.used + report.dropped) == sorted(state)
    assert report.dropped == [f"gpt.transformer.h.{i}.attn.{name}" for i in (0, 1) for name in ("bias", "masked_bias")]
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = model.state_dict()
    assert all(torch.equal(ours[name], state[name]) for name in report.used)


def test_safetensors_and_an_untied_head(kind, tokenizer_dir, tmp_path):
    state = {name: value.half() for name, value in random_checkpoint(kind).items() if ".attn.bias" not in name}
    save_file({name: value for name, value in state.items() if "lm_head" not in name}, tmp_path / "x.safetensors")
    convert("clip_gpt2", tmp_path / "x.safetensors", tmp_path / "a", tokenizer=tokenizer_dir, num_heads=HEADS)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "a")
    assert torch.equal(model.gpt.lm_head.weight, state["gpt.transformer.wte.weight"].float())
    state["gpt.lm_head.weight"] = state["gpt.lm_head.weight"] + 1
    converted(tmp_path, state, tokenizer_dir)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert torch.equal(model.gpt.lm_head.weight, state["gpt.lm_head.weight"].float())
    assert torch.equal(model.gpt.transformer.wte.weight, state["gpt.transformer.wte.weight"].float())


def test_with_clip_the_folder_captions_pictures(kind, tokenizer_dir, clip_dir, tmp_path):
    state = random_checkpoint(kind)
    converted(tmp_path, state, tokenizer_dir, clip=clip_dir)
    picture = Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    captioner = hf_captioners.pipeline(model=str(tmp_path / "out"))
    caption = captioner(picture, max_new_tokens=7, num_beams=1)[0]["generated_text"]
    clip = CLIPModel.from_pretrained(clip_dir)
    pixels = CLIPImageProcessorPil.from_pretrained(clip_dir)(picture, return_tensors="pt")
    with torch.no_grad():
        embedding = clip.get_image_features(**pixels).pooler_output[0]
    words = original_greedy(state, original_prefix(state, embedding), 7)
    words = words[:-1] if words[-1] == END else words
    assert caption == captioner.tokenizer.decode(words).strip()
    cached = captioner(embedding[None], max_new_tokens=7, num_beams=1)
    assert cached[0]["generated_text"] == caption


def test_captions_keep_their_full_stop(kind, tokenizer_dir, tmp_path):
    converted(tmp_path, random_checkpoint(kind), tokenizer_dir)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    ids = processor.tokenizer("two small stars.").input_ids
    assert processor.batch_decode([[END, *ids, END, END]]) == ["two small stars."]
    assert processor.batch_decode([[END, *ids, END, END]], sentences=True) == ["Two small stars."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"gpt.transformer.wte.weight": None},
            "not a ClipCap checkpoint: 1 problem: gpt.transformer.wte.weight is miss",
        ),
        ({"gpt.transformer.h.1.ln_1.bias": None}, "1 problem: gpt.transformer.h.1.ln_1.bias is missing"),
        ({"gpt.transformer.h.1.ln_1.bias": torch.ones(3)}, r"ln_1.bias has shape \[3\], expected \[64\]"),
        ({"extra": torch.ones(2)}, r"extra of shape \[2\] is not part of the model"),
        ({"clip_project.linear.weight": torch.ones(65, 24)}, r"has shape \[65, 24\], expected a multiple of 64 rows"),
        ({"clip_project.prefix_const": None}, "not a ClipCap checkpoint with the transformer mapper"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(change, message, tokenizer_dir, tmp_path):
    state = {**random_checkpoint("transformer"), **change}
    with pytest.raises(ConversionError, match=message):
        converted(tmp_path, {name: value for name, value in state.items() if value is not None}, tokenizer_dir)
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_the_options_is_said(tokenizer_dir, clip_dir, tmp_path):
    state = random_checkpoint("mlp")
    with pytest.raises(ConversionError, match="num_heads=5 does not divide the width of GPT-2, 64"):
        converted(tmp_path, state, tokenizer_dir, num_heads=5)
    with pytest.raises(ConversionError, match="no tokenizer could be loaded"):
        converted(tmp_path, state, tmp_path / "nowhere")
    with pytest.raises(ConversionError, match="no image tower could be loaded"):
        converted(tmp_path, state, tokenizer_dir, clip=tmp_path / "nowhere")
    with pytest.raises(ConversionError, match="has 269 tokens, but the checkpoint embeddings for 290"):
        converted(tmp_path, random_checkpoint("mlp", vocab=290), tokenizer_dir)
    with pytest.raises(ConversionError, match="GPT-2 is 48 wide, not a multiple of 64"):
        converted(tmp_path, random_checkpoint("mlp", width=48), tokenizer_dir, num_heads=None)
    state = {name: value[..., :-1] if name.endswith("model.0.weight") else value for name, value in state.items()}
    with pytest.raises(ConversionError, match="gives embeddings of 24, but the checkpoint was trained on 23"):
        converted(tmp_path, state, tokenizer_dir, clip=clip_dir)
    with pytest.raises(ValueError, match="has no use with clip_gpt2"):
        converted(tmp_path, state, tokenizer_dir, infos="infos.pkl")
    assert not (tmp_path / "out").exists()


def test_command_line(tokenizer_dir, clip_dir, tmp_path, capsys):
    torch.save(random_checkpoint("mlp"), tmp_path / "clipcap.pt")
    options = ["--tokenizer", str(tokenizer_dir), "--clip", str(clip_dir), "--normalize-prefix", "--num-heads", "4"]
    command = ["convert", "clip_gpt2", str(tmp_path / "clipcap.pt"), "--out", str(tmp_path / "out"), *options]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"out_dir": str(tmp_path / "out")}
    assert "4 dropped" in printed.err and "2 x gpt.transformer.h.*.attn.masked_bias" in printed.err
    assert "assumed" not in printed.err
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert model.config.normalize_prefix and model.backbone is not None


def test_the_real_tokenizer_and_the_heads_of_the_released_models(shared_data, tmp_path):
    """GPT-2's vocabulary, and heads 64 wide without being told."""
    state = random_checkpoint("transformer", vocab=50257, width=128)
    favourites = torch.tensor([13, 262, 3290, 4539, 257])  # ".", " the", " dog", " runs", " a"
    state["gpt.transformer.wte.weight"][favourites] *= 30
    folder = shared_data / "gpt2_tokenizer"
    report = converted(tmp_path, state, folder, num_heads=None)
    assert report.assumed["num_heads"] == 2
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == [50256, 13]
    embedding = torch.randn(1, EMBEDDING, generator=torch.Generator().manual_seed(0))
    ids = model.generate(**processor(image_features=embedding), num_beams=1, max_new_tokens=6)
    prefix = original_prefix(state, embedding[0])
    words: list[int] = []
    while len(words) < 6 and not set(words) & {50256, 13}:
        words.append(int(original_logits(state, prefix, words, heads=2)[-1].argmax()))
    assert ids[0, 1 : len(words) + 1].tolist() == words
    assert processor.batch_decode(ids)[0] == processor.tokenizer.decode(words).strip()
