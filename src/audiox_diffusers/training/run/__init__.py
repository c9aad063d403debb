"""Parts of every training run: checkpoints, log, lock, and the reasons to stop."""
