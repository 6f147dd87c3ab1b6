"""The evaluation signature: two suites that can give different numbers never share one."""

import copy
import dataclasses
import hashlib
import inspect
import itertools

import pytest
import torch
from contracts.metric import random_images, tiny_clip
from transformers import CLIPImageProcessorPil

from hf_captioners.metric_table import METRICS
from hf_captioners.metrics import CaptionMetrics, DocumentFrequencies
from hf_captioners.metrics.clip.clip_score import ClipScorer
from hf_captioners.metrics.clip.features import ClipFeatures
from hf_captioners.metrics.clip.pac_score import PacScorer
from hf_captioners.metrics.meteor.data import MeteorData, SynonymSets
from hf_captioners.metrics.meteor.normalizer import MeteorNormalizer
from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable
from hf_captioners.metrics.signature import hash_captions, signature_text

PREDICTIONS = ["a dog runs on a lawn a dog runs", "two cats on a chair", "the sea plan b."]
REFERENCES = [["the dog runs over a lawn", "a dog a dog"], ["cats sit on the chair", "two cats"], ["the blue sea"]]
IMAGES = random_images(3)

METEOR = MeteorData(
    MeteorNormalizer(["mr"], ["no"]),
    frozenset(["a", "the"]),
    lambda word: word,
    SynonymSets({"lawn": "1", "sea": "2", "plan": "2"}, {"cat": ["cats"]}),
    ParaphraseTable.from_pairs([("two cats", "the sea"), ("sit on", "on a")]),
)
METEOR_CHANGES = {
    "normalizer": MeteorNormalizer(["mr", "b"], ["no"]),
    "function_words": frozenset(["a", "the", "dog"]),
    "stem": str.upper,
    "synonyms": SynonymSets({"lawn": "1", "dog": "1"}, {}),
    "paraphrases": ParaphraseTable.from_pairs([("two cats", "the sea")]),
}

# option -> a value that gives other numbers. A new option must be here or below.
CHANGES = {
    "bleu": {"max_n": 2, "effective_length": "shortest"},
    "meteor": {"data": dataclasses.replace(METEOR, function_words=frozenset(["dog"]))},
    "rouge_l": {"beta": 3.0},
    "cider": {"n": 2},
    "cider_d": {"n": 2, "sigma": 1.0},
    "spice": {"jar": "in test_spice.py"},
    "clip_s": {"scorer": "below"},
    "pac_s": {"scorer": "below"},
    "diversity": {"max_n": 2},
}
# option -> why it changes no number
HARMLESS = {
    "spice": {
        "java": "runs the jar",
        "timeout_s": "an error or the same",
        "cache_dir": "keeps what the jar gave",
        "memory": "an error or the same",
        "threads": "the parser's speed",
        "batch_size": "images per run",
    },
}


@pytest.fixture(scope="module")
def clip():
    """The arguments of a small CLIP scorer, of which all cosines here are negative."""
    parts = tiny_clip([*PREDICTIONS, *itertools.chain(*REFERENCES)])
    model = parts["model"]
    with torch.no_grad():  # one constant feature of opposite sign: cosines are about -1
        model.vision_model.post_layernorm.bias.fill_(3.0)
        model.text_model.final_layer_norm.bias.fill_(3.0)
        model.visual_projection.weight.abs_()
        model.text_projection.weight.abs_().neg_()
    return {**parts, "clip_negative": False}


def score(name, **options):
    """Signature text and numbers of a metric."""
    given = {"meteor": {"data": METEOR}}.get(name, {}) | options
    evaluation = CaptionMetrics([name], options={name: given})(PREDICTIONS, REFERENCES, images=IMAGES)
    return evaluation.signature_text, {key: values.tolist() for key, values in evaluation.per_image.items()}


def test_every_option_is_known_here():
    for name, metric in METRICS.items():
        assert set(metric.options()) == {*CHANGES[name], *HARMLESS.get(name, {})}, name


COMPARED = [(name, option) for name, own in CHANGES.items() for option in own if option not in ("jar", "scorer")]


@pytest.mark.parametrize(("name", "option"), COMPARED)
def test_options_that_change_numbers_change_the_signature(name, option):
    before, after = score(name), score(name, **{option: CHANGES[name][option]})
    assert before[1] != after[1]
    assert before[0] != after[0]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MeteorData)])
def test_other_tables_of_meteor(field):
    other = dataclasses.replace(METEOR, **{field: METEOR_CHANGES[field]})
    assert score("meteor", data=other)[0] != score("meteor")[0]
    same = {"function_words": frozenset(sorted(METEOR.function_words, reverse=True))}
    assert score("meteor", data=dataclasses.replace(METEOR, **same)) == score("meteor")


def other_model(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.text_projection.weight[0, 0] += 1
    return other


# argument of a scorer -> another value, made of the one before
SCORER_CHANGES = {
    "model": other_model,
    "tokenizer": lambda tokenizer: _longest(tokenizer, 4),
    "image_processor": lambda processor: CLIPImageProcessorPil(**{**processor.to_dict(), "do_normalize": False}),
    "dtype": lambda dtype: torch.bfloat16,
    "w": lambda w: 1.0,
    "prefix": lambda prefix: "",
    "clip_negative": lambda clip_negative: True,
}
SCORER_HARMLESS = {
    "pad_token_id": "the suite scores texts",
    "fill_token_id": "the suite scores texts",
    "batch_size": "items at a time",
    "device": "where",
    "show_progress": "a bar",
    "trust_remote_code": "an error or the same",
}


def _longest(tokenizer, length):
    other = copy.deepcopy(tokenizer)
    other.model_max_length = length
    return other


def arguments(scorer):
    return {
        name
        for kind in (scorer, ClipScorer, ClipFeatures)
        for name in inspect.signature(kind.__init__).parameters
        if name not in ("self", "args", "options")
    }


@pytest.mark.parametrize(("name", "scorer"), [("clip_s", ClipScorer), ("pac_s", PacScorer)])
class TestScorers:
    def test_every_argument_is_known_here(self, name, scorer):
        assert arguments(scorer) == {*SCORER_CHANGES, *SCORER_HARMLESS}

    @pytest.mark.parametrize("argument", SCORER_CHANGES)
    def test_arguments_that_change_numbers_change_the_signature(self, name, scorer, argument, clip):
        before = score(name, scorer=scorer(**{**clip, "model": copy.deepcopy(clip["model"])}))
        changed = {**clip, argument: SCORER_CHANGES[argument](clip.get(argument))}
        after = score(name, scorer=scorer(**{**changed, "model": copy.deepcopy(changed["model"])}))
        assert before[1] != after[1]
        assert before[0] != after[0]

    def test_the_same_scorer_loaded_again_and_used(self, name, scorer, clip):
        once, again = scorer(**clip), scorer(**{**clip, "tokenizer": copy.deepcopy(clip["tokenizer"])}, batch_size=1)
        once.text_features(["a dog", "two cats"])  # leaves its padding in the tokenizer
        assert score(name, scorer=once)[0] == score(name, scorer=again)[0]


class TestSuite:
    """Arguments of the suite itself."""

    def test_every_argument_is_known_here(self):
        known = {"metrics", "document_frequencies", "in_sequence", "options", "tokenizer"}
        assert set(inspect.signature(CaptionMetrics).parameters) == known

    def test_arguments(self):
        corpora = [[["a dog"], ["a cat"], ["the sea"]], [["a dog"], ["a cat"], ["the sea", "a dog"]]]
        suites = [
            CaptionMetrics(["cider_d"]),
            CaptionMetrics(["cider_d"], in_sequence=True),
            CaptionMetrics(["cider_d"], tokenizer="unicode"),
            CaptionMetrics(["cider_d"], tokenizer="shlex:split"),
            CaptionMetrics(["cider_d", "bleu"]),
            *(CaptionMetrics(["cider_d"], DocumentFrequencies.from_references(corpus)) for corpus in corpora),
        ]
        assert len({suite(PREDICTIONS, REFERENCES).signature_text for suite in suites}) == len(suites)

    def test_an_option_of_one_metric_does_not_speak_for_another(self):
        suite = CaptionMetrics(["cider", "cider_d"], options={"cider": {"n": 2}})
        text = suite(PREDICTIONS, REFERENCES).signature_text
        assert "cider.n:2|" in text and "cider_d.n:4|" in text

    def test_equal_numbers_have_equal_signatures(self):
        assert score("rouge_l", beta=1) == score("rouge_l", beta=1.0)
        assert score("cider_d", sigma=6) == score("cider_d")


class TestText:
    def test_is_one_line_of_pairs(self):
        signature = {"metrics": ["a", "b"], "cider": {"df": "references", "eos": True, "sigma": 6.0}, "version": "1.0"}
        expected = "metrics:a+b|cider.df:references|cider.eos:yes|cider.sigma:6.0|version:1.0"
        assert signature_text(signature) == expected

    def test_a_text_cannot_read_as_two_settings(self):
        both = {"prefix": "a", "w": 2.0}
        one = {"prefix": "a|w:2.0"}
        assert signature_text(both) == "prefix:a|w:2.0"
        assert signature_text(one) == 'prefix:"a|w:2.0"'
        assert signature_text({"prefix": '"a'}) == r'prefix:"\"a"'
        assert signature_text({"prefix": "a "}) == 'prefix:"a "'
        assert "\n" not in signature_text({"prefix": "a\nb"})


class TestHash:
    def test_depends_on_words_order_and_grouping(self):
        different = [[["a", "b"]], [["b", "a"]], [["a"], ["b"]], [["a", ""], ["b"]], [["a\nb"]]]
        hashes = [hash_captions(one) for one in different]
        assert len(set(hashes)) == 5
        assert hash_captions([["é"]]) == hashlib.sha256(b"1\n2\n" + "é".encode()).hexdigest()[:12]
        assert len(hash_captions([["\ud800"]])) == 12  # a lone surrogate, as broken JSON gives
