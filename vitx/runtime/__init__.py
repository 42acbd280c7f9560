"""Command line, experiment, workdir, progress, files."""
