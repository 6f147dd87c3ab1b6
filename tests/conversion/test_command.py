"""The entry point of all conversions: each source declares the options of its own function, no more and no less."""

from __future__ import annotations

from inspect import Parameter, signature
from pathlib import Path

import pytest

from hf_captioners.conversion import SOURCES, convert, find_command
from hf_captioners.conversion.writing import ConversionError


@pytest.mark.parametrize("source", SOURCES)
def test_declarations_are_those_of_the_function(source: str) -> None:
    command = find_command(source)
    parameters = dict(list(signature(command.convert).parameters.items())[2:])
    assert command.name == source
    assert parameters.pop("overwrite").default is False
    assert set(command.options) == set(parameters)
    for name, parameter in parameters.items():
        assert command.options[name].get("required", False) == (parameter.default is Parameter.empty), name
        assert command.options[name]["help"]
        assert f"{name} (`" in (command.convert.__doc__ or ""), f"{name} is not documented"


@pytest.mark.parametrize("source", SOURCES)
def test_unknown_options_are_named_with_the_known_ones(source: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError) as error:
        convert(source, tmp_path / "x.pth", tmp_path / "out", colour=[1] * 1000)
    assert str(error.value).startswith(f"colour=[1, 1, 1, 1, 1, 1, ...] has no use with {source}, whose")
    for name in (*find_command(source).options, "overwrite"):
        assert name in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_options_are_named_before_a_file_is_opened(tmp_path: Path) -> None:
    message = (
        r"^vocabulary is required by scdnet, whose options are vocabulary \(required\), stage1, .*: vocabulary.txt"
    )
    for options in ({}, {"vocabulary": None}):
        with pytest.raises(ConversionError, match=message):
            convert("scdnet", tmp_path / "no.pth", tmp_path / "out", **options)


def test_none_is_the_same_as_none_given(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*no\.pth"):
        convert("clip_gpt2", tmp_path / "no.pth", tmp_path / "out", tokenizer=None, infos=None)
