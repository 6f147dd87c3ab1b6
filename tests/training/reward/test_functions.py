"""Calls of reward functions: TRL's way, its own functions, and what is refused."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contracts.hanging import HANGING_S
from transformers import GPT2Config, GPT2ForSequenceClassification, TrainerState

from hf_captioners.rewards import BleuReward, LengthReward, RepetitionReward
from hf_captioners.training.reward.functions import RewardError, RewardFunctions

COMPLETIONS = ["a dog", "a dog runs", "cats"]
COLUMNS: dict[str, Any] = {"image_id": [7, 7, 9], "captions": [["a dog"], ["a dog"], ["two cats"]]}
NAN = math.nan


def words(completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(caption.split())) for caption in completions]


def dogs(completions: list[str], **kwargs: Any) -> list[float | None]:
    return [1.0 if "dog" in caption else None for caption in completions]


async def later(completions: list[str], **kwargs: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [0.5, None, 2.0]


class Bonus:
    def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return [10.0] * len(completions)


class AsyncBonus:
    async def __call__(self, completions: list[str], **kwargs: Any) -> list[float]:
        return [20.0] * len(completions)


def returning(value: Any) -> Callable[..., Any]:
    def constant(**kwargs: Any) -> Any:
        return value

    return constant


def equal(found: torch.Tensor, expected: list[Any]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


class TestResult:
    def test_weighted_sum_of_those_that_apply(self) -> None:
        result = RewardFunctions([words, dogs, later, Bonus()], [1.0, 2.0, -4.0, 0.0])(COMPLETIONS, **COLUMNS)
        assert result.names == ["words", "dogs", "later", "Bonus"]
        equal(result.per_function, [[2.0, 1.0, 0.5, 10.0], [3.0, 1.0, NAN, 10.0], [1.0, NAN, 2.0, 10.0]])
        equal(result.total, [2.0 + 2.0 - 2.0, 3.0 + 2.0, 1.0 - 8.0])
        assert result.per_function.dtype == result.total.dtype == torch.float32
        assert result.applies.all()

    def test_weights_are_1(self) -> None:
        equal(RewardFunctions([words, dogs])(COMPLETIONS).total, [3.0, 4.0, 1.0])

    def test_one_function_without_a_list(self) -> None:
        result = RewardFunctions(words)(completions=COMPLETIONS)
        assert result.names == ["words"]
        equal(result.total, [2.0, 3.0, 1.0])

    @pytest.mark.parametrize(
        "values",
        [
            torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
            torch.tensor([1, 2, 3], dtype=torch.bfloat16),
            np.array([1.0, 2.0, 3.0]),
            (1, 2, 3),
            [torch.tensor(1.0), np.float64(2), 3],
            {1: "a", 2: "b", 3: "c"}.keys(),
        ],
        ids=["tensor", "bfloat16", "array", "tuple", "mixed", "iterable"],
    )
    def test_kinds_of_numbers(self, values: Any) -> None:
        result = RewardFunctions(returning(values))(COMPLETIONS)
        equal(result.total, [1.0, 2.0, 3.0])
        assert not result.total.requires_grad

    def test_names(self) -> None:
        def words_2(**kwargs: Any) -> list[float]:
            return [0.0] * 3

        functions = [words, functools.partial(words, unit=1), words_2, Bonus(), BleuReward(n=2), Bonus()]
        expected = ["words", "words_2", "words_2_2", "Bonus", "bleu_2", "Bonus_2"]
        assert RewardFunctions(functions).names == expected

    def test_the_rewards_of_the_package(self) -> None:
        functions = [BleuReward(n=1), RepetitionReward(n=1), LengthReward(maximum=2)]
        result = RewardFunctions(functions, [1.0, 1.0, 0.5])(["a dog", "a dog dog dog"], captions=[["a dog"]] * 2)
        assert result.names == ["bleu_1", "repetition", "length"]
        torch.testing.assert_close(result.per_function, torch.tensor([[1.0, 0.0, 0.0], [0.5, -0.5, -2.0]]))
        torch.testing.assert_close(result.total, torch.tensor([1.0, -1.0]))


class TestNotApplicable:
    def test_a_completion_without_any_reward(self, caplog: pytest.LogCaptureFixture) -> None:
        rewards = RewardFunctions([dogs, returning([None, 1.0, None])])
        with caplog.at_level(logging.WARNING):
            result = rewards(COMPLETIONS, **COLUMNS)
        equal(result.per_function, [[1.0, NAN], [1.0, 1.0], [NAN, NAN]])
        equal(result.total, [1.0, 2.0, NAN])
        assert result.applies.tolist() == [True, True, False]
        assert caplog.messages == [
            "1 of 3 completions have no reward and are left out: dogs and constant gave None, first for completion 2 "
            "(image_id 9), 'cats'"
        ]

    def test_nothing_to_warn_of(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            RewardFunctions([dogs, words])(COMPLETIONS)
        assert caplog.messages == []

    def test_applies_with_weight_0(self) -> None:
        equal(RewardFunctions([words], [0.0])(COMPLETIONS).total, [0.0, 0.0, 0.0])


class TestArguments:
    def test_all_that_trl_gives(self) -> None:
        seen: dict[str, Any] = {}

        def everything(**kwargs: Any) -> list[float]:
            seen.update(kwargs)
            return [0.0] * 3

        state, pixel_values = object(), torch.zeros(2, 3, 4, 4)
        RewardFunctions(everything)(
            completions=COMPLETIONS,
            completion_ids=[[1], [2], [3]],
            trainer_state=state,
            pixel_values=pixel_values,
            **COLUMNS,
        )
        assert callable(seen.pop("log_extra")) and callable(seen.pop("log_metric"))
        assert seen.pop("pixel_values") is pixel_values and seen.pop("trainer_state") is state
        expected = {"prompts": ["", "", ""], "completions": COMPLETIONS, "completion_ids": [[1], [2], [3]], **COLUMNS}
        assert seen == expected

    def test_without_kwargs_what_the_signature_names(self) -> None:
        def matches(completions: list[str], captions: list[list[str]], missing: str = "absent") -> list[bool]:
            assert missing == "absent"
            return [one in several for one, several in zip(completions, captions, strict=True)]

        class Method:
            def __call__(self, completion_ids: list[list[int]]) -> list[int]:
                return [len(ids) for ids in completion_ids]

        async def images(*, image_id: list[int]) -> list[int]:
            return image_id

        result = RewardFunctions([matches, Method(), images])(COMPLETIONS, [[1], [1, 2], []], **COLUMNS)
        equal(result.per_function, [[1.0, 1.0, 7.0], [0.0, 2.0, 7.0], [0.0, 0.0, 9.0]])

    def test_a_column_that_is_not_there(self) -> None:
        def needs(completions: list[str], spices: list[str], **kwargs: Any) -> list[float]:
            raise AssertionError

        message = (
            "the reward 'needs' needs 'spices', but there are only captions, completions, image_id, log_extra, "
            "log_metric, prompts, trainer_state"
        )
        with pytest.raises(ValueError, match=message):
            RewardFunctions([words, needs])(COMPLETIONS, **COLUMNS)

    def test_no_gradient(self) -> None:
        def graph(**kwargs: Any) -> list[bool]:
            return [torch.is_grad_enabled()] * 3

        async def async_graph(**kwargs: Any) -> list[bool]:
            return [torch.is_grad_enabled()] * 3

        equal(RewardFunctions([graph, async_graph])(COMPLETIONS).total, [0.0] * 3)
        assert torch.is_grad_enabled()


class TestAsync:
    def test_they_run_at_the_same_time_after_the_others(self) -> None:
        """Each waits for the other, which would last for ever one after another."""
        order: list[str] = []

        def meeting() -> list[Callable[..., Any]]:
            events: list[asyncio.Event] = []

            async def one(**kwargs: Any) -> list[float]:
                events.append(asyncio.Event())
                while len(events) < 2:
                    await asyncio.sleep(0)
                events[1].set()
                order.append("one")
                return [1.0] * 3

            async def two(**kwargs: Any) -> list[float]:
                while not events:
                    await asyncio.sleep(0)
                events.append(asyncio.Event())
                await asyncio.wait_for(events[1].wait(), timeout=HANGING_S)
                order.append("two")
                return [2.0] * 3

            def sync(**kwargs: Any) -> list[float]:
                order.append("sync")
                return [3.0] * 3

            return [one, two, sync]

        result = RewardFunctions(meeting())(COMPLETIONS)
        equal(result.per_function, [[1.0, 2.0, 3.0]] * 3)
        assert order == ["sync", "one", "two"]

    def test_all_forms(self) -> None:
        functions = [AsyncBonus(), functools.partial(later), lambda **kwargs: later(**kwargs), later]
        result = RewardFunctions(functions)(COMPLETIONS)
        assert result.names == ["AsyncBonus", "later", "<lambda>", "later_2"]
        equal(result.per_function, [[20.0, 0.5, 0.5, 0.5], [20.0, NAN, NAN, NAN], [20.0, 2.0, 2.0, 2.0]])

    def test_where_a_loop_is_running(self) -> None:
        """As in a notebook."""
        rewards = RewardFunctions([later, words])

        async def cell() -> torch.Tensor:
            return rewards(COMPLETIONS).total

        equal(asyncio.run(cell()), [2.5, 3.0, 3.0])

    def test_the_loop_stays_the_same(self) -> None:
        """So that a client that a function keeps works in the next call, too."""

        class Client:
            lock: asyncio.Lock | None = None
            loops: set[Any] = set()

            async def __call__(self, **kwargs: Any) -> list[float]:
                self.lock = self.lock or asyncio.Lock()
                self.loops.add(asyncio.get_running_loop())
                async with self.lock:
                    await asyncio.sleep(0)
                return [1.0] * 3

        client = Client()
        rewards = RewardFunctions([client, client])
        for _ in range(3):
            rewards(COMPLETIONS)
        assert len(client.loops) == 1

    def test_the_thread_ends_with_its_owner(self) -> None:
        threads: list[threading.Thread] = []

        async def where(**kwargs: Any) -> list[float]:
            threads.append(threading.current_thread())
            return [1.0] * 3

        rewards = RewardFunctions(where)
        rewards(COMPLETIONS)
        assert threads[0] is not threading.main_thread() and threads[0].daemon
        del rewards
        gc.collect()
        threads[0].join(timeout=HANGING_S)
        assert not threads[0].is_alive()

    def test_pickled_after_use(self) -> None:
        rewards = RewardFunctions([later, AsyncBonus()], [1.0, 0.1])
        expected = rewards(COMPLETIONS).total.tolist()
        equal(pickle.loads(pickle.dumps(rewards))(COMPLETIONS).total, expected)

    @pytest.mark.filterwarnings("error")
    def test_none_is_left_waiting(self) -> None:
        def fails(**kwargs: Any) -> list[float]:
            raise KeyError("no")

        rewards = RewardFunctions([later, fails])
        with pytest.raises(RewardError, match="the reward 'fails' failed: KeyError: 'no'"):
            rewards(COMPLETIONS)
        gc.collect()  # "coroutine was never awaited" would be raised here


class TestLogs:
    def test_columns_and_metrics(self) -> None:
        def first(completions: list[str], log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
            log_extra("words", [len(one.split()) for one in completions])
            log_metric("share", 0.25)
            return [0.0] * 3

        async def second(log_extra: Any, log_metric: Any) -> list[float]:
            log_extra("colour", ("red", None, "blue"))
            log_metric("share", torch.tensor(0.75))
            log_metric("own", 1)
            return [0.0] * 3

        rewards = RewardFunctions([first, second])
        for _ in range(2):  # nothing is left of the call before
            result = rewards(COMPLETIONS)
            assert result.extra == {"words": [2, 3, 1], "colour": ["red", None, "blue"]}
            assert result.metrics == {"share": 0.5, "own": 1.0}

    def test_a_column_of_two_functions(self) -> None:
        def logging_as(value: str) -> Callable[..., Any]:
            def judge(log_extra: Any, **kwargs: Any) -> list[float]:
                log_extra("verdict", [value] * 3)
                return [0.0] * 3

            return judge

        result = RewardFunctions([logging_as("yes"), logging_as("no")])(COMPLETIONS)
        assert result.extra == {"judge/verdict": ["yes"] * 3, "judge_2/verdict": ["no"] * 3}

    def test_a_column_of_another_length(self) -> None:
        def short(log_extra: Any, **kwargs: Any) -> list[float]:
            log_extra("words", [1])
            return [0.0] * 3

        message = r"the reward 'short' failed: ValueError: log_extra\('words'\): 1 values for 3 completions"
        with pytest.raises(RewardError, match=message):
            RewardFunctions(short)(COMPLETIONS)


class TestErrors:
    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([1.0, 2.0], "the reward 'constant' returned 2 values for 3 completions"),
            ([1.0, "2", None], r"gave '2' \(str\) for completion 1, expected a finite number or None"),
            ([1.0, None, [2.0]], r"gave \[2.0\] \(list\) for completion 2"),
            (torch.ones(3, 1), r"gave \[1.0\] \(list\) for completion 0"),
            ([1.0, torch.ones(2), 1.0], r"gave tensor\(\[1., 1.\]\) \(Tensor\) for completion 1"),
            ([1.0, 1j, 1.0], r"gave 1j \(complex\) for completion 1"),
            ([1.0, math.inf, 2.0], r"gave inf \(float\) for completion 1, expected a finite number or None"),
            ([1.0, 1e39, 2.0], r"gave 1e\+39 \(float\) for completion 1, expected a finite number"),
            ([1.0, 10**400, 2.0], "for completion 1, expected a finite number or None"),
            ([1.0, math.nan, 2.0], "gave nan .* for completion 1, expected a finite number or None"),
            (torch.tensor([1.0, 2.0, math.nan]), "gave nan .* for completion 2, expected a finite number or None"),
            (1.0, r"returned 1.0 \(float\), expected a list of 3 numbers or None"),
            (torch.tensor(1.0), r"returned tensor\(1.\) \(Tensor\), expected a list"),
            (None, r"returned None \(NoneType\), expected a list"),
            ("abc", r"returned 'abc' \(str\), expected a list"),
            ({"a": 1}, r"returned \{'a': 1\} \(dict\), expected a list"),
        ],
    )
    def test_what_is_returned(self, values: Any, message: str) -> None:
        async def constant(**kwargs: Any) -> Any:
            return values

        for function in (returning(values), constant):
            with pytest.raises(ValueError, match=message):
                RewardFunctions([words, function])(COMPLETIONS)

    def test_what_is_raised(self) -> None:
        async def breaks(**kwargs: Any) -> list[float]:
            raise TimeoutError("no answer")

        with pytest.raises(RewardError, match="the reward 'breaks' failed: TimeoutError: no answer") as caught:
            RewardFunctions([words, later, breaks])(COMPLETIONS)
        assert isinstance(caught.value.__cause__, TimeoutError)
        with pytest.raises(RewardError, match="the reward 'bleu_4' failed: MetricInputError: image 2: no references"):
            RewardFunctions([BleuReward()])(COMPLETIONS, captions=[["a dog"], ["a dog"], []])

    def test_what_is_no_function(self) -> None:
        for functions, message in (
            ([words, BleuReward], r"BleuReward is a class; give an object of it as the reward: BleuReward\(...\)"),
            (["cider_d"], r"'cider_d' \(str\): reward models"),
            ([words, 3], r"3 \(int\) is no reward function"),
            (None, r"None \(NoneType\) is no reward function"),
        ):
            with pytest.raises(TypeError, match=message):
                RewardFunctions(functions)  # type: ignore[arg-type]

    def test_a_reward_model(self) -> None:
        model = GPT2ForSequenceClassification(GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=1))
        with pytest.raises(TypeError, match=r"\(GPT2ForSequenceClassification\): reward models"):
            RewardFunctions(model)

    @pytest.mark.parametrize(
        ("functions", "weights", "message"),
        [
            ([], None, "no reward functions"),
            ([words], [1.0, 2.0], "2 reward_weights for 1 functions"),
            ([words, dogs], [], "0 reward_weights for 2 functions"),
            ([words], [math.nan], "reward_weights .*: expected finite numbers"),
        ],
    )
    def test_weights(self, functions: Any, weights: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            RewardFunctions(functions, weights)

    def test_lengths(self) -> None:
        with pytest.raises(ValueError, match="no completions"):
            RewardFunctions(words)([])
        with pytest.raises(ValueError, match="2 values of 'captions' for 3 completions"):
            RewardFunctions(words)(COMPLETIONS, captions=[["a"], ["b"]])
        with pytest.raises(ValueError, match="1 values of 'completion_ids' for 3 completions"):
            RewardFunctions(words)(COMPLETIONS, [[1]])


class TestTrl:
    def test_its_reward_functions_run(self) -> None:
        trl = pytest.importorskip("trl.rewards", reason="needs trl")
        overlong = trl.get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=4)
        repetition = trl.get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
        ids = [[1, 2, 3], [5] * 8, [1, 2] * 6]
        result = RewardFunctions([overlong, repetition])(COMPLETIONS, ids, **COLUMNS)
        assert result.names == ["soft_overlong_punishment_reward", "repetition_penalty_reward"]
        expected = [[0.0, 0.0], [-2 / 4, 1 / 7 - 1], [-1.0, 2 / 11 - 1]]  # 1 distinct 2-gram of 7, 2 of 11
        torch.testing.assert_close(result.per_function, torch.tensor(expected))

    def test_one_for_conversations_after_wrapping(self) -> None:
        trl = pytest.importorskip("trl.rewards", reason="needs trl")

        def thinks(completions: list[str], **kwargs: Any) -> list[float]:
            return trl.think_format_reward([[{"role": "assistant", "content": one}] for one in completions])

        equal(RewardFunctions(thinks)(["<think>x</think> a dog", "a dog"]).total, [1.0, 0.0])
        with pytest.raises(RewardError, match="the reward 'think_format_reward' failed: TypeError"):
            RewardFunctions(trl.think_format_reward)(COMPLETIONS)

    def test_its_trainer_names_and_sums_the_same(self) -> None:
        """`GRPOTrainer._calculate_rewards` itself, on a trainer that has nothing else."""
        grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="needs trl")
        utils = pytest.importorskip("trl.trainer.utils", reason="needs trl")
        functions = [words, dogs, later, AsyncBonus(), BleuReward(n=1)]
        ours = RewardFunctions(functions)(COMPLETIONS, [[1], [2], [3]], **COLUMNS)
        assert ours.names == [utils.get_callable_name(function) for function in functions]

        class Accelerator:
            device = torch.device("cpu")
            is_main_process = True

        trainer = grpo.GRPOTrainer.__new__(grpo.GRPOTrainer)
        trainer.accelerator, trainer.reward_funcs, trainer.reward_func_names = Accelerator(), functions, ours.names
        trainer.reward_processing_classes, trainer.state, trainer.environments = [None] * 5, TrainerState(), None
        trainer.args = type("Arguments", (), {"report_to": []})()
        trainer.async_loop_thread, trainer.async_loop, ready = utils.start_event_loop_in_daemon()
        ready.wait(timeout=HANGING_S)
        inputs = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
        theirs = trainer._calculate_rewards(inputs, [""] * 3, COMPLETIONS, [[1], [2], [3]])
        utils.shutdown_event_loop_in_daemon(trainer.async_loop_thread, trainer.async_loop)
        torch.testing.assert_close(ours.per_function, theirs, rtol=0, atol=0, equal_nan=True)
