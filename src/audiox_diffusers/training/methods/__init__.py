"""Training methods: what is trained, and how."""
