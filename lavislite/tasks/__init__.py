"""Tasks: what one training step, one prediction and one score mean. They know no runner."""
