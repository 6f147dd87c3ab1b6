"""The metrics beside the reference tools (pycocoevalcap: Java and Python), in one run.

    pip install pycocoevalcap            # and Java, for the reference's side
    taskset -c 0 python benchmarks/bench_metrics.py --captions ../shared/data/coco_captions

The data are real: COCO's human captions of val2014 and a published system's captions of the same pictures. Parts:
tokenisation, BLEU, ROUGE-L, CIDEr-D and METEOR on the 5,000 pictures of Karpathy's test split; all but METEOR by the
suite; the CIDEr-D reward once its references are prepared; the whole of val2014. Prints a table with seconds of the
processor, those of Java included (the faster of two runs of each side, in turns), ratios, and the scores of both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import io
import json
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hf_captioners.metrics import CaptionMetrics, Evaluation, bleu, cider_d, meteor, ptb_tokenize, rouge_l
from hf_captioners.metrics.ptb import tokenizer as ptb_tokenizer
from hf_captioners.metrics.ptb.rules import token_rules
from hf_captioners.rewards.cider import CiderDReward

ROUNDS = 2
Captions = tuple[list[str], list[list[str]]]


def read_json(path: Path) -> Any:
    """A gzipped JSON file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def load(folder: Path) -> tuple[Captions, Captions]:
    """Predictions and references of Karpathy's test split and of all of val2014."""
    references: dict[int, list[str]] = {}
    for annotation in read_json(folder / "captions_val2014.json.gz")["annotations"]:
        references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    predictions = {row["image_id"]: row["caption"] for row in read_json(folder / "results_satic_val2014.json.gz")}
    test = [int(line) for line in (folder / "karpathy_test_image_ids.txt").read_text().split()]
    return tuple(  # type: ignore[return-value]
        ([predictions[name] for name in names], [references[name] for name in names])
        for names in (sorted(test), sorted(references))
    )


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that the processor spends on a call and on programs that it starts, and its result."""
    start = processor_seconds()
    value = run()
    return processor_seconds() - start, value


def both_seconds(
    own: Callable[[], Any], reference: Callable[[], Any] | None
) -> tuple[tuple[float, Any], tuple[float | None, Any]]:
    """Seconds and results of both sides: the faster of two runs, in turns."""
    own_runs, reference_runs = [], []
    for _ in range(ROUNDS):
        own_runs.append(seconds(own))
        if reference is not None:
            reference_runs.append(seconds(reference))
    own_seconds = min(took for took, _ in own_runs), own_runs[0][1]
    if not reference_runs:
        return own_seconds, (None, None)
    return own_seconds, (min(took for took, _ in reference_runs), reference_runs[0][1])


def processor_seconds() -> float:
    """Seconds of this process and of the programs that it has started and that have ended."""
    programs = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + programs.ru_utime + programs.ru_stime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what the reference prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class Reference:
    """The metrics of pycocoevalcap, called as `eval.py` of coco-caption does."""

    def tokenize(self, captions: Captions) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        """Tokens of references and predictions by image."""
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        numbered = {i: [{"caption": caption} for caption in references] for i, references in enumerate(captions[1])}
        predictions = {i: [{"caption": caption}] for i, caption in enumerate(captions[0])}
        tokenizer = PTBTokenizer()
        return tokenizer.tokenize(numbered), tokenizer.tokenize(predictions)

    def score(self, name: str, tokens: Any) -> dict[str, float]:
        """Corpus scores of one metric."""
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge

        with quiet():
            if name == "bleu":
                values = Bleu(4).compute_score(*tokens)[0]
                return {f"bleu_{n}": float(value) for n, value in enumerate(values, 1)}
            scorer = {"rouge_l": Rouge, "cider_d": Cider, "meteor": Meteor}[name]()
            return {name: float(scorer.compute_score(*tokens)[0])}


def forget_captions() -> None:
    """Clear what the tokenizer keeps for captions that come again, as a process begins."""
    re.purge()
    token_rules.cache_clear()
    ptb_tokenizer._any_caption.cache_clear()


def tokenize(captions: Captions) -> tuple[list[str], list[list[str]]]:
    """Our tokens of predictions and references."""
    forget_captions()
    flat = iter(ptb_tokenize([*captions[0], *(reference for references in captions[1] for reference in references)]))
    return [next(flat) for _ in captions[0]], [[next(flat) for _ in references] for references in captions[1]]


def evaluate(captions: Captions) -> Evaluation:
    """BLEU, ROUGE-L and CIDEr-D of captions as they were written."""
    forget_captions()
    return CaptionMetrics(["bleu", "rouge_l", "cider_d"])(*captions)


def bench_parts(captions: Captions, reference: Reference | None) -> list[tuple[str, float, float | None]]:
    """Rows (part, our seconds, the reference's seconds) on the pictures of one split."""
    rows: list[tuple[str, float, float | None]] = []
    (own_seconds, tokens), (reference_seconds, reference_tokens) = both_seconds(
        lambda: tokenize(captions), (lambda: reference.tokenize(captions)) if reference else None
    )
    rows.append(("tokenise", own_seconds, reference_seconds))
    functions: dict[str, Any] = {"bleu": bleu, "rouge_l": rouge_l, "cider_d": cider_d, "meteor": meteor}
    for name, function in functions.items():
        (own_seconds, scores), (reference_seconds, expected) = both_seconds(
            lambda function=function: function(*tokens, tokenized=True).corpus,
            (lambda name=name: reference.score(name, reference_tokens)) if reference else None,
        )
        if expected:
            worst = max(abs(scores[key] - value) for key, value in expected.items())
            print(f"{name}: {scores}, largest difference from the reference {worst:.1e}", file=sys.stderr)
        rows.append((name, own_seconds, reference_seconds))
    return rows


def bench_reward(captions: Captions) -> tuple[float, float]:
    """Captions a second of the CIDEr-D reward: with prepared references, and of the first call."""
    tokens = tokenize(captions)
    from hf_captioners.metrics import DocumentFrequencies

    first, again = [], []
    for _ in range(ROUNDS):
        reward = CiderDReward(DocumentFrequencies.from_references(tokens[1], tokenized=True), tokenized=True)
        first.append(seconds(lambda reward=reward: reward(completions=tokens[0], captions=tokens[1]))[0])
        again.append(seconds(lambda reward=reward: reward(completions=tokens[0], captions=tokens[1]))[0])
    return len(tokens[0]) / min(again), len(tokens[0]) / min(first)


def main() -> None:
    """Run all parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="folder with captions_val2014.json.gz and others")
    parser.add_argument("--without-val2014", action="store_true", help="leave the whole of val2014 out")
    args = parser.parse_args()
    has_reference = importlib.util.find_spec("pycocoevalcap") is not None and shutil.which("java") is not None
    reference = Reference() if has_reference else None
    test, val2014 = load(args.captions)
    rows = bench_parts(test, reference)
    parts = [row for row in rows if row[0] != "meteor"]
    total = sum(row[1] for row in parts), sum(row[2] for row in parts) if reference else None
    (suite_seconds, _), _ = both_seconds(lambda: evaluate(test), None)
    rows[-1:-1] = [("all of these", *total), ("the same by `CaptionMetrics`", suite_seconds, total[1])]
    print(f"{platform.machine()}, Python {platform.python_version()}, {len(test[0])} pictures, "
          f"{sum(map(len, test[1]))} references, one process\n")  # fmt: skip
    print("| part | here, s | pycocoevalcap, s | ratio |\n|---|---|---|---|")
    for name, own_seconds, reference_seconds in rows:
        print(
            f"| {name} | {own_seconds:.2f} | "
            + (f"{reference_seconds:.2f} | {reference_seconds / own_seconds:.1f} |" if reference_seconds else " | |")
        )
    rate, first_rate = bench_reward(test)
    print(f"\nCIDEr-D reward: {rate:,.0f} captions/s with prepared references, {first_rate:,.0f} on the first call")
    if not args.without_val2014:
        took, evaluation = seconds(lambda: evaluate(val2014))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"val2014, {len(val2014[0]):,} pictures, {sum(map(len, val2014[1])):,} references, tokenised and "
              f"scored (BLEU, ROUGE-L, CIDEr-D): {took:.1f} s, at most {memory:.1f} GiB; "
              f"CIDEr-D {evaluation.corpus['cider_d']:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
