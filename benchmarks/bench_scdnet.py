"""SCD-Net's sampler: speed at the released size, and the worth of a trained model's captions by number of steps.

    python benchmarks/bench_scdnet.py speed --threads 1
    python benchmarks/bench_scdnet.py curve --model runs/scdnet/captioner --annotations dataset_karpathy.json \
        --features runs/features --retrieved runs/retrieved.jsonl --out runs/curve

`speed` has random weights. "Plain" computes in every step what does not depend on it: keys and values of the picture,
projections of the retrieved sentence, the sentence's rows behind the last semantic layer, and the time's vector. All
cases take turns in each round, and the median of the rounds counts, so that a ratio is of two times of one machine.

`curve` captions pictures of a split in every way of sampling that the options name, and prints CIDEr-D with a 95 %
interval over pictures, its difference to the first way, the paper's sampler with the most steps, with an interval too,
and the processor time of a caption; with `--out` also `curve.png`, `curve.md` and `curve.json`. A second stage takes
`--previous`, what the first one wrote, or is a cascade, whose first stage has a number of steps of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_satic import show
from train_flickr8k_rewards import interval
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import ScdnetConfig, ScdnetForImageCaptioning
from hf_captioners.data.captions.attached import attach_sentences
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.features.store import FeatureStore
from hf_captioners.data.rows import FeatureDataset, attach_features
from hf_captioners.metrics import CaptionMetrics
from hf_captioners.modeling.captioner_trust import load_pretrained
from hf_captioners.modeling.modeling_scdnet import Known

REGIONS, SENTENCE = 50, 15
FIRST_AHEAD = 0.9  # share of its steps by which the first stage of the paper's cascade is ahead
WORDS = ("sampler", "cascade")  # options that say what they are


class PlainScdnet(ScdnetForImageCaptioning):
    """SCD-Net that computes everything in every step."""

    def _known(self, encoded: Any, captions: int, previous_ids: Any = None) -> Known:
        self.memory = encoded.last_hidden_state
        return super()._known(encoded, captions, previous_ids)

    def predict(self, state: Any, known_bits: Any, time: Any, known: Known, *unused: Any, **more: Any) -> Any:
        """See `ScdnetForImageCaptioning.predict`."""
        self.token_embed.time_embed(torch.zeros(1, device=state.device))
        parts = [known_bits, state] if known.previous is None else [known_bits, state, known.previous]
        hidden = self.token_embed(torch.cat(parts, dim=-1), time)  # (N, L, d)
        length = hidden.shape[1]
        hidden = torch.cat((hidden, known.retrieved_states), dim=1)  # (N, L + T, d)
        for layer in self.r_encoder.layers:
            hidden = layer(hidden, known.semantic_mask)
        hidden = hidden[:, :length]
        for layer in self.decoder.g_layers:
            hidden = layer(hidden, *layer.x_att.self.keys_and_values(self.memory), known.memory_mask)
        return self.predictor(hidden), []


# --- speed ------------------------------------------------------------------------------------------------------------


def measure_speed(args: argparse.Namespace) -> Iterator[list[Any]]:
    """The rows of the table of times."""
    torch.manual_seed(0)
    config = ScdnetConfig(**json.loads(args.sizes))
    ours = ScdnetForImageCaptioning(config).eval()
    plain = PlainScdnet(config).eval()
    plain.load_state_dict(ours.state_dict())
    models = {"float32": (ours, plain)}
    if "bfloat16" in args.dtypes:
        models["bfloat16"] = tuple(
            load.from_pretrained(None, config=config, state_dict=ours.state_dict(), dtype=torch.bfloat16).eval()
            for load in (ScdnetForImageCaptioning, PlainScdnet)
        )
    for batch in args.batch_sizes:
        cases = [(dtype, steps, kind) for dtype in args.dtypes for steps in args.steps for kind in ("ours", "plain")]
        times: dict[Any, list[float]] = {case: [] for case in cases}
        for turn in range(args.repeats + 1):
            for case in cases:
                dtype, steps, kind = case
                model = models[dtype][kind == "plain"]
                features = torch.randn(batch, REGIONS, int(config.feature_size or 0), dtype=model.dtype)
                sentences = torch.randint(1, config.vocab_size, (batch, SENTENCE))
                start = time.process_time()
                model.generate(image_features=features, retrieved_ids=sentences, num_inference_steps=steps)
                if turn:  # the first is to warm up
                    times[case].append(time.process_time() - start)
        slowest = median(times[args.dtypes[0], args.steps[0], "ours"])
        for dtype in args.dtypes:
            for steps in args.steps:
                own, other = (median(times[dtype, steps, kind]) for kind in ("ours", "plain"))
                row = [batch, dtype, steps, f"{own / batch * 1e3:.0f}", f"{other / own:.2f}", f"{slowest / own:.1f}"]
                yield row


# --- quality ----------------------------------------------------------------------------------------------------------


def ways_of(args: argparse.Namespace, is_cascade: bool) -> tuple[list[str], list[dict[str, Any]]]:
    """Ways of sampling; also the names of what differs between them. The first one is what others are compared with."""
    values = {
        "sampler": args.samplers,
        "word_choice": args.word_choices,
        "self_condition": args.self_conditions,
        "time_spacing": args.spacings,
        "time_difference": args.time_differences,
        **({"cascade": args.cascades, "first_steps": args.first_steps} if is_cascade else {}),
        "num_inference_steps": sorted(args.steps, reverse=True),
    }
    chosen = [dict(zip(values, way, strict=True)) for way in itertools.product(*values.values())]
    ways = [way | ({"time_spacing": 1.0} if way["sampler"] == "paper" else {}) for way in chosen]
    ways = [way for place, way in enumerate(ways) if way not in ways[:place]]
    always = ("sampler", "num_inference_steps")
    return [name for name, some in values.items() if len(some) > 1 or name in always], ways


def generate_options(way: dict[str, Any]) -> dict[str, Any]:
    """Options of `generate`; of a cascade the first stage is ahead by the same share of its steps as the paper's."""
    options = {name: value for name, value in way.items() if name != "first_steps"}
    if "first_steps" in way:
        first = way["first_steps"]
        options["num_inference_steps"] = [first, way["num_inference_steps"]]
        options["time_difference"] = [FIRST_AHEAD * first, way["time_difference"]]
    return options


def read_rows(args: argparse.Namespace) -> tuple[FeatureDataset, list[list[str]]]:
    """Rows of pictures with features and sentences, and their references."""
    rows = load_karpathy(args.annotations, split=args.split)
    if args.num_images is not None and args.num_images < len(rows):
        rows = rows.select(sorted(random.Random(0).sample(range(len(rows)), args.num_images)))
    for column, file in (("retrieved", args.retrieved), ("previous", args.previous)):
        rows = rows if file is None else attach_sentences(rows, file, column)
    return attach_features(rows, FeatureStore(args.features)), rows["captions"][:]


def caption(model: Any, processor: Any, rows: Any, batch_size: int, **options: Any) -> tuple[list[str], float]:
    """Captions of all rows, and the seconds of processor time that `generate` took."""
    captions, seconds = [], 0.0
    for first in range(0, len(rows), batch_size):
        inputs = processor.prepare_rows([rows[i] for i in range(first, min(first + batch_size, len(rows)))])
        start = time.process_time()
        ids = model.generate(**inputs.to(dtype=model.dtype), **options)
        seconds += time.process_time() - start
        captions += processor.batch_decode(ids)
    return captions, seconds


class Curve:
    """Scores and times of a trained captioner's ways of sampling.

    Attributes:
        columns (`list[str]`): of the table.
        results (`list[dict[str, Any]]`): for every way so far its options, `scores` of all pictures, `milliseconds` of
            a caption, `cider_d`, `gain` over the first one, and `interval` of the gain.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.model = load_pretrained(AutoModelForImageTextToText, args.model).eval()
        self.processor = load_pretrained(AutoProcessor, args.model)
        self.names, self.ways = ways_of(args, self.model.is_cascade)
        self.results: list[dict[str, Any]] = []
        self.columns = [*self.names, "CIDEr-D x 100", "to the first row", "ms per caption", "times as fast"]

    def measure(self) -> Iterator[list[Any]]:
        """Caption the pictures in every way; returns rows of the table as they come."""
        rows, references = read_rows(self.args)
        metrics = CaptionMetrics(["cider_d"])
        caption(self.model, self.processor, rows, self.args.batch_size, **generate_options(self.ways[-1]))  # warm up
        for way in self.ways:
            options = generate_options(way)
            captions, seconds = caption(self.model, self.processor, rows, self.args.batch_size, **options)
            scores = np.asarray(metrics(captions, references).per_image["cider_d"]) * 100
            result = {**way, "scores": scores, "milliseconds": seconds / len(captions) * 1e3}
            self.results.append(result)
            gains = scores - self.results[0]["scores"]
            result.update(cider_d=scores.mean(), gain=gains.mean(), interval=interval(gains))
            yield self.row(result)

    def row(self, result: dict[str, Any]) -> list[Any]:
        """A row of the table."""
        low, high = interval(result["scores"])
        below, above = result["interval"]
        return [
            *(result[name] for name in self.names),
            f"{result['cider_d']:.1f} ({low:.1f} to {high:.1f})",
            f"{result['gain']:+.1f} ({below:+.1f} to {above:+.1f})",
            f"{result['milliseconds']:.1f}",
            f"{self.results[0]['milliseconds'] / result['milliseconds']:.1f}",
        ]

    def fastest(self) -> str:
        """A sentence on the fastest way that is as good as the first one, within the interval of the difference."""
        as_good = [result for result in self.results if result["interval"][1] >= 0]
        best = min(as_good, key=lambda result: result["milliseconds"])
        ratio = self.results[0]["milliseconds"] / best["milliseconds"]
        return f"Fastest as good as the first row: {self.describe(best)}, {ratio:.1f} times as fast."

    def describe(self, result: dict[str, Any], with_steps: bool = True) -> str:
        """Name a way by what differs between ways."""
        names = [name for name in self.names if name != "num_inference_steps"]
        parts = [str(result[name]) if name in WORDS else f"{name} {result[name]}" for name in names]
        return ", ".join([*parts, *([f"{result['num_inference_steps']} steps"] if with_steps else [])])

    def plot(self, path: Path) -> None:
        """Plot CIDEr-D against steps and against milliseconds, with the interval of the difference to the first row."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
        start = self.results[0]["cider_d"]
        for label in dict.fromkeys(self.describe(result, with_steps=False) for result in self.results):
            own = [result for result in self.results if self.describe(result, with_steps=False) == label]
            values = np.array([start + result["gain"] for result in own])
            ends = start + np.array([result["interval"] for result in own]).T  # (2, points)
            errors = np.abs(ends - values)
            for axis, key in zip(axes, ("num_inference_steps", "milliseconds"), strict=True):
                places = [result[key] for result in own]
                axis.errorbar(places, values, errors, marker="o", markersize=3, capsize=2, linewidth=1, label=label)
        for axis, label in zip(axes, ("steps", "processor time of a caption, ms"), strict=True):
            axis.axhline(start, color="grey", linewidth=0.8, linestyle="--")
            axis.set(xlabel=label, xscale="log")
            axis.grid(alpha=0.3)
        axes[0].set(ylabel="CIDEr-D x 100")
        axes[0].legend(frameon=False, fontsize=7)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)

    def write(self, folder: Path) -> None:
        """Write the table, the numbers and the plot."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [self.columns, ["---"] * len(self.columns), *map(self.row, self.results)]
        table = "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)
        (folder / "curve.md").write_text(f"{table}\n{self.fastest()}\n")
        kept = [{**result, "scores": result["scores"].round(2).tolist()} for result in self.results]
        (folder / "curve.json").write_text(json.dumps(kept, indent=1))
        self.plot(folder / "curve.png")


# --- the command ------------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parts = parser.add_subparsers(dest="part", required=True)
    speed = parts.add_parser("speed", help="milliseconds of a caption at the released size")
    speed.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], help="pictures at a time (default: 1 8)")
    speed.add_argument("--steps", type=int, nargs="+", default=[50, 20, 10], help="of the sampler (default: 50 20 10)")
    speed.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    speed.add_argument("--repeats", type=int, default=3, help="rounds whose median counts (default: 3)")
    speed.add_argument("--sizes", default="{}", help="fields of the config in JSON, for another size")
    curve = parts.add_parser("curve", help="CIDEr-D and time by sampler and number of steps")
    curve.add_argument("--model", required=True, help="folder of a trained SCD-Net")
    curve.add_argument("--annotations", required=True, help="JSON file in Karpathy's layout")
    curve.add_argument("--split", default="val", help="default: val")
    curve.add_argument("--features", required=True, help="store of the pictures' features")
    curve.add_argument("--retrieved", help="sentences of the pictures, of `hf-captioners retrieval lookup`")
    curve.add_argument("--previous", help="captions of the first stage, for a second stage that is no cascade")
    curve.add_argument("--num-images", type=int, help="so many of the pictures, drawn by chance (default: all)")
    curve.add_argument("--batch-size", type=int, default=50, help="pictures at a time (default: 50)")
    curve.add_argument("--samplers", nargs="+", default=["paper", "ddim"], help="default: paper ddim")
    curve.add_argument(
        "--steps", type=int, nargs="+", default=[50, 20, 10, 5, 3, 2, 1], help="of a single or last stage"
    )
    curve.add_argument("--spacings", type=float, nargs="+", default=[1.0], help="of the time, but for the paper's")
    curve.add_argument("--time-differences", type=float, nargs="+", default=[0.0], help="in steps (default: 0)")
    curve.add_argument("--word-choices", nargs="+", default=["bits"], help="bits or likeliest (default: bits)")
    curve.add_argument("--self-conditions", nargs="+", default=["none"], help="none or previous (default: none)")
    curve.add_argument("--cascades", nargs="+", default=["online"], help="online or offline (default: online)")
    curve.add_argument(
        "--first-steps", type=int, nargs="+", default=[50], help="of a cascade's first stage (default: 50)"
    )
    curve.add_argument("--out", type=Path, help="folder for curve.png, curve.md and curve.json")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), {platform.machine()}, processor time\n")
    with torch.inference_mode():
        if args.part == "speed":
            columns = ["batch", "dtype", "steps", "ms per caption", "plain / ours", "50 steps / these"]
            show(columns, measure_speed(args))
            return
        curve = Curve(args)
        show(curve.columns, curve.measure())
    print(f"\n{curve.fastest()}")
    if args.out is not None:
        curve.write(args.out)


if __name__ == "__main__":
    main()
