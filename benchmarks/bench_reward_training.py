"""Time of the parts of a step of reward training, at the released sizes, with random weights.

    python benchmarks/bench_reward_training.py --threads 1

Prints two Markdown tables. Times are medians of `--repeats` rounds in which all cases take turns, so that a ratio is of
two times of one round's machine. "Rest" is the collator, what is logged, and whatever else the trainer does.

The first one is of `SCSTTrainer`: ExpansionNet v2 on cached features of 144 x 1536, 24 pictures with 5 sampled captions
of 20 words, CIDEr-D, as in `recipes/expansionnet_v2/5_scst_features.yaml`. All pictures are new to the reward, as in a
first epoch; later their references are prepared already. The words are made up.

The second one is of `DiCOTrainer`: CLIP ViT-L/14, 5 beams of 30 tokens, PAC-S by a CLIP ViT-B/32. "Recomputed" does
what the original does, with transformers' modules of today: the vision tower in every step; a beam search that records
gradients and projects the memory's keys and values for every beam in every step; the picture, and captions of 77
tokens, through CLIP; reference and policy with a copy of the memory for each caption. "Uncached" is the trainer on
pictures that it has not seen; "cached" with their features at hand, as from the second epoch on or after
`hf-captioners features`. Dropout is off and the learning rate 0, so that all compute the same losses; how far apart
they are is printed.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from recomputed_dico import RecomputedStep
from transformers import CLIPConfig, CLIPModel

from hf_captioners import (
    DicoCaptionerConfig,
    DiCOConfig,
    DicoForImageCaptioning,
    DiCOTrainer,
    ExpansionNetV2ForImageCaptioning,
    SCSTConfig,
    SCSTTrainer,
)
from hf_captioners.metrics import PacScorer
from hf_captioners.rewards import ClipReward

# a trainer's methods that make up a step, each once, none inside another
METHODS = {
    "_run_backbone": "vision tower",
    "_write": "candidates",
    "_reward": "reward",
    "_reference_log_probs": "reference",
    "_policy_log_probs": "policy, forward",
}
PARTS = [*METHODS.values(), "forward", "backward", "optimizer"]
COMMON: dict[str, Any] = {"max_grad_norm": 0.0, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
PIXELS = 224
SMALL: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SMALL_TOWER = {**SMALL, "hidden_size": 8, "image_size": PIXELS, "patch_size": 112}
SMALL_CLIP: dict[str, Any] = {"vision_config": SMALL_TOWER, "text_config": {**SMALL, "hidden_size": 8}}
SMALL_CAPTIONER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "vision_config": {"model_type": "clip_vision_model", **SMALL_TOWER},
}
NEGLIGIBLE = 1e-3  # seconds; smaller times are not printed
Times = dict[str, float]


class Clock:
    """Seconds of whole steps and of their parts."""

    def __init__(self, device: torch.device, cpu_time: bool) -> None:
        self.device = device
        self.read = time.process_time if cpu_time else time.perf_counter
        self.inside: Times = {}

    def now(self) -> float:
        """The time after everything so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.read()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to a part."""
        start = self.now()
        yield
        self.inside[name] = self.inside.get(name, 0.0) + self.now() - start

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls are parts."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def run(self, step: Callable[[], Any]) -> Times:
        """Seconds of a step: `whole`, of each part, and of the `rest`."""
        self.inside = {}
        start = self.now()
        step()
        whole = self.now() - start
        parts = {name: self.inside.get(name, 0.0) for name in PARTS}
        return {**parts, "rest": whole - sum(parts.values()), "whole": whole}


def medians(rounds: int, cases: dict[str, Callable[[], Times]]) -> dict[str, Times]:
    """Medians of the cases' times, by key, over rounds in which they take turns; a first round does not count."""
    results: dict[str, list[Times]] = {key: [] for key in cases}
    for count in range(rounds + 1):
        for key, case in cases.items():
            result = case()
            if count:
                results[key].append(result)
    return {
        key: {name: median(times[name] for times in case_times) for name in case_times[0]}
        for key, case_times in results.items()
    }


class TrainerStep:
    """Optimizer steps of a trainer, one at a time.

    Args:
        trainer ([`CaptionerTrainer`]): before `train`.
        clock ([`Clock`]): the step's parts are added there.
        methods (`Mapping[str, str]`): the trainer's methods that make up a step, and the names of the parts.
    """

    def __init__(self, trainer: Any, clock: Clock, methods: Mapping[str, str] = METHODS) -> None:
        self.trainer, self.clock = trainer, clock
        trainer.create_optimizer()
        for name, part in methods.items():
            setattr(trainer, name, clock.timed(part, getattr(trainer, name)))
        trainer.accelerator.backward = clock.timed("backward", trainer.accelerator.backward)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> float:
        """Learn from rows; return the loss."""
        trainer = self.trainer
        batches = iter([trainer.data_collator(rows)])
        (inputs,), items = trainer.get_batch_samples(batches, 1, trainer.args.device)
        loss = trainer.training_step(trainer.model, inputs, num_items_in_batch=items)
        with self.clock.part("optimizer"):
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
        return loss.item()


# -- self-critical training ------------------------------------------------------------------------------------------


def made_up_words(number: int) -> list[str]:
    """Words of two or three made-up syllables."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    longer = itertools.chain.from_iterable(itertools.product(syllables, repeat=count) for count in (2, 3))
    return ["".join(word) for word in itertools.islice(longer, number)]


def image_rows(number: int, words: list[str], tokens: int) -> list[dict[str, Any]]:
    """Rows of cached features with 5 captions each; some words are much more frequent than others, as real ones."""
    draw = random.Random(0)
    frequencies = [1 / rank for rank in range(1, len(words) + 1)]
    drawn_words = iter(draw.choices(words, frequencies, k=number * 5 * 11))
    rows = []
    for image_id in range(number):
        captions = [" ".join(itertools.islice(drawn_words, 11)) for _ in range(5)]
        rows.append({"image_id": image_id, "captions": captions, "image_features": torch.rand(tokens, 1536).half()})
    return rows


def scst_step(args: argparse.Namespace, rows: list[dict[str, Any]], words: list[str], clock: Clock) -> TrainerStep:
    """The trainer of the first table."""
    dropout: dict[str, Any] = {
        f"{part}_dropout": 0.1 for part in ("encoder", "decoder", "encoder_input", "decoder_input", "other")
    }
    model, processor = ExpansionNetV2ForImageCaptioning.new(words, features=1536, min_count=1, **dropout)
    options = SCSTConfig(
        output_dir=args.folder,
        num_generations=args.samples,
        candidate_strategy="sample",
        baseline="leave_one_out",
        beta=args.beta,
        length_normalize=False,
        max_completion_length=args.words,
        optim="radam",
        learning_rate=1e-4,
        per_device_train_batch_size=args.pictures,
        use_cpu=clock.device.type == "cpu",
        **COMMON,
    )
    trainer: Any = SCSTTrainer(model, args=options, train_dataset=rows, processing_class=processor)
    return TrainerStep(trainer, clock)


def measure_scst(args: argparse.Namespace, clock: Clock) -> dict[str, Times]:
    """Times of steps with new pictures."""
    words = made_up_words(args.vocabulary - 4)  # and the special ones
    rows = image_rows(args.pictures * (args.repeats + 1), words, args.grid)
    step = scst_step(args, rows, words, clock)
    starts = iter(range(0, len(rows), args.pictures))

    def case() -> Times:
        start = next(starts)
        return clock.run(lambda: step(rows[start : start + args.pictures]))

    return medians(args.repeats, {"SCST": case})


# -- DiCO ------------------------------------------------------------------------------------------------------------


class Numbers:
    """A processor for captions that are never read: token ids as text, of pictures that are tensors already."""

    image_processor = None

    def batch_decode(self, token_ids: torch.Tensor, **kwargs: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in token_ids.tolist()]


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of rows that hold tensors."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    batch: dict[str, Any] = {"columns": columns}
    for name in {"pixel_values", "image_features"} & columns.keys():
        batch[name] = torch.stack(columns.pop(name))
    return batch


def dico_options(args: argparse.Namespace) -> DiCOConfig:
    """Options by which all captions have the full length, the last token being their end."""
    return DiCOConfig(
        output_dir=args.folder,
        num_generations=args.beams,
        max_completion_length=args.length - 1,
        generation_kwargs={
            "min_new_tokens": args.length - 2,
            "forced_eos_token_id": DicoCaptionerConfig().eos_token_id,
        },
        per_device_train_batch_size=args.dico_images,
        learning_rate=0.0,
        disable_dropout=True,
        use_cpu=args.device == "cpu",
        **COMMON,
    )


def dico_rounds(args: argparse.Namespace, policy: Any, reward: ClipReward) -> Iterator[dict[str, Any]]:
    """The batches of each round by case: pictures, new rows, and rows with cached features and rewards."""
    for _ in range(args.repeats + 1):
        pixels = torch.randn(args.dico_images, 3, PIXELS, PIXELS)
        with torch.no_grad():
            features = policy.extract_image_features(pixels.to(policy.device)).cpu()
        reward([""] * len(pixels), completion_ids=[[0]] * len(pixels), image=list(pixels))
        rows = range(len(pixels))
        yield {
            "recomputed": pixels,
            "uncached": [{"image_id": row, "pixel_values": pixels[row]} for row in rows],
            "cached": [{"image_id": row, "image_features": features[row], "image": pixels[row]} for row in rows],
        }


def dico_steps(args: argparse.Namespace, clock: Clock) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The steps of the second table, and their batches in each round."""
    captioner, evaluator = (
        (SMALL_CAPTIONER, SMALL_CLIP) if args.small else ({}, {"vision_config": {}, "text_config": {}})
    )
    policy = DicoForImageCaptioning(DicoCaptionerConfig(**captioner)).eval()
    evaluator["text_config"] |= {"bos_token_id": 49406, "eos_token_id": 49407}
    clip = CLIPModel(CLIPConfig(**evaluator))
    scorer = PacScorer(
        clip, device=args.device, prefix="", clip_negative=False, pad_token_id=policy.config.pad_token_id
    )
    rewards = {
        "uncached": ClipReward(scorer, use_ids=True, use_pixel_values=True),
        "cached": ClipReward(scorer, use_ids=True),
    }
    options = dico_options(args)
    common = {"args": options, "train_dataset": [], "processing_class": Numbers(), "data_collator": collate}
    trainers = {name: DiCOTrainer(policy, reward_funcs=reward, **common) for name, reward in rewards.items()}
    reference: Any = trainers["cached"].reference
    steps: dict[str, Any] = {"recomputed": RecomputedStep(policy, reference.model, clip, options, clock.part)}
    steps |= {name: TrainerStep(trainer, clock) for name, trainer in trainers.items()}
    with torch.no_grad():  # the policy has learned something
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01 * torch.randn_like(parameter))
    return steps, list(dico_rounds(args, policy, rewards["cached"]))


def measure_dico(args: argparse.Namespace, clock: Clock) -> tuple[dict[str, Times], dict[str, list[float]]]:
    """Times and losses of the cases."""
    steps, rounds = dico_steps(args, clock)
    losses: dict[str, list[float]] = {name: [] for name in steps}

    def case(name: str) -> Callable[[], Times]:
        batches = iter(batches_of_round[name] for batches_of_round in rounds)

        def run() -> None:
            losses[name].append(steps[name](next(batches)))

        return lambda: clock.run(run)

    return medians(args.repeats, {name: case(name) for name in steps}), losses


def show(times: dict[str, Times], against: str | None = None) -> None:
    """Print a table: seconds and shares of each case and, of the others, how many times faster than `against`."""
    columns = ["part"]
    for name in times:
        columns += [f"{name}, s", "share", *([f"{against} / {name}"] if against not in (None, name) else [])]
    for row in (columns, ["---"] * len(columns)):
        print(f"| {' | '.join(row)} |")
    for part in (*PARTS, "rest", "whole"):
        if all(case_times[part] < NEGLIGIBLE for case_times in times.values()):
            continue
        cells = [part]
        for name, case_times in times.items():
            cells += [f"{case_times[part]:.3f}", f"{case_times[part] / case_times['whole']:.1%}"]
            if against not in (None, name):
                cells += [f"{times[against][part] / case_times[part]:.2f}" if case_times[part] > NEGLIGIBLE else ""]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: cpu")
    parser.add_argument("--repeats", type=int, default=3, help="rounds whose median counts (default: 3)")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, on a machine that is busy")
    parser.add_argument("--only", choices=("scst", "dico"), help="one of the two tables (default: both)")
    group = parser.add_argument_group("self-critical training")
    group.add_argument("--pictures", type=int, default=24, help="of a step (default: 24)")
    group.add_argument("--samples", type=int, default=5, help="captions of a picture (default: 5)")
    group.add_argument("--words", type=int, default=20, help="of a caption (default: 20)")
    group.add_argument("--vocabulary", type=int, default=10_000, help="words that there are (default: 10000)")
    group.add_argument("--beta", type=float, default=0.0, help="above 0 with a reference (default: 0)")
    group.add_argument("--grid", type=int, default=144, help="tokens of a picture (default: 144)")
    group = parser.add_argument_group("DiCO")
    group.add_argument("--dico-images", type=int, default=2, help="of a step (default: 2)")
    group.add_argument("--beams", type=int, default=5, help="captions of a picture (default: 5)")
    group.add_argument("--length", type=int, default=30, help="of a caption in tokens, start included (default: 30)")
    group.add_argument("--small", action="store_true", help="models of no use, to try the benchmark")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    clock = Clock(torch.device(args.device), args.cpu_time)
    seconds = "processor time" if args.cpu_time else "wall time"
    print(f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), {platform.machine()}, {seconds}\n")
    with tempfile.TemporaryDirectory() as args.folder:
        if args.only != "dico":
            print(f"SCST: {args.pictures} pictures x {args.samples} samples of {args.words} words\n")
            show(measure_scst(args, clock))
            print()
        if args.only != "scst":
            print(f"DiCO: {args.dico_images} picture(s) x {args.beams} beams of {args.length} tokens\n")
            times, losses = measure_dico(args, clock)
            show(times, against="recomputed")
            apart = max(
                max(losses_of_step) - min(losses_of_step) for losses_of_step in zip(*losses.values(), strict=True)
            )
            print(f"\nlosses about {median(losses['recomputed']):.3f}, at most {apart:.0e} apart")


if __name__ == "__main__":
    main()
