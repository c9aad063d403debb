"""What the `audiox` command runs: a module with a `run(args) -> int` for each of its commands."""
