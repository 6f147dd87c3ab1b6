"""Libraries that only some of the package needs: which extra each is of, and how it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

EXTRAS = {
    "accelerate": "train",
    "datasets": "features",
    "evaluate": "eval",
    "faiss": "faiss",
    "gradio": "demo",
    "h5py": "h5",
    "matplotlib": "plot",
    "nncf": "openvino",
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "peft": "train",
    "pillow_heif": "heif",
    "pycocoevalcap": "eval",
    "ray": "ray",
    "rich": "train",
    "snowballstemmer": "eval",
    "tensorboard": "tensorboard",
    "trl": "train",
    "yaml": "train",
}
"""By the name under which a library is imported, the smallest extra that brings it."""


def install(extra: str) -> str:
    """The command that installs an extra, from a clone of the repository.

    Args:
        extra (`str`): such as `"train"`.

    Returns:
        `str`

    Example:

    ```python
    >>> from hf_captioners.extras import install
    >>> install("train")
    'pip install -e ".[train]" (in the clone of hf_captioners)'

    ```
    """
    return f'pip install -e ".[{extra}]" (in the clone of hf_captioners)'


def explained(error: ImportError, extra: str | None = None) -> ImportError:
    """An error about a library that is missing, with the extra that brings it.

    Args:
        error (`ImportError`): of any library.
        extra (`str`, *optional*): to name; by default the smallest that has the library.

    Returns:
        `ImportError`: the same one, if the library is of no extra or the message says it already.

    Example:

    ```python
    >>> from hf_captioners.extras import explained
    >>> print(explained(ModuleNotFoundError("No module named 'h5py'", name="h5py")))
    h5py is not installed; it is of the extra h5: pip install -e ".[h5]" (in the clone of hf_captioners)

    ```
    """
    library = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or library not in EXTRAS or "pip install" in str(error):
        return error
    extra = extra or EXTRAS[library]
    return ModuleNotFoundError(
        f"{library} is not installed; it is of the extra {extra}: {install(extra)}", name=library
    )


@contextmanager
def of_extra(extra: str | None = None) -> Iterator[None]:
    """Say in the time of a `with` block which extra brings a library that is missing.

    Args:
        extra (`str`, *optional*): to name; by default the smallest that has the library.

    Raises:
        ImportError: in the place of one that does not say it.
    """
    try:
        yield
    except ImportError as error:
        better = explained(error, extra)
        if better is error:
            raise
        raise better from error


def require(*libraries: str, extra: str | None = None) -> None:
    """Refuse at once what would fail later for want of a library.

    Args:
        libraries (`str`): names under which they are imported.
        extra (`str`, *optional*): to name; by default the smallest that has the library.

    Raises:
        ImportError: naming the first that is not installed, and its extra.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise explained(ModuleNotFoundError(f"No module named {library!r}", name=library), extra)
