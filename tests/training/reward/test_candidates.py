"""Candidates: what counts of a caption, chance that depends on nothing but names, and the three strategies."""

from __future__ import annotations

import bisect
import itertools
import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from hf_captioners import (
    ClipGpt2Config,
    ClipGpt2ForImageCaptioning,
    DicoCaptionerConfig,
    DicoForImageCaptioning,
    SaticConfig,
    SaticForImageCaptioning,
    SCSTConfig,
)
from hf_captioners.families import CaptionFamily, family_of
from hf_captioners.modeling.captioner_layers import ended_before
from hf_captioners.training.reward.candidates import (
    STRATEGIES,
    Candidates,
    DiverseChoice,
    SampledChoice,
    generation_options,
    random_numbers,
)

CPU = torch.device("cpu")
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
PICTURES = ("one", "two", "three")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums of several threads differ from run to run in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def options_of(tmp_path, **options) -> SCSTConfig:
    given = {"output_dir": str(tmp_path), "use_cpu": True, "num_generations": 4, "max_completion_length": 7}
    return SCSTConfig(**{**given, **options})


# -- models ----------------------------------------------------------------------------------------------------------


def small_satic(group_size: int = 2, words: int = 14) -> SaticForImageCaptioning:
    sizes = {"d_model": 16, "ffn_dim": 24, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2}
    torch.manual_seed(0)
    config = SaticConfig(vocab_size=words, group_size=group_size, feature_size=12, **sizes, **SPECIAL)
    model = SaticForImageCaptioning(config).eval()
    with torch.no_grad():
        model.model.generator.proj.weight.mul_(3.0)
        model.model.tgt_embed[0].lut.weight.mul_(3.0)
    return model


def small_clip_gpt2() -> ClipGpt2ForImageCaptioning:
    text = {"vocab_size": 14, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64}
    text |= {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model = ClipGpt2ForImageCaptioning(ClipGpt2Config(features_only=True, feature_size=12, text_config=text)).eval()
    with torch.no_grad():
        model.gpt.transformer.wte.weight.mul_(10.0)
        model.gpt.transformer.wpe.weight.mul_(4.0)
    return model


def small_dico() -> DicoForImageCaptioning:
    heads = {"encoder_attention_heads": 3, "decoder_attention_heads": 2}
    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 32}
    torch.manual_seed(0)
    config = DicoCaptionerConfig(
        vocab_size=14, features_only=True, feature_size=12, max_position_embeddings=24, **heads, **sizes, **SPECIAL
    )
    model = DicoForImageCaptioning(config).eval()
    with torch.no_grad():
        model.decoder.transformer.wte.weight.mul_(12.0)
        model.decoder.transformer.ln_f.weight.normal_()  # or every word would be followed by itself
    return model


def small_vision_encoder_decoder() -> VisionEncoderDecoderModel:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    encoder = ViTConfig(image_size=16, patch_size=8, **sizes)
    decoder = GPT2Config(vocab_size=14, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)).eval()
    with torch.no_grad():
        model.decoder.transformer.wte.weight.mul_(15.0)
        model.decoder.transformer.ln_f.weight.normal_()
    model.generation_config.update(decoder_start_token_id=1, eos_token_id=2, pad_token_id=0)
    return model


class Speaker:
    """A model with encoded pictures, and what a trainer does with them."""

    def __init__(self, model: Any, pictures: dict[str, torch.Tensor]) -> None:
        self.model, self.family, self.pictures = model, family_of(model), pictures

    def memory(self, rows: list[int] | None = None) -> Any:
        chosen = {name: one if rows is None else one[rows] for name, one in self.pictures.items()}
        with torch.no_grad():
            return self.family.encode(self.model, self.family.run_backbone(self.model, chosen))

    def write(self, args: SCSTConfig, names: Any = PICTURES, rows: list[int] | None = None) -> torch.Tensor:
        """Candidates (pictures * k, max_completion_length + 1), padded to one width."""
        config = self.model.generation_config
        options = generation_options(args, names, CPU, config.eos_token_id)
        ids = self.model.generate(encoder_outputs=self.memory(rows), **options)
        return torch.nn.functional.pad(
            ids, (0, args.max_completion_length + 1 - ids.shape[1]), value=config.pad_token_id
        )

    @torch.no_grad()
    def next_scores(self, picture: int, prefix: torch.Tensor) -> torch.Tensor:
        """Of every word behind a prefix (T,), from a pass over all of it, as the search of the model sees them."""
        logits = self.model(encoder_outputs=self.memory([picture]), decoder_input_ids=prefix[None]).logits[0, -1]
        return logits.log_softmax(-1) if isinstance(self.model, SaticForImageCaptioning) else logits


def make_speaker(kind: str, tiny_captioner_dir: Any) -> Speaker:
    noise = torch.Generator().manual_seed(5)
    if kind == "expansionnet_v2":
        pixels = torch.randn(3, 3, 32, 32, generator=noise)
        model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir)
        with torch.no_grad():
            model.vocab_linear.weight.mul_(0.25)  # so that chance has a choice
        return Speaker(model, {"pixel_values": pixels})
    if kind == "vision_encoder_decoder":
        return Speaker(small_vision_encoder_decoder(), {"pixel_values": torch.randn(3, 3, 16, 16, generator=noise)})
    model = {"satic": small_satic, "clip_gpt2": small_clip_gpt2, "dico": small_dico}[kind]()
    return Speaker(model, {"image_features": 3 * torch.randn(3, 1 if kind == "clip_gpt2" else 5, 12, generator=noise)})


KINDS = ["expansionnet_v2", "satic", "clip_gpt2", "dico", "vision_encoder_decoder"]


@pytest.fixture(params=KINDS)
def speaker(request, tiny_captioner_dir) -> Speaker:
    return make_speaker(request.param, tiny_captioner_dir)


# -- the draw --------------------------------------------------------------------------------------------------------


def draw(scores: torch.Tensor, uniforms: list[float]) -> list[int]:
    """Words drawn from a row of scores with each of some numbers."""
    choice = SampledChoice(torch.tensor(uniforms, dtype=torch.float64)[:, None])
    out = choice(torch.zeros(len(uniforms), 1), scores.expand(len(uniforms), -1))
    assert out.dtype == scores.dtype
    assert ((out == 0).sum(dim=1) == 1).all()
    assert (out.isinf() | (out == 0)).all()
    return out.argmax(dim=1).tolist()


def test_a_draw_inverts_the_cumulative_distribution():
    scores = torch.tensor([0.1, 0.2, 0.0, 0.4, 0.3]).log()
    uniforms = [0.0, 0.05, 0.099, 0.101, 0.299, 0.301, 0.699, 0.701, 0.999]
    assert draw(scores, uniforms) == [0, 0, 0, 1, 1, 3, 3, 4, 4]
    assert draw(scores + 7, uniforms) == draw(scores, uniforms)  # scores need not be log-probabilities


def test_every_draw_of_a_fine_grid():
    scores = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    edges = list(itertools.accumulate(scores.softmax(0).tolist()))
    uniforms = [(i + 0.5) / 2000 for i in range(2000)]
    expected = [bisect.bisect_right(edges, u) for u in uniforms]
    assert draw(scores, uniforms) == expected
    shares = torch.bincount(torch.tensor(expected), minlength=50) / 2000
    torch.testing.assert_close(shares, scores.softmax(0).float(), atol=1 / 2000, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_impossible_tokens_are_never_drawn(dtype):
    """Also at the very edges, and where nothing but the first or last token is possible."""
    edges = [0.0, 5e-324, 2.0**-53, 0.5 - 2.0**-54, 0.5, 0.5 + 2.0**-53, 1 - 2.0**-53]
    never = -torch.inf
    for row in (
        [never, 1.0, never, 1.0, never],
        [never] * 4 + [2.0],
        [2.0] + [never] * 4,
        [never, 0.3, 0.3, 0.3, never],
    ):
        scores = torch.tensor(row, dtype=dtype)
        assert all(row[token] != never for token in draw(scores, edges)), row
    halves = torch.tensor([never, 1.0, never, 1.0, never], dtype=dtype)
    assert draw(halves, edges) == [1, 1, 1, 1, 3, 3, 3]


def test_tokens_too_rare_for_the_scores_type():
    """Of 30,000 equally rare words each gets its share, in bfloat16 too."""
    scores = torch.zeros(30_000, dtype=torch.bfloat16)
    uniforms = [(token + 0.5) / 30_000 for token in (0, 1, 9_999, 20_000, 29_999)]
    assert draw(scores, uniforms) == [0, 1, 9_999, 20_000, 29_999]


def test_each_row_and_each_step_has_its_own_number():
    choice = SampledChoice(torch.tensor([[0.1, 0.9], [0.9, 0.1]], dtype=torch.float64))
    scores = torch.zeros(2, 2)
    assert choice(scores, scores).argmax(dim=1).tolist() == [0, 1]
    assert choice(scores, scores).argmax(dim=1).tolist() == [1, 0]


# -- chance ----------------------------------------------------------------------------------------------------------


def test_random_numbers_belong_to_names_and_places():
    """Not to the batch, nor to how many candidates or steps are asked for."""
    whole = random_numbers(["0 7 a", "0 7 b", "0 8 a"], k=3, steps=5)
    assert whole.shape == (9, 5)
    assert whole.dtype == torch.float64
    assert torch.equal(random_numbers(["0 7 b"], 3, 5), whole[3:6])
    assert torch.equal(random_numbers(["0 8 a", "0 7 a"], 3, 5), torch.cat((whole[6:], whole[:3])))
    assert torch.equal(random_numbers(["0 7 b"], 2, 3), whole[3:5, :3])
    assert len(set(whole.flatten().tolist())) == 45
    assert random_numbers([], 3, 5).numel() == 0


def test_random_numbers_are_even():
    numbers = random_numbers([str(i) for i in range(200)], k=5, steps=20).flatten()
    assert ((numbers >= 0) & (numbers < 1)).all()
    tenths = torch.histc(numbers, bins=10, min=0, max=1)
    assert (tenths - 2000).abs().max() < 5 * math.sqrt(2000 * 0.9)


def test_random_numbers_are_the_same_in_every_process():
    script = "import json, sys; from hf_captioners.training.reward.candidates import random_numbers as r; "
    script += "json.dump(r(['0 1 COCO_7', 'eins'], 2, 3).tolist(), sys.stdout)"
    environment = {**os.environ, "PYTHONHASHSEED": "123"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert json.loads(result.stdout) == random_numbers(["0 1 COCO_7", "eins"], 2, 3).tolist()


# -- what counts of a caption ----------------------------------------------------------------------------------------


class Words:
    """A processor that writes numbers, and knows the special tokens by itself."""

    def __init__(self, silent: tuple[int, ...] = (0, 1, 2)) -> None:
        self.silent = silent

    def batch_decode(self, sequences: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        assert skip_special_tokens
        return [" " + " ".join(str(one) for one in row if one not in self.silent) for row in sequences.tolist()]


def candidates(rows: list[list[int]], k: int = 1, silent: tuple[int, ...] = (0, 1, 2), **special: Any) -> Candidates:
    config = GenerationConfig(**{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **special})
    ids = torch.tensor(rows)
    return Candidates.of(ids, config, CaptionFamily().decode(Words(silent), ids), k)


def test_words_and_the_end_token_count():
    got = candidates([[1, 5, 6, 2, 0, 0], [1, 5, 6, 7, 8, 9], [1, 2, 0, 0, 0, 0]])
    assert got.mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert got.finished.tolist() == [True, False, True]
    assert got.lengths.tolist() == [2, 5, 0]
    assert got.ids == [[5, 6, 2], [5, 6, 7, 8, 9], [2]]
    assert got.texts == ["5 6", "5 6 7 8 9", ""]


def test_padding_in_the_middle_is_skipped_and_what_follows_counts():
    got = candidates([[1, 5, 0, 6, 2, 0], [1, 0, 5, 0, 6, 0]])
    assert got.mask.int().tolist() == [[1, 0, 1, 1, 0], [0, 1, 0, 1, 0]]
    assert got.finished.tolist() == [True, False]
    assert got.lengths.tolist() == [2, 2]
    assert got.ids == [[5, 0, 6, 2], [0, 5, 0, 6]]  # as it is rewarded


def test_what_stands_behind_the_first_end_does_not_count():
    got = candidates([[1, 5, 2, 6, 2, 7]])
    assert got.ids == [[5, 2]]
    assert (got.finished.item(), got.lengths.item()) == (True, 1)


def test_several_end_tokens():
    got = candidates([[1, 5, 9, 0, 0], [1, 5, 6, 2, 0], [1, 5, 6, 7, 8]], eos_token_id=[2, 9])
    assert got.ids == [[5, 9], [5, 6, 2], [5, 6, 7, 8]]
    assert got.finished.tolist() == [True, True, False]
    assert got.lengths.tolist() == [1, 2, 4]


def test_padding_with_the_end_token():
    got = candidates([[1, 5, 2, 2, 2], [1, 5, 6, 7, 8], [1, 2, 2, 2, 2]], pad_token_id=2)
    assert got.ids == [[5, 2], [5, 6, 7, 8], [2]]
    assert got.finished.tolist() == [True, False, True]
    assert got.lengths.tolist() == [1, 4, 0]


def test_a_start_token_that_is_the_end_token_and_the_padding():
    """As in GPT-2."""
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    got = candidates([[0, 5, 6, 0, 0], [0, 5, 6, 7, 8], [0, 0, 0, 0, 0]], silent=(0,), **special)
    assert got.ids == [[5, 6, 0], [5, 6, 7, 8], [0]]
    assert got.finished.tolist() == [True, False, True]
    assert got.lengths.tolist() == [2, 4, 0]


def test_what_was_said_before_in_the_same_picture():
    rows = [[1, 5, 6, 2], [1, 5, 6, 0], [1, 7, 2, 0], [1, 5, 6, 2], [1, 7, 2, 0], [1, 7, 0, 2]]
    got = candidates(rows, k=3)  # equal texts, not tokens; the second picture may say what the first one says
    assert got.firsts.tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_what_counts_in_dicos_loss(shared_parity, case):
    """The fixture has a truncated caption, two equal ones and padding in the middle of one."""
    folder = shared_parity / "dico" / case
    settings, io = json.loads((folder / "config.json").read_text()), load_file(folder / "io.safetensors")
    special = {name: settings[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    ids = io["cand_ids"].flatten(0, 1)
    got = candidates(ids.tolist(), settings["n_candidates"], silent=tuple(special.values()), **special)
    assert torch.equal(got.mask, io["cand_mask"].flatten(0, 1).bool())
    assert not got.finished[settings["n_candidates"] - 1]
    assert not got.firsts[1, 1]


def test_a_captioners_own_processor(tiny_captioner_dir):
    processor = AutoProcessor.from_pretrained(tiny_captioner_dir)
    config = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).generation_config
    ids = processor.tokenizer(["a red circle", "two stars"], padding=True, return_tensors="pt").input_ids
    got = Candidates.of(ids, config, CaptionFamily().decode(processor, ids), k=2)
    assert got.texts == ["a red circle", "two stars"]
    assert got.lengths.tolist() == [3, 2]
    assert got.finished.all()
    assert processor.batch_decode([[config.bos_token_id, *one] for one in got.ids]) == got.texts


# -- strategies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_candidates_do_not_depend_on_the_batch(tmp_path, speaker, strategy):
    args = options_of(tmp_path, candidate_strategy=strategy)
    torch.manual_seed(0)
    together = speaker.write(args)
    assert together.shape == (12, 8)
    for row, name in enumerate(PICTURES):
        torch.manual_seed(row + 1)  # the generator of torch decides nothing
        assert torch.equal(speaker.write(args, [name], [row]), together[4 * row : 4 * row + 4])
    turned = speaker.write(args, PICTURES[::-1], [2, 1, 0])
    assert torch.equal(turned.view(3, 4, -1).flip(0), together.view(3, 4, -1))


def test_names_decide_what_is_drawn(tmp_path, speaker):
    args = options_of(tmp_path, candidate_strategy="sample")
    first, again, other = (speaker.write(args, [f"{step} {name}" for name in PICTURES]) for step in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    fewer = speaker.write(
        options_of(tmp_path, candidate_strategy="sample", num_generations=2), [f"1 {name}" for name in PICTURES]
    )
    assert torch.equal(fewer.view(3, 2, -1), first.view(3, 4, -1)[:, :2])


def test_the_n_best_list_is_generates(tmp_path, speaker):
    args = options_of(tmp_path, candidate_strategy="beam")
    ids = speaker.model.generate(
        encoder_outputs=speaker.memory(), num_beams=4, num_return_sequences=4, max_length=8, do_sample=False
    )
    assert torch.equal(speaker.write(args)[:, : ids.shape[1]], ids)
    assert len({tuple(row) for row in ids[:4].tolist()}) == 4


def test_further_options_of_generate(tmp_path, speaker):
    one = speaker.write(options_of(tmp_path, num_generations=2, generation_kwargs={"num_beams": 4}))
    ids = speaker.model.generate(
        encoder_outputs=speaker.memory(), num_beams=4, num_return_sequences=2, max_length=8, do_sample=False
    )
    assert torch.equal(one[:, : ids.shape[1]], ids)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_models_generation_config_stays_in_force(tmp_path, speaker, strategy):
    args = options_of(tmp_path, candidate_strategy=strategy)
    config, before = speaker.model.generation_config, speaker.write(args)
    special = {config.eos_token_id, config.pad_token_id, config.bos_token_id, config.decoder_start_token_id}
    common = [one for one in before[:, 1:].flatten().bincount().argsort(descending=True).tolist() if one not in special]
    config.suppress_tokens = common[:2]
    after = speaker.write(args)
    assert torch.isin(before, torch.tensor(common[:2])).any()
    assert not torch.isin(after, torch.tensor(common[:2])).any()


@pytest.mark.parametrize("strategy", ["sample", "diverse_beam"])
def test_what_the_models_generation_config_says_of_sampling_does_not(tmp_path, speaker, strategy):
    """The candidates are the trainer's business: a checkpoint's temperature or beams would come in unseen."""
    args = options_of(tmp_path, candidate_strategy=strategy)
    before = speaker.write(args)
    speaker.model.generation_config.update(
        do_sample=True, temperature=0.01, top_k=1, top_p=0.1, min_p=0.9, num_beams=3, repetition_penalty=9.0
    )
    assert torch.equal(speaker.write(args), before)


@pytest.mark.parametrize("rule", ["paper", "standard"])
def test_the_models_decoding_stays_in_force(tmp_path, tiny_captioner_dir, rule):
    speaker = make_speaker("expansionnet_v2", tiny_captioner_dir)
    args = options_of(tmp_path, max_completion_length=4)
    speaker.model.generation_config.decoding = rule
    ids = speaker.model.generate(
        encoder_outputs=speaker.memory(), num_beams=4, num_return_sequences=4, max_length=5, decoding=rule
    )
    assert torch.equal(speaker.write(args), ids)


# -- sampling --------------------------------------------------------------------------------------------------------


def warped(speaker: Speaker, **options: Any) -> torch.Tensor:
    """Scores (3, V) of the first word after transformers' own warpers, in its own order."""
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    out = speaker.model.generate(
        encoder_outputs=speaker.memory(),
        do_sample=True,
        num_beams=1,
        max_length=2,
        return_dict_in_generate=True,
        output_scores=True,
        **given,
    )
    return out.scores[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.7},
        {"temperature": 2.0, "top_k": 9, "top_p": 0.8, "min_p": 0.3},
    ],
    ids=lambda options: "-".join(options) or "none",
)
def test_the_first_word_is_drawn_from_what_transformers_would_draw_from(tmp_path, speaker, options):
    """Word by word the one that the picture's numbers choose in transformers' distribution."""
    args = options_of(
        tmp_path, candidate_strategy="sample", num_generations=60, max_completion_length=1, logging_steps=1, **options
    )
    got = speaker.write(args)[:, 1].view(3, 60)
    uniforms = random_numbers(PICTURES, 60, 1).view(3, 60)
    for row, scores in enumerate(warped(speaker, **options)):
        edges = list(itertools.accumulate(scores.double().softmax(0).tolist()))
        assert got[row].tolist() == [bisect.bisect_right(edges, u) for u in uniforms[row].tolist()]
    assert torch.equal(warped(speaker), warped(speaker, **options)) == (not options)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.7, "temperature": 0.8, "top_k": 6}], ids=["", "all"])
def test_whole_captions_are_drawn_by_the_definition(tmp_path, speaker, options):
    """A caption and a word at a time, each from a pass over its prefix, with the number of its place."""
    args, config = options_of(tmp_path, candidate_strategy="sample", **options), speaker.model.generation_config
    got, uniforms = speaker.write(args).tolist(), random_numbers(PICTURES, 4, 7).tolist()
    shapes = [RepetitionPenaltyLogitsProcessor(1.7), TemperatureLogitsWarper(0.8), TopKLogitsWarper(6)]
    start_is_end = config.decoder_start_token_id == config.eos_token_id  # no word, then: it may be said to end
    for row, numbers in enumerate(uniforms):
        caption = [config.decoder_start_token_id]
        for number in numbers:
            prefix = torch.tensor(caption)
            scores = speaker.next_scores(row // 4, prefix)[None]
            for one in shapes if options else []:
                scores = one(prefix[None, int(start_is_end) :], scores)
            edges = list(itertools.accumulate(scores[0].double().softmax(0).tolist()))
            caption.append(bisect.bisect_right(edges, number))
            if caption[-1] == config.eos_token_id:
                break
        assert got[row] == caption + [config.pad_token_id] * (8 - len(caption))


@pytest.mark.parametrize("kind", KINDS)
def test_how_often_a_caption_is_drawn_is_its_probability(tmp_path, tiny_captioner_dir, kind):
    """Within 4.5 standard deviations of what the scoring pass, which the loss uses, says of it."""
    speaker, number, longest = make_speaker(kind, tiny_captioner_dir), 3000, 3
    args = options_of(
        tmp_path, candidate_strategy="sample", num_generations=number, max_completion_length=longest, logging_steps=1
    )
    ids = speaker.write(args, ["picture"], [1])
    captions, counts = ids.unique(dim=0, return_counts=True)
    with torch.no_grad():
        log_probs, _ = speaker.family.log_probs(speaker.model, captions, speaker.memory([1]))
    expected = log_probs.sum(dim=1).exp()
    assert expected.sum() <= 1 + 1e-5
    often = expected * number > 8
    assert often.sum() >= 8
    deviation = (number * expected * (1 - expected)).sqrt()
    assert ((counts - number * expected).abs() / deviation)[often].max() < 4.5
    # and all captions that were never drawn are rare
    assert 1 - expected.sum() < 0.3


# -- diverse beams ---------------------------------------------------------------------------------------------------


def diverse_beams(speaker: Speaker, picture: int, k: int, longest: int, penalty: float) -> list[list[int]]:
    """Diverse beam search with groups of one, a caption and a word at a time, each from a pass over its prefix."""
    config = speaker.model.generation_config
    captions: list[list[int]] = [[config.decoder_start_token_id] for _ in range(k)]
    for place in range(1, longest + 1):
        for number, caption in enumerate(captions):
            if config.eos_token_id in caption[1:]:
                continue
            scores = speaker.next_scores(picture, torch.tensor(caption)).log_softmax(-1)
            for earlier in captions[:number]:
                if len(earlier) > place:
                    scores[earlier[place]] -= penalty
            caption.append(int(scores.argmax()))
    return [one + [config.pad_token_id] * (longest + 1 - len(one)) for one in captions]


@pytest.mark.parametrize("penalty", [0.0, 0.5, 3.0])
def test_diverse_beams_by_the_definition(tmp_path, speaker, penalty):
    args = options_of(tmp_path, candidate_strategy="diverse_beam", diversity_penalty=penalty)
    got = speaker.write(args).view(3, 4, -1)
    for picture in range(3):
        assert got[picture].tolist() == diverse_beams(speaker, picture, 4, 7, penalty)


def test_the_first_is_greedy_and_a_penalty_makes_the_others_differ(tmp_path, speaker):
    config = speaker.model.generation_config
    greedy = speaker.model.generate(encoder_outputs=speaker.memory(), num_beams=1, do_sample=False, max_length=8)
    for penalty in (0.0, 1e4):
        args = options_of(tmp_path, candidate_strategy="diverse_beam", diversity_penalty=penalty)
        got = speaker.write(args).view(3, 4, -1)
        assert torch.equal(got[:, 0, : greedy.shape[1]], greedy)
        running = ~ended_before(got.flatten(0, 1)[:, 1:], config.eos_token_id).view(3, 4, -1)
        for picture, places in zip(got[:, :, 1:], running, strict=True):
            for words, going_on in zip(picture.T, places.T, strict=True):
                said = words[going_on].tolist()
                assert len(set(said)) == (len(said) if penalty else min(len(said), 1))


def test_a_candidate_that_has_ended_is_no_longer_avoided():
    """The first one has said its end; what it would say is not in the way of the second."""
    scores = torch.tensor([[0.0, 3.0, 2.9], [0.0, 3.0, 2.9]])
    ended = torch.tensor([[1, 5, 2], [1, 5, 6]])
    assert DiverseChoice(2, 0.5, eos_token_id=2)(ended, scores)[1].argmax() == 1
    assert DiverseChoice(2, 0.5, eos_token_id=[7, 2])(ended, scores)[1].argmax() == 1
    assert DiverseChoice(2, 0.5, eos_token_id=9)(ended, scores)[1].argmax() == 2
    assert DiverseChoice(2, 0.5, eos_token_id=1)(ended, scores)[1].argmax() == 2  # the start token ends nothing


def test_impossible_words_stay_impossible_for_diverse_beams():
    scores = torch.tensor([[-torch.inf, 1.0, -torch.inf]] * 4)
    out = DiverseChoice(4, 100.0, eos_token_id=2)(torch.zeros(4, 1), scores)
    assert out.argmax(dim=1).tolist() == [1] * 4


def test_penalties_add_up():
    """With four equally good words and any penalty, four candidates say four words; the fifth begins again."""
    out = DiverseChoice(5, 0.1, eos_token_id=3)(torch.zeros(5, 1), torch.zeros(5, 4))
    assert out.argmax(dim=1).tolist() == [0, 1, 2, 3, 0]


def test_what_the_options_are(tmp_path):
    """The trainer's only; everything else is left to the model's generation config."""
    args = SimpleNamespace(**vars(options_of(tmp_path)))
    assert generation_options(args, PICTURES, CPU, 2) == {
        "max_length": 8,
        "num_return_sequences": 4,
        "num_beams": 4,
        "do_sample": False,
    }
