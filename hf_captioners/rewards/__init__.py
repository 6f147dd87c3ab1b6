"""Rewards: callables that give a number per completion, with TRL's signature.

`reward(completions=[...], captions=[...], **columns)` gives a list of numbers; the references of a completion's picture
are the column `captions` of the rows. A reward of your own is a function of the columns that it reads:

```python
>>> def short(completions, **kwargs):
...     return [-len(caption.split()) for caption in completions]
>>> short(completions=["a dog", "a dog runs"], captions=[["a dog"], ["a dog"]])
[-2, -3]

```
"""

from .bleu import BleuReward
from .cider import CiderDReward
from .clip import ClipReward
from .length import LengthReward
from .repetition import RepetitionReward

__all__ = ["BleuReward", "CiderDReward", "ClipReward", "LengthReward", "RepetitionReward"]
