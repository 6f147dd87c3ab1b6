"""Options of dataclasses from the command line and from recipes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from transformers import TrainingArguments

from hf_captioners.cli.common import UsageError
from hf_captioners.cli.training.options import RecipeParser, read_options


@dataclass
class Food:
    """Options of a meal; a test reads them.

    Attributes: see the fields.
    """

    fruit: str = field(metadata={"help": "Which fruit."})
    number: int = field(default=1, metadata={"help": "How many."})
    kinds: list[str] = field(default_factory=list, metadata={"help": "Of which kinds."})
    sizes: dict | str | None = field(default=None, metadata={"help": "How large, as JSON."})

    def __post_init__(self) -> None:
        if isinstance(self.sizes, str):
            self.sizes = json.loads(self.sizes)
        if self.number < 1:
            raise ValueError(f"number must be at least 1, not {self.number}.")


@dataclass
class Own(TrainingArguments):
    """Options of the cook."""

    heat: float = field(default=0.5, metadata={"help": "How hot."})
    learning_rate: float = field(default=1.0, metadata={"help": "How fast."})


@pytest.fixture()
def recipe(tmp_path):
    def write(text):
        (tmp_path / "recipe.yaml").write_text(text)
        return ["--config", str(tmp_path / "recipe.yaml")]

    return write


def read(*words):
    (food,) = read_options([Food], [str(word) for word in words], "eat")
    return food


def test_the_command_line_wins(recipe):
    config = recipe("fruit: pear\nnumber: 3\nkinds: [a, b]\nsizes: {small: 1, large: 2}\n")
    assert vars(read(*config)) == {
        "fruit": "pear", "number": 3, "kinds": ["a", "b"], "sizes": {"small": 1, "large": 2},
    }  # fmt: skip
    changes = ["--number", 4, "--kinds", "c", "--sizes", '{"large": 5}']
    assert vars(read(*changes, *config)) == vars(read(*config, *changes)) == {
        "fruit": "pear", "number": 4, "kinds": ["c"], "sizes": {"small": 1, "large": 5},
    }  # fmt: skip


def test_numbers_that_yaml_takes_for_text(recipe):
    config = recipe("heat: 1e-3\nlearning_rate: 2.0e-5\n")
    (own,) = read_options([Own], [*config, "--output_dir", "out", "--use_cpu"], "cook")
    assert (own.heat, own.learning_rate) == (1e-3, 2e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fruits: pear", r"recipe\.yaml: fruits is no option of eat; do you mean fruit\?"),
        ("env: {HOME: /}", r"recipe\.yaml: env is no option of eat"),
        ("config: other.yaml", r"recipe\.yaml: config is no option of eat"),
        ("- pear", "must be lines of `option: value`"),
        ("fruit: [", r"--config .*recipe\.yaml, line 1, column 9: expected"),
        ("fruit: pear\nnumber: many", "argument --number: invalid int value: 'many'"),
        ("fruit: pear\nnumber: 0", "number must be at least 1, not 0"),
        ("number: 2", "the following arguments are required: --fruit"),
    ],
)
def test_recipes_that_cannot_be_read(recipe, text, message):
    with pytest.raises(UsageError, match=message):
        read(*recipe(text))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fruit", "pear", "--numbre", "2"], "--numbre is no option; do you mean number"),
        (["--fruit", "pear", "--num", "2"], "--num is no option"),  # no abbreviations
        (["--config", "nowhere.yaml"], r"--config nowhere\.yaml: .*No such file"),
        (["--number", "2"], r"required: --fruit \(see eat --help\)"),
    ],
)
def test_mistakes(words, message):
    with pytest.raises(UsageError, match=message):
        read(*words)


def test_help_has_the_own_options_first():
    text = RecipeParser([Food, Own], "cook").format_help()
    places = [
        text.index(part)
        for part in (
            "usage: cook [--config RECIPE.yaml]", "--config", "Options of a meal:", "--fruit", "Options of the cook:",
            "--heat", "Options of transformers' TrainingArguments:", "--per_device_train_batch_size", "--push_to_hub",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    own = text[text.index("Options of the cook:") : text.index("Options of transformers'")]
    assert "--learning_rate" in own and "How fast." in own  # declared anew
    assert text.count("--output_dir ") == 1
