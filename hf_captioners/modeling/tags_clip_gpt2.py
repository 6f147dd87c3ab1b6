"""Content words of captions: the vocabulary of tag anchors and of the tag predictor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from .tokenization_words import split_words

# English words that name no thing and no action, and the pieces that the word rule leaves of "isn't"
_FUNCTION_WORDS = """
a about above across after again against all along also am among an and another any anything are aren around as at away
be because been before behind being below beneath beside besides between beyond both but by can cannot could couldn d
did didn do does doesn doing don done down during each eight either else every everything few five for four from get
gets getting had hadn has hasn have haven having he her here hers herself him himself his how i if in inside instead
into is isn it its itself just kind ll lot lots m made make makes making many may me might mine more most much must my
myself near nearby next nine no nobody none nor not nothing of off on one ones onto or other others our out outside over
own past per re s same seem seems several shall she should six so some someone something somewhere such t ten than that
the their them themselves then there these they thing things this those though three through to together toward towards
two under underneath until up upon us use used uses using ve very was wasn way we were weren what when where whether
which while who whom whose why will with within without would yet you your
"""
# adjectives and adverbs that are frequent in captions
_ADJECTIVES = """
alone asian back background bare beautiful big black blond blonde blue blurry bright brown busy clear close colored
colorful colourful cute dark different dirty dry empty fluffy front full golden grassy gray green grey happy heavy
huge indoor indoors large left light little long low middle multicolored new old older open orange outdoor outdoors
pink pretty purple ready red right rocky sandy shirtless short side silver single small snowy steep striped tall tan
tiny top upside various wet white wide wooden yellow young younger
"""
NO_CONTENT_WORDS = frozenset((_FUNCTION_WORDS + _ADJECTIVES).split())


def content_words(caption: str, tags: Collection[str]) -> list[str]:
    """The words of a caption that are tags, each once, in their order.

    Args:
        caption (`str`): raw caption.
        tags (`Collection[str]`): lower-case words.

    Returns:
        `list[str]`
    """
    words = split_words([caption])[0]
    return list(dict.fromkeys(word for word in words if word in tags))


def build_tags(captions: Iterable[str], size: int = 1000, min_count: int = 5) -> list[str]:
    """The most frequent content words of training captions.

    These are nouns and verbs: what is left when function words, the usual adjectives and punctuation are taken away.
    Frequency decides, there is no part-of-speech tagger.

    Args:
        captions (`Iterable[str]`): raw training captions.
        size (`int`, defaults to 1000): at most so many words.
        min_count (`int`, defaults to 5): of words seen at least so often.

    Returns:
        `list[str]`: the most frequent one first, equally frequent ones in alphabetical order.

    Raises:
        ValueError: no content word is seen `min_count` times, or `size` is below 1.

    Example:

    ```python
    >>> from hf_captioners import build_tags
    >>> build_tags(["A dog barks at a man.", "Two dogs and a dog", "The man with the dog"], min_count=1)
    ['dog', 'man', 'barks', 'dogs']

    ```
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}.")
    words = (word for caption in split_words(captions) for word in caption)
    counts = Counter(word for word in words if word.isalpha() and word not in NO_CONTENT_WORDS)
    frequent = [(-count, word) for word, count in counts.items() if count >= min_count]
    if not frequent:
        raise ValueError(f"no content word of the captions is seen min_count={min_count} times.")
    return [word for _, word in sorted(frequent)[:size]]
