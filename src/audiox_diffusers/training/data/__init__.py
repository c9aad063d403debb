"""Training data: from datasets to batches."""
