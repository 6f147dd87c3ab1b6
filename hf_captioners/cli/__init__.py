"""The command line, `hf-captioners`: one module per verb."""
