"""Data: from a record to a batch."""
