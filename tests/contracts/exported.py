"""Contract of an exported captioner: what it writes and scores is what the captioner does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_captioners import CaptionerImageProcessor
from hf_captioners.export import ExportedCaptioner
from hf_captioners.export.planning import ExportPlan, plan_export
from hf_captioners.export.writing import write_export


def needs_onnx() -> None:
    """Skip by name where the extra onnx is not installed."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="needs the extra onnx")


class FixedSize:
    """Processor of what the graphs ask for."""

    image_processor = CaptionerImageProcessor(size={"height": 32, "width": 32})

    def save_pretrained(self, folder: Path) -> None:
        """Nothing: captions stay ids here."""


def region_features(model: Any, images: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random features of pictures, of which the last has fewer tokens than the others."""
    random = torch.Generator().manual_seed(images)
    mask = torch.ones(images, tokens, dtype=torch.long)
    mask[-1, tokens // 2 + 1 :] = 0
    values = torch.randn(images, tokens, model.config.feature_size, generator=random)
    return {"image_features": values, "image_attention_mask": mask}


class ExportedCaptionerContract:
    """Ids equal over all rules of decoding, numbers of pictures and masks, with and without a cache.

    A subclass says `captioner()`, a small one of features, and may have other `rules`, `inputs` and `options` of the
    export.
    """

    options: dict[str, Any] = {}

    rules: list[dict[str, Any]] = [
        {"num_beams": 1},
        {"num_beams": 3, "decoding": "paper", "num_return_sequences": 3},
        {"num_beams": 2, "decoding": "standard"},
        {"num_beams": 1, "decoding": "standard", "do_sample": True, "num_return_sequences": 2},
        {"num_beams": 1, "use_cache": False},
    ]

    def captioner(self) -> Any:
        """A small captioner of features, in evaluation mode."""
        raise NotImplementedError

    def inputs(self, model: Any, images: int, tokens: int) -> dict[str, torch.Tensor]:
        """Inputs of `generate`."""
        return region_features(model, images, tokens)

    @pytest.fixture(scope="class")
    def plan(self, request: pytest.FixtureRequest) -> ExportPlan:
        """Graphs of it, traced once."""
        needs_onnx()
        torch.manual_seed(0)
        return plan_export(request.cls().captioner(), FixedSize(), "features")

    @pytest.fixture(scope="class")
    def pair(self, plan: ExportPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
        """The captioner, and the exported one."""
        folder = tmp_path_factory.mktemp("exported") / "onnx"
        write_export(plan, folder, **self.options)
        return plan.model, ExportedCaptioner.from_pretrained(folder)

    @pytest.mark.parametrize(("images", "tokens"), [(1, 6), (3, 4), (2, 1)])
    def test_captions_are_the_same_ids(self, pair, images, tokens):
        inputs = self.inputs(pair[0], images, tokens)
        for rule in self.rules:
            captions = []
            for model in pair:
                torch.manual_seed(1)
                captions.append(model.generate(**inputs, **rule, max_length=10))
            assert torch.equal(*captions), rule
            assert len(captions[0]) == images * rule.get("num_return_sequences", 1)

    def test_scores(self, pair):
        inputs = self.inputs(pair[0], 3, 5)
        captions = pair[0].generate(**inputs, num_beams=1, max_length=10)
        log_probs = [model.sequence_log_probs(captions, **inputs) for model in pair]
        assert torch.isfinite(log_probs[1]).all()
        torch.testing.assert_close(*log_probs, atol=2e-5, rtol=1e-5)
        del inputs["image_attention_mask"]
        without_mask = [model.sequence_log_probs(captions, **inputs) for model in pair]
        torch.testing.assert_close(*without_mask, atol=2e-5, rtol=1e-5)

    def test_what_it_is_not(self, pair):
        _, exported = pair
        assert isinstance(exported, (type(pair[0]), ExportedCaptioner)) and not list(exported.parameters())
        with pytest.raises(ValueError, match="does not learn"):
            exported(**self.inputs(exported, 1, 3), labels=torch.tensor([[4, 2]]))
        with pytest.raises(ValueError, match="exported for features, not for pixels"):
            exported.generate(pixel_values=torch.zeros(1, 3, 32, 32))
        with pytest.raises(ValueError, match="copy its folder"):
            exported.save_pretrained("elsewhere")


class ExportedWordsContract(ExportedCaptionerContract):
    """What those that write word by word do besides: one graph from pictures to the ids of `generate(num_beams=1)`."""

    def test_no_attentions(self, pair):
        inputs = self.inputs(pair[1], 1, 3)
        with pytest.raises(ValueError, match="output_attentions: an exported captioner has none"):
            pair[1](**inputs, decoder_input_ids=torch.tensor([[1]]), output_attentions=True)

    @pytest.mark.parametrize("form", ["loop", "unrolled"])
    @pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
    def test_greedy_graph(self, plan, form, int8, tmp_path, monkeypatch):
        import onnx_ir
        import onnxruntime

        model, folder = plan.model, tmp_path / "out"
        config = model.generation_config
        early = model.generate(**self.inputs(model, 3, 4), num_beams=1)[0, 3]  # one caption ends at its third word
        monkeypatch.setattr(config, "eos_token_id", [config.eos_token_id, int(early)])
        write_export(plan, folder, int8=int8, greedy=form)
        graph = onnx_ir.load(folder / "greedy.onnx")
        kinds = {node.op_type for node in graph.graph.all_nodes()}
        assert ("Loop" in kinds) == (form == "loop") and "If" not in kinds and graph.opset_imports == {"": 20}
        reference = ExportedCaptioner.from_pretrained(folder) if int8 else model
        session = onnxruntime.InferenceSession(folder / "greedy.onnx", providers=["CPUExecutionProvider"])
        for images, tokens in ((1, 6), (3, 4), (2, 1)):
            inputs = self.inputs(model, images, tokens)
            expected = reference.generate(**inputs, num_beams=1)
            found = torch.from_numpy(session.run(["sequences"], {name: x.numpy() for name, x in inputs.items()})[0])
            if form == "unrolled":  # always as long as the longest caption may be
                assert found.shape[1] >= expected.shape[1]
                assert (found[:, expected.shape[1] :] == model.config.pad_token_id).all()
                found = found[:, : expected.shape[1]]
            assert torch.equal(found, expected)
