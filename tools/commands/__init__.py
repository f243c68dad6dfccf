"""The subcommands of `microcnn`, one module each: `add` declares its options, `run` does the work."""
