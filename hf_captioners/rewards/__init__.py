"""Rewards: callables that give a number per completion, with TRL's signature."""
