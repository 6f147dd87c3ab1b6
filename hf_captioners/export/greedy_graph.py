"""One ONNX graph from pictures to words: greedy decoding inside of the graph.

The graph of the pictures is followed by an ONNX `Loop` whose body is the graph of a step, or by as many copies of that
graph as a caption can have words, for runtimes without `Loop`. All operators are standard ones of opset 20.

Input is that of the encoder; output `sequences` `(B, length)` as `generate(num_beams=1)` writes them: start token,
words, end token, padding; as long as the longest caption, or with copies as `max_length`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import EosTokenCriteria, MaxLengthCriteria, SuppressTokensLogitsProcessor

from ..modeling.captioner_beam_search import LogProbabilities
from ..modeling.decoding_satic import UnknownWordPenalty
from .graphs import START, Tensors
from .manifest import Manifest

if TYPE_CHECKING:
    import onnx_ir as ir

FILE = "greedy.onnx"
FORMS = ("loop", "unrolled")
_STOPS = (MaxLengthCriteria, EosTokenCriteria)
_ADDS = (UnknownWordPenalty, SuppressTokensLogitsProcessor)  # processors that add the same numbers at every place


@dataclass(frozen=True)
class GreedyRule:
    """Greedy decoding of a captioner.

    Args:
        start (`int`), pad (`int`): tokens.
        ends (`tuple[int, ...]`): end tokens.
        max_length (`int`): tokens of the longest caption, start token included.
        added (`torch.FloatTensor` of shape `(V,)`, *optional*): what is added to the scores of the words.
    """

    start: int
    pad: int
    ends: tuple[int, ...]
    max_length: int
    added: torch.Tensor | None

    @classmethod
    def of(cls, model: Any, images: Tensors) -> GreedyRule:
        """Read the rule of what `generate(num_beams=1)` would do.

        Args:
            model (`PreTrainedModel`): the captioner.
            images (`dict[str, torch.Tensor]`): any pictures.

        Raises:
            ValueError: an option of the generation config that is no part of a graph, by name.
        """
        found: dict[str, Any] = {}

        def look(model: Any, input_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
            found.update(arguments, prompt=input_ids)
            return input_ids

        model.generate(**images, num_beams=1, do_sample=False, num_return_sequences=1, custom_generate=look)
        config = found["generation_config"]
        others = [one for one in found["logits_processor"] if not isinstance(one, LogProbabilities)]
        strange = [type(one).__name__ for one in others if not isinstance(one, _ADDS)]
        strange += [type(one).__name__ for one in found["stopping_criteria"] if not isinstance(one, _STOPS)]
        if strange or vars(config).get("reference_quirks") or found["prompt"].shape[1] != 1:
            name = ", ".join(strange) or "reference_quirks or a prompt"
            raise ValueError(f"greedy graph: {name} of the generation config is no part of a graph")
        added = torch.zeros(1, model.config.vocab_size) if others else None
        for processor in others:
            added = processor(found["prompt"][:1], added)
        return cls(
            start=int(found["prompt"][0, 0]),
            pad=int(config._pad_token_tensor),
            ends=tuple(config._eos_token_tensor.tolist()),
            max_length=config.max_length,
            added=None if added is None else added[0],
        )


def greedy_graph(components: dict[str, Any], manifest: Manifest, rule: GreedyRule, form: str = "loop") -> ir.Model:
    """Compose the graphs of a captioner.

    Args:
        components (`dict[str, ExportedComponent]`): ONNX graphs `encoder` and `decoder`, which stay as they are.
        manifest ([`Manifest`]): their inputs.
        rule ([`GreedyRule`]): how words are chosen.
        form (`str`, defaults to `"loop"`): or `"unrolled"`.

    Returns:
        `onnx_ir.Model`
    """
    import onnx_ir as ir
    from onnx_ir import passes
    from onnx_ir.passes import common

    model = components["encoder"].program.clone()
    composer = _Composer(model.graph, components["decoder"].program.graph, manifest, rule)
    sequences = composer.loop() if form == "loop" else composer.unrolled()
    sequences.name, sequences.shape = "sequences", ir.Shape(["batch", "length"])
    sequences.dtype = ir.DataType.INT64
    model.graph.outputs.append(sequences)
    passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
    return model


def save_greedy_graph(model: ir.Model, folder: Path) -> None:
    """Write a graph, its weights beside it, and let ONNX's full check read it again.

    Args:
        model (`onnx_ir.Model`): of [`greedy_graph`].
        folder (`Path`): gets `greedy.onnx` and `greedy.onnx.data`.
    """
    import onnx
    import onnx_ir as ir

    ir.save(model, str(folder / FILE), external_data=f"{FILE}.data")
    onnx.checker.check_model(str(folder / FILE), full_check=True)


@dataclass
class _Row:
    """Words of captions and what goes on with them.

    Args:
        words (`(B, step)`): padding where a caption has ended.
        alive (`(B, step)`): 1 where it had not.
        ended (`(B, 1)`): whether it has now.
    """

    words: Any
    alive: Any
    ended: Any


def _named(values: Any) -> dict[str, Any]:
    """Inputs or outputs of a graph; transformers marks names that are of both."""
    return {value.name.removeprefix("input.").removeprefix("output."): value for value in values}


class _Composer:
    """Nodes behind those of the encoder."""

    def __init__(self, main: ir.Graph, decoder: ir.Graph, manifest: Manifest, rule: GreedyRule) -> None:
        import onnx_ir as ir

        self.ir, self.main, self.decoder, self.manifest, self.rule = ir, main, decoder, manifest, rule
        self.graph, self.tape = main, ir.tape.Tape(main)  # where nodes are added
        self.constants: dict[tuple[Any, ...], Any] = {}
        self.copies = self.added = 0
        self.weights = {name: self._register(f"decoder.{name}", value.const_value) for name, value in
                        decoder.initializers.items()}  # fmt: skip
        self.memory = _named(main.outputs)
        main.outputs.clear()
        for name, value in _named(main.inputs).items():
            value.name = name
        self.batch = self._op("Shape", self.memory["last_hidden_state"], start=0, end=1)  # (1,)
        rows = self._op("Range", self._int(0), self._op("Squeeze", self.batch), self._int(1))
        self.rows = self._op("Unsqueeze", rows, self._ints(1))  # (B, 1): each caption continues itself

    # -- the two forms ------------------------------------------------------------------------------------------------

    def loop(self) -> ir.Value:
        """Captions written by a `Loop`, as long as the longest of them."""
        start, state = self._start()
        step = self.manifest.step
        words = self._typed("words", "INT64", ["batch", step])
        ended = self._typed("ended", "BOOL", ["batch", 1])
        before = {name: self._typed(f"before_{name}", value.dtype.name, None) for name, value in state.items()}
        inputs = [self._typed("iteration", "INT64", []), self._typed("go_on", "BOOL", []), words, ended]
        body = self.ir.Graph([*inputs, *before.values()], [], nodes=[], name="step")
        self.graph, self.tape = body, self.ir.tape.Tape(body)
        row, after = self._step(words, ended, before)
        going_on = self._op("Cast", self._op("ReduceMax", self._number(self._op("Not", row.ended)), keepdims=0), to=9)
        names = ["going_on", "next_words", "next_ended", *(f"next_{name}" for name in state), "word", "alive"]
        kinds = ["BOOL", "INT64", "BOOL", *(value.dtype.name for value in state.values()), "INT64", "INT64"]
        values = [going_on, row.words, row.ended, *(after[name] for name in state), row.words, row.alive]
        body.outputs.extend(self._output(value, *named) for value, *named in zip(values, names, kinds, strict=True))
        self.graph, self.tape = self.main, self.ir.tape.Tape(self.main)
        results = self.tape.op_multi_out(
            "Loop",
            [self._int(self._steps()), self._constant(torch.tensor(True)), start.words, start.ended, *state.values()],
            {"body": body},
            num_outputs=len(names) - 1,
        )
        columns = [self._columns(value) for value in results[-2:]]  # (B, words) each
        first = [start] if self.manifest.starts_with_image else []
        words = self._joined([*(row.words for row in first), columns[0]])
        alive = self._joined([*(row.alive for row in first), columns[1]])
        lengths = self._op("ReduceSum", alive, self._ints(1), keepdims=0)  # (B,)
        longest = self._op("ReduceMax", lengths, self._ints(0), keepdims=1)  # (1,)
        longest = self._op("Min", longest, self._ints(self.rule.max_length - 1))
        return self._with_start(self._op("Slice", words, self._ints(0), longest, self._ints(1)))

    def unrolled(self) -> ir.Value:
        """Captions written by copies of the decoder, all of them `max_length` long."""
        row, state = self._start()
        written = [row.words] if self.manifest.starts_with_image else []
        for _ in range(self._steps()):
            row, state = self._step(row.words, row.ended, state)
            written.append(row.words)
        limit = self._ints(self.rule.max_length - 1)
        return self._with_start(self._op("Slice", self._joined(written), self._ints(0), limit, self._ints(1)))

    def _steps(self) -> int:
        words = self.rule.max_length - 1 - self.manifest.starts_with_image
        return max(1, -(-words // self.manifest.step))

    # -- parts --------------------------------------------------------------------------------------------------------

    def _start(self) -> tuple[_Row, dict[str, Any]]:
        """The row that the first step reads, and the state before it."""
        if self.manifest.starts_with_image:
            state = {name: self.memory[f"{START}{name}"] for name in self.manifest.state}
            logits = self._op("Unsqueeze", self.memory["first_logits"], self._ints(1))  # (B, 1, V)
            return self._choose(logits, self._filled(torch.tensor([[False]]), [1])), state
        zero = torch.zeros(1)
        state = {name: self._filled(zero, shape[1:]) for name, shape in self.manifest.state.items()}
        for value in state.values():
            value.dtype = self.ir.DataType.FLOAT
        words = self._filled(torch.tensor([[self.rule.start]]), [self.manifest.step])
        return _Row(words, None, self._filled(torch.tensor([[False]]), [1])), state

    def _step(self, words: Any, ended: Any, state: dict[str, Any]) -> tuple[_Row, dict[str, Any]]:
        """A copy of the decoder behind `words` `(B, step)`, and the words that it finds likeliest."""
        copy = self.decoder.clone()
        inputs = {"input_ids": self._op("Unsqueeze", words, self._ints(1)), "beam_idx": self.rows}
        inputs |= self.memory | state
        for name, value in copy.initializers.items():
            self.ir.convenience.replace_all_uses_with(value, self.weights[name])
        for name, value in _named(copy.inputs).items():
            self.ir.convenience.replace_all_uses_with(value, inputs[name])
        outputs = _named(copy.outputs)
        copy.outputs.clear()
        nodes = list(copy)
        copy.remove(nodes)
        self.copies += 1
        for value in (value for node in nodes for value in node.outputs):
            value.shape = None  # of the example's sizes; a runtime infers them
            value.name = f"step_{self.copies}.{value.name}"
        self.graph.extend(nodes)
        return self._choose(outputs["logits"], ended), {name: outputs[name] for name in state}

    def _choose(self, logits: Any, ended: Any) -> _Row:
        """The likeliest words of logits `(B, step, V)`, padding behind the end."""
        if self.rule.added is not None:
            logits = self._op("Add", logits, self._constant(self.rule.added))
        chosen = self._op("ArgMax", logits, axis=-1, keepdims=0)  # (B, step)
        words, alive = [], []
        for place in range(self.manifest.step):
            word = self._op("Slice", chosen, self._ints(place), self._ints(place + 1), self._ints(1))  # (B, 1)
            alive.append(self._number(self._op("Not", ended)))
            words.append(self._op("Where", ended, self._constant(torch.tensor([[self.rule.pad]])), word))
            for end in self.rule.ends:
                ended = self._op("Or", ended, self._op("Equal", words[-1], self._constant(torch.tensor([[end]]))))
        return _Row(self._joined(words), self._joined(alive), ended)

    def _op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """Add a node; its output."""
        value = self.tape.op(kind, inputs, attributes)
        self.added += 1
        value.name = f"greedy_{self.added}"
        return value

    def _columns(self, steps: Any) -> Any:
        """Tensors that a loop collected, (steps, B, step), as (B, words)."""
        return self._op("Reshape", self._op("Transpose", steps, perm=[1, 0, 2]), self._constant(torch.tensor([0, -1])))

    def _with_start(self, words: Any) -> Any:
        return self._joined([self._filled(torch.tensor([[self.rule.start]]), [1]), words])

    def _joined(self, columns: list[Any]) -> Any:
        return columns[0] if len(columns) == 1 else self._op("Concat", *columns, axis=1)

    def _filled(self, value: torch.Tensor, shape: list[int]) -> Any:
        """One value in a row of `shape` for every picture."""
        sizes = self._op("Concat", self.batch, self._constant(torch.tensor(shape)), axis=0)
        return self._op("Expand", self._constant(value), sizes)

    def _number(self, truth: Any) -> Any:
        return self._op("Cast", truth, to=7)  # INT64

    def _output(self, value: Any, name: str, kind: str) -> Any:
        """A value as output of the loop's body; `Identity` gives it a name of its own."""
        output = self._op("Identity", value)
        output.name, output.dtype = name, self.ir.DataType[kind]
        return output

    def _typed(self, name: str, kind: str, shape: list[Any] | None) -> Any:
        dtype = self.ir.DataType[kind]
        return self.ir.val(name, dtype=dtype, shape=None if shape is None else self.ir.Shape(shape))

    def _int(self, number: int) -> Any:
        return self._constant(torch.tensor(number))

    def _ints(self, number: int) -> Any:
        return self._constant(torch.tensor([number]))

    def _constant(self, tensor: torch.Tensor) -> Any:
        """A value among the graph's constants; equal ones are one."""
        key = (tensor.dtype, tensor.shape, *tensor.flatten().tolist())
        if key not in self.constants:
            self.constants[key] = self._register(f"constant_{len(self.constants)}", self.ir.tensor(tensor.numpy()))
        return self.constants[key]

    def _register(self, name: str, tensor: Any) -> Any:
        value = self.ir.val(name, dtype=tensor.dtype, shape=tensor.shape, const_value=tensor)
        self.main.register_initializer(value)
        return value
