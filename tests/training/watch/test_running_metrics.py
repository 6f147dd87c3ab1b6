"""Means between two logs: over numbers, not over batches, and over processes."""

import json
import math
import statistics
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from accelerate import Accelerator
from contracts.hanging import HANGING_S

from hf_captioners.training.watch.running_metrics import RunningMetrics

TWO_PROCESSES = """
import json, os, sys
import torch
rank, folder = int(sys.argv[1]), sys.argv[2]
os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import torch.distributed as dist
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
from accelerate import Accelerator
from hf_captioners.training.watch.running_metrics import RunningMetrics
accelerator, metrics = Accelerator(cpu=True), RunningMetrics()
assert accelerator.num_processes == 2
for name, values in json.load(open(f"{folder}/given.json"))[rank]:
    (metrics.add_deviation if name.endswith("/std") else metrics.add)(name, torch.tensor(values))
results = [metrics.pop(accelerator)]
metrics.add("reward", torch.tensor([float(rank)]))
results.append(metrics.pop(accelerator))
json.dump(results, open(f"{folder}/result_{rank}.json", "w"))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def popped(accelerator, given):
    metrics = RunningMetrics()
    for name, values in given:
        (metrics.add_deviation if name.endswith("/std") else metrics.add)(name, values)
    return metrics.pop(accelerator)


def test_the_mean_is_over_numbers_whatever_the_batches(accelerator):
    values = torch.arange(12, dtype=torch.float32) ** 2
    whole = popped(accelerator, [("reward", values)])
    parts = popped(accelerator, [("reward", part) for part in values.split([1, 4, 0, 7])])
    assert whole == parts == {"reward": sum(i * i for i in range(12)) / 12}


def test_shapes_and_types(accelerator):
    given = [("a", torch.tensor([[1, 2], [3, 4]])), ("b", torch.tensor([True, False, True, True]))]
    given += [("c", torch.tensor(5.0)), ("d", torch.tensor([1.5, 2.5], dtype=torch.bfloat16))]
    assert popped(accelerator, given) == {"a": 2.5, "b": 0.75, "c": 5.0, "d": 2.0}


def test_sums_are_exact_enough_for_many_numbers(accelerator):
    """In float32 the sum would stop to grow."""
    values = torch.full((1000,), 0.1)
    given = [("reward", values)] * 200
    assert popped(accelerator, given)["reward"] == pytest.approx(float(values[0]), rel=1e-12)


def test_no_gradient_is_kept(accelerator):
    values = torch.ones(2, requires_grad=True)
    assert popped(accelerator, [("loss", values * 3)]) == {"loss": 3.0}


def test_extremes(accelerator):
    given = [("completions/min_length", torch.tensor(one)) for one in ([5, 3], [4], [9, 7])]
    given += [("completions/max_length", torch.tensor(one)) for one in ([5, 3], [9], [4, 7])]
    given += [("completions/mean_length", torch.tensor(one)) for one in ([5, 3], [9], [4, 7])]
    expected = {"completions/min_length": 3.0, "completions/max_length": 9.0, "completions/mean_length": 28 / 5}
    assert popped(accelerator, given) == expected


@pytest.mark.parametrize("sizes", [[24], [1] * 24, [1, 4, 0, 12, 7]])
def test_the_deviation_is_of_the_numbers_whatever_the_batches(accelerator, sizes):
    values = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).flatten() * 0.1 + 1000  # a mean far from 0
    parts = [("rewards/x/std", part) for part in values.split(sizes)]
    expected = statistics.pstdev(map(Fraction, values.tolist()))  # exact sums
    assert popped(accelerator, parts) == {"rewards/x/std": pytest.approx(float(expected), rel=1e-12)}


def test_equal_numbers_have_no_deviation(accelerator):
    """Not even by the rounding of their mean."""
    assert popped(accelerator, [("a/std", torch.full((size,), 2.3)) for size in (7, 1, 12)]) == {"a/std": 0.0}
    assert popped(accelerator, [("a/std", torch.tensor([2, 4])), ("a/std", torch.tensor(3))])["a/std"] ** 2 == (
        pytest.approx(2 / 3)
    )


def test_deviation_of_what_is_no_number(accelerator):
    assert math.isnan(
        popped(accelerator, [("a/std", torch.tensor([1.0, math.nan])), ("a/std", torch.ones(3))])["a/std"]
    )


def test_nothing_added_is_nothing_logged(accelerator):
    assert popped(accelerator, [("rewards/chosen", torch.tensor([])), ("rewards/x/std", torch.tensor([]))]) == {}


def test_it_forgets_what_was_asked_for(accelerator):
    metrics = RunningMetrics()
    metrics.add("max_length", torch.tensor([9.0]))
    metrics.add_deviation("a/std", torch.tensor([0.0, 2.0]))
    assert metrics.pop(accelerator) == {"max_length": 9.0, "a/std": 1.0}
    assert metrics.pop(accelerator) == {}
    metrics.add("max_length", torch.tensor([2.0]))
    assert metrics.pop(accelerator) == {"max_length": 2.0}


def test_two_processes_equal_one(tmp_path, accelerator):
    """Also for a name that only one of them knows, as when a picture has no pair."""
    given = [
        [("reward", [1.0, 2.0, 6.0]), ("min_length", [4, 6]), ("max_length", [4, 6]), ("rewards/chosen", [0.5])],
        [("reward", [11.0]), ("min_length", [3]), ("max_length", [3]), ("b/std", [1.0, 5.0])],
    ]
    given[0].append(("a/std", [1.0, 2.0, 6.0]))
    given[1].append(("a/std", [11.0]))
    (tmp_path / "given.json").write_text(json.dumps(given))
    processes = [subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=HANGING_S) for process in processes] == [0, 0]
    expected = popped(accelerator, [(name, torch.tensor(values)) for one in given for name, values in one])
    numbers = {"reward": 5.0, "min_length": 3.0, "max_length": 6.0, "rewards/chosen": 0.5}
    assert expected == {**numbers, "b/std": 2.0, "a/std": pytest.approx(statistics.pstdev([1, 2, 6, 11]), rel=1e-12)}
    for rank in range(2):
        assert json.loads((tmp_path / f"result_{rank}.json").read_text()) == [expected, {"reward": 0.5}]
