"""Contact sheets, charts of training runs and score reports."""
