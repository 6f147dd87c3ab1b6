"""The tensors of an original checkpoint: their sizes, the comparison with a model, and its state dict made of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..data.progress import progress
from .writing import ConversionError, raise_problems

MAX_LAYERS = 500  # as of a captioner's configuration
# original name -> our names and shapes; with more than one, they are blocks of rows of the original, in this order
Targets = Mapping[str, Mapping[str, torch.Size]]


@dataclass
class Source:
    """The tensors of a conversion. They may be memory-mapped: only [`state_dict`] reads them.

    Attributes:
        path (`Path`): the checkpoint, for messages.
        tensors (`dict[str, Tensor]`): original name -> tensor, those that are not used included.
        dropped (`list[str]`): names in `tensors` that are not used.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.conversion.source import Source
    >>> source = Source("x.pth", {"layers.0.qk": torch.zeros(4, 3), "mask": torch.zeros(2)}, dropped=["mask"])
    >>> source.count("layers."), source.has("mask")
    (1, False)
    >>> targets = {"layers.0.qk": {"q": torch.Size([2, 3]), "k": torch.Size([2, 3])}}
    >>> source.check(targets)
    >>> {name: tuple(tensor.shape) for name, tensor in source.state_dict(targets).items()}
    {'q': (2, 3), 'k': (2, 3)}
    >>> source.check({"layers.0.qk": {"q": torch.Size([2, 3])}})
    Traceback (most recent call last):
        ...
    hf_captioners.conversion.writing.ConversionError: x.pth: 1 problem: layers.0.qk has shape [4, 3], expected [2, 3]

    ```
    """

    path: Path | str
    tensors: dict[str, Tensor]
    dropped: list[str] = field(default_factory=list)

    @property
    def used(self) -> list[str]:
        """Names of the tensors that are not dropped."""
        dropped = set(self.dropped)
        return [name for name in self.tensors if name not in dropped]

    def has(self, prefix: str) -> bool:
        """Tell whether the name of any used tensor starts with the prefix."""
        return any(name.startswith(prefix) for name in self.used)

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor."""
        return list(self.tensors[name].shape)

    def count(self, prefix: str) -> int:
        """Number of layers: how many of `prefix` + 0, 1, 2... have tensors, without a gap.

        Raises:
            ConversionError: more than `MAX_LAYERS`; a model of so many would take minutes to make.
        """
        parts = {name.removeprefix(prefix).split(".", 1)[0] for name in self.tensors if name.startswith(prefix)}
        layers = next(index for index in range(len(parts) + 1) if str(index) not in parts)
        if layers > MAX_LAYERS:
            raise ConversionError(f"{self.path}: has {layers} layers {prefix}*; the limit is {MAX_LAYERS}")
        return layers

    def check_places(self, places: Iterable[tuple[str, int]], kind: str) -> None:
        """Check that sizes can be read.

        Args:
            places (`Iterable[tuple[str, int]]`): names of tensors and the axis that will be read.
            kind (`str`): the expected kind of source, for the message.

        Raises:
            ConversionError: a tensor is missing, has no such axis, or is empty.
        """
        problems = []
        for name, axis in places:
            if name not in self.tensors:
                problems.append(f"{name} is missing")
            elif self.tensors[name].dim() <= axis or not self.tensors[name].numel():
                problems.append(
                    f"{name} has shape {self.shape(name)}, expected more than {axis} dimensions, none of them 0"
                )
        raise_problems(f"{self.path}: not {kind}", list(dict.fromkeys(problems)))

    def check(self, targets: Targets) -> None:
        """Compare names, shapes and dtypes with a model's, without reading a tensor.

        Args:
            targets: original name -> {our name: shape}.

        Raises:
            ConversionError: tensors are missing, misshapen, not of floating point, or neither in the model nor dropped;
                all are named, with both shapes.
        """
        raise_problems(str(self.path), [*self._wrong(targets), *self._extra(targets)])

    def state_dict(self, targets: Targets) -> dict[str, Tensor]:
        """Make the model's state dict.

        Args:
            targets: original name -> {our name: shape}, checked by [`check`].

        Returns:
            `dict[str, Tensor]`: our name -> tensor, in float32 (whatever the source's precision), contiguous and in
            memory of its own: views of one tensor could not be saved.

        Raises:
            ConversionError: a tensor holds NaN or infinity, in itself or by overflow in float32; with their numbers.
        """
        state: dict[str, Tensor] = {}
        broken: dict[str, int] = {}  # name -> count of NaN and infinite numbers
        size = sum(self.tensors[name].nbytes for name in targets)
        with progress(desc=f"reading {Path(self.path).name}", total=size, unit="B", unit_scale=True) as bar:
            for name, parts in targets.items():
                tensor = self.tensors[name].to(torch.float32)
                if count := _count_broken(tensor):
                    broken[name] = count
                rows = (tensor,) if len(parts) == 1 else tensor.split([shape[0] for shape in parts.values()])
                for model_name, part in zip(parts, rows, strict=True):
                    state[model_name] = part.clone(memory_format=torch.contiguous_format)
                bar.update(self.tensors[name].nbytes)
        total = sum(self.tensors[name].numel() for name in targets)
        raise_problems(
            f"{self.path}: {sum(broken.values())} of {total} weights are NaN or infinite in float32",
            [f"{name} has {count}" for name, count in broken.items()],
        )
        return state

    def _wrong(self, targets: Targets) -> Iterator[str]:
        for name, parts in targets.items():
            shapes = list(parts.values())
            expected = [sum(shape[0] for shape in shapes), *shapes[0][1:]] if len(shapes) > 1 else list(shapes[0])
            if name not in self.tensors:
                yield f"{name} is missing, expected with shape {expected}"
            elif self.shape(name) != expected:
                yield f"{name} has shape {self.shape(name)}, expected {expected}"
            elif not self.tensors[name].is_floating_point():
                yield f"{name} has dtype {self.tensors[name].dtype}, expected floating point"

    def _extra(self, targets: Targets) -> Iterator[str]:
        for name in self.used:
            if name not in targets:
                yield f"{name} of shape {self.shape(name)} is not part of the model"


def _count_broken(tensor: Tensor) -> int:
    """Count the numbers of a tensor that are NaN or infinite; a tensor without storage has none."""
    if tensor.is_meta or torch.isfinite(tensor.sum()):
        return 0
    return int((~torch.isfinite(tensor)).sum())
