"""A server: one engine that owns the models, an HTTP API, and a page."""
