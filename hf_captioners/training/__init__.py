"""Training of captioners, on `transformers.Trainer`."""
