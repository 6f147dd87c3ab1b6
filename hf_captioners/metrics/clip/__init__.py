"""Scores of captions on their images by a CLIP: CLIP-S, PAC-S and retrieval."""
