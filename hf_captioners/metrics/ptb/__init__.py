"""The tokens of the COCO caption evaluation, without Java."""
