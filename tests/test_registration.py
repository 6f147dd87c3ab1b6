"""The captioners are known to the Auto classes, in whatever order things are imported, and only then loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hf_captioners import registration

KNOWN = """
from transformers import AutoConfig, pipelines
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as MODELS
for model_type in ("clip_gpt2", "dico", "expansionnet_v2", "satic", "scdnet"):
    config = AutoConfig.for_model(model_type)
    assert MODELS[type(config)].config_class is type(config)
assert "image-to-text" in pipelines.PIPELINE_REGISTRY.supported_tasks
assert not [finder for finder in sys.meta_path if "hf_captioners" in type(finder).__module__]
"""
ORDERS = {
    "transformers first": "from transformers import AutoModel; import hf_captioners",
    "the package first": "import hf_captioners; assert 'transformers' not in sys.modules; import transformers",
    "a file that the registration needs": "from hf_captioners.modeling.configuration_captioner import CaptionerConfig",
}


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_the_captioners_are_known(imports: str) -> None:
    run = subprocess.run([sys.executable, "-c", f"import sys\n{imports}\n{KNOWN}"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


class TestWatch:
    """The watch alone, on a package of files that stands for transformers and for this one."""

    @pytest.fixture
    def registered(self, tmp_path, monkeypatch):
        """Modules that were imported when the registration ran; its `transformers.auto` is the Auto classes."""
        files = {
            "watched_auto/__init__": "",
            "watched_auto/auto": "",
            "watched_auto/outer": "from . import auto\nafter = 1",
            "watched_auto/broken": "from . import auto\nraise ImportError('broken')",
        }
        for name, text in files.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        calls: list[list[str]] = []

        def register() -> None:
            calls.append([name for name in sys.modules if name.startswith("watched_auto.")])

        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(registration, "AUTO_CLASSES", "watched_auto.auto")
        monkeypatch.setattr(registration, "__package__", "watched_auto")
        monkeypatch.setattr(registration, "_register", register)
        monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
        yield calls
        for name in [name for name in sys.modules if name.split(".")[0] == "watched_auto"]:
            del sys.modules[name]

    def test_registers_once_the_outermost_import_is_done(self, registered):
        registration.register_with_auto_classes()
        assert registered == []
        from watched_auto import outer

        assert outer.after == 1
        assert registered == [["watched_auto.outer", "watched_auto.auto"]]
        assert not any(isinstance(finder, registration._ImportWatch) for finder in sys.meta_path)

    def test_registers_after_an_import_that_fails(self, registered):
        registration.register_with_auto_classes()
        with pytest.raises(ImportError, match="broken"):
            import watched_auto.broken  # noqa: F401
        assert len(registered) == 1

    def test_registers_at_once_if_the_auto_classes_are_there(self, registered):
        import watched_auto.auto  # noqa: F401

        registration.register_with_auto_classes()
        assert len(registered) == 1

    def test_leaves_loaders_as_they_are(self, registered):
        import importlib.util

        registration.register_with_auto_classes()
        spec = importlib.util.find_spec("watched_auto.outer")
        assert type(spec.loader).__name__ == "SourceFileLoader"
        assert importlib.util.find_spec("watched_auto.nothing") is None
