"""METEOR 1.5 for English without Java: the score, the aligner, and the tables that it reads."""
