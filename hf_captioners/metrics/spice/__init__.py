"""SPICE by its own Java program, and a cache of its scores."""
