"""The `flm` command: a file for each subcommand, and what `flm demo` shows."""
