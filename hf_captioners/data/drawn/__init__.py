"""A small world of drawn pictures with captions, to try things out without a download."""
