"""Requests for sounds, from options to files: shared by the commands and the server."""
