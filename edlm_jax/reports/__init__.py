"""Tables, plots and progress: these know numbers alone."""
