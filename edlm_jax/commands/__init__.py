"""The `edlm` command: one module per subcommand, each with add_arguments, run and show."""
