"""Alignment of the words of captions with those of references, by METEOR 1.5."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .data import MeteorData
from .matches import Matches, Sentences
from .search import certain_matches, search


class MeteorAligner:
    """An aligner for captions of a known set: stems, synonyms and paraphrases of their words are looked up once.

    Args:
        data ([`MeteorData`]): the tables.
        texts (`Iterable[str]`): all captions that will be aligned.

    Example:

    ```python
    >>> from hf_captioners.metrics.meteor.aligner import MeteorAligner
    >>> from hf_captioners.metrics.meteor.data import MeteorData, SynonymSets
    >>> from hf_captioners.metrics.meteor.normalizer import MeteorNormalizer
    >>> from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable
    >>> paraphrases = ParaphraseTable.from_pairs([("a lot of", "many")])
    >>> synonyms = SynonymSets({"sofa": "7", "couch": "7"}, {})
    >>> data = MeteorData(MeteorNormalizer(), frozenset({"on", "the"}), lambda word: word[:4], synonyms, paraphrases)
    >>> aligner = MeteorAligner(data, ["a lot of cats on the sofa", "many cats on couch"])
    >>> for match in zip(*aligner.align(["many cats on couch"], ["a lot of cats on the sofa"])):
    ...     print(*match)
    0 0 3 0 1 3
    0 3 1 1 1 0
    0 4 1 2 1 0
    0 6 1 3 1 2

    ```
    """

    def __init__(self, data: MeteorData, texts: Iterable[str]) -> None:
        self.sentences = Sentences(data, texts)

    def align(self, hypotheses: Sequence[str], references: Sequence[str]) -> Matches:
        """Align captions with references.

        Args:
            hypotheses (`Sequence[str]`): captions.
            references (`Sequence[str]`): a reference of each.

        Returns:
            [`Matches`]: those that were chosen, pair by pair, in the order of the reference.
        """
        number = self.sentences.number
        hypothesis = np.array([number[text] for text in hypotheses], np.int64)
        reference = np.array([number[text] for text in references], np.int64)
        matches = self.sentences.matches(hypothesis, reference)
        certain = certain_matches(matches, len(reference))
        return matches.take(search(matches, certain, self.sentences.length[reference]))
