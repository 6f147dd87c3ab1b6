"""Scores of captions that are spread over processes equal those of one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from contracts.hanging import HANGING_S

import hf_captioners
from hf_captioners.metric_table import METRICS as TABLE
from hf_captioners.metrics.distributed import gather_rows
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.suite import CaptionMetrics

PACKAGE = str(Path(hf_captioners.__file__).parent)
METRICS = [name for name, metric in TABLE.items() if metric.needs is None]

TWO_PROCESSES = """
import json, sys, types
package = types.ModuleType("hf_captioners")  # without its models, which take seconds to import
package.__path__ = [sys.argv[3]]
sys.modules["hf_captioners"] = package
import torch.distributed as dist
from hf_captioners.metrics.suite import CaptionMetrics

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
predictions, references = json.load(open(f"{folder}/captions.json"))
ids = list(range(len(predictions)))
mine = ids[rank::2]
if len(mine) < len(ids[0::2]):
    mine = mine + ids[:1]  # what a sampler repeats to give all processes equally many
evaluation = CaptionMetrics(json.load(open(f"{folder}/metrics.json")))(
    [predictions[i] for i in mine], [references[i] for i in mine], image_ids=mine, distributed=True
)
per_image = {name: dict(zip(evaluation.image_ids, values.tolist())) for name, values in evaluation.per_image.items()}
json.dump([evaluation.corpus, per_image, evaluation.signature["images"]], open(f"{folder}/scores_{rank}.json", "w"))
dist.destroy_process_group()
"""


def test_two_gloo_processes_equal_one(metric_case, tmp_path):
    case = metric_case("satic_500")
    predictions, references = case.predictions[:301], case.references[:301]
    (tmp_path / "captions.json").write_text(json.dumps([predictions, references]))
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    command = [sys.executable, "-c", TWO_PROCESSES]
    processes = [subprocess.Popen([*command, str(rank), str(tmp_path), PACKAGE]) for rank in range(2)]
    assert [process.wait(timeout=HANGING_S) for process in processes] == [0, 0]
    expected = CaptionMetrics(METRICS)(predictions, references)
    for rank in range(2):
        corpus, per_image, images = json.loads((tmp_path / f"scores_{rank}.json").read_text())
        assert images == 301
        assert corpus == pytest.approx(expected.corpus, rel=1e-12, abs=1e-12)
        for name, values in expected.per_image.items():
            assert [per_image[name][str(i)] for i in range(301)] == pytest.approx(values.tolist(), rel=1e-12, abs=1e-12)


def test_one_process_needs_no_process_group():
    assert gather_rows([1, 2], ["a", "b"], [["x"], ["y"]]) == ([1, 2], ["a", "b"], [["x"], ["y"]])


def test_repeated_images_are_dropped_and_contradictions_named():
    assert gather_rows([1, 2, 1], ["a", "b", "a"]) == ([1, 2], ["a", "b"])
    with pytest.raises(MetricInputError, match="image 1: two processes have different captions"):
        gather_rows([1, 1], ["a", "b"])
    with pytest.raises(MetricInputError, match="needs image_ids"):
        gather_rows(None, ["a"])
