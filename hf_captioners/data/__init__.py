"""Captioned pictures: loading, opening, caching their features, and batches to learn from."""
