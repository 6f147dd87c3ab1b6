"""Files of captions: formats to read captioned images, predictions and references from."""
