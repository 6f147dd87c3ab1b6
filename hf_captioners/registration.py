"""Registration with transformers as soon as its Auto classes are imported, and not before.

`import hf_captioners` must make the captioners known to the Auto classes, and must cost nothing where no model is asked
for: for `hf-captioners --help`, and for metrics. Transformers has no entry point for packages that bring models. So
imports are watched: when the Auto classes have been imported, by whomever, the captioners are registered, and the watch
ends. Until then the watch passes on what the other finders find.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO_CLASSES = "transformers.models.auto.configuration_auto"
"""The module that all Auto classes and the pipelines of transformers import."""


def register_with_auto_classes() -> None:
    """Register the captioners now if the Auto classes are imported, and otherwise as soon as they are."""
    if AUTO_CLASSES in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _ImportWatch())


def _register() -> None:
    from .pipelines import register

    register()


class _Depth(threading.local):
    """Number of watched modules that a thread is in the middle of importing."""

    value = 0


class _ImportWatch(MetaPathFinder):
    """Finder of modules that registers the captioners after an import of the Auto classes.

    Registration imports modules of transformers and of this package, so none of these may be imported by half then: it
    waits until the outermost import of them is done.
    """

    def __init__(self) -> None:
        self.depth = _Depth()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a module of transformers or of this package as the other finders do, and watch its import."""
        if not name.startswith(("transformers.", f"{__package__}.")):
            return None
        others = (finder.find_spec(name, path, target) for finder in list(sys.meta_path) if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader.exec_module, spec)
        return spec

    def _watch(self, run: Callable[[ModuleType], None], spec: ModuleSpec) -> None:
        """Let the loader of a module tell when it has run the module."""

        def run_watched(module: ModuleType) -> None:
            self.depth.value += 1
            try:
                run(module)
            finally:
                self.depth.value -= 1
                self._register_if_ready()

        spec.loader.exec_module = run_watched  # type: ignore[union-attr, method-assign]

    def _register_if_ready(self) -> None:
        if self.depth.value == 0 and AUTO_CLASSES in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            _register()
