"""The captioners. Flat: every file here may travel to the Hub beside a checkpoint."""
