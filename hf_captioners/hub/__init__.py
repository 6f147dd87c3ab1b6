"""Captioners for others: the card that says what one is, what it learned from and how well."""
