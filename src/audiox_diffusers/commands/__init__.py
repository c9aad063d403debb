"""One module per `audiox` command, each with `run(args) -> int`."""
