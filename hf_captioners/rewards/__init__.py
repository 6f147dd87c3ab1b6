"""Rewards: callables that give a number per completion, with TRL's signature.

`reward(completions=[...], captions=[...], **columns)` gives a list of numbers; the references of a completion's picture
are the column `captions` of the rows.
"""

from .bleu import BleuReward
from .cider import CiderDReward
from .clip import ClipReward

__all__ = ["BleuReward", "CiderDReward", "ClipReward"]
