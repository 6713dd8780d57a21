"""The `edlm` command: one module per subcommand. Its `add_arguments` declares the arguments, `run` does the work and
returns what --json prints, `show` prints that for people, and `exit_code`, where there is one, says more than 0."""
