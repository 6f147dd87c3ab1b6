"""Image features on disk, and region features of other detectors."""
