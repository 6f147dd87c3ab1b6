"""Training of captioners, on `transformers.Trainer`."""

from ..extras import require

require("accelerate", "datasets", extra="train")
