"""Training methods: which weights are trained, and what is exported."""
