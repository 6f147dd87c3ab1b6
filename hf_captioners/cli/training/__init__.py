"""Options of the training commands, and the objects that they describe."""
