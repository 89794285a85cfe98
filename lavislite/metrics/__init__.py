"""Rows to numbers. Nothing here knows models, datasets or tasks."""
