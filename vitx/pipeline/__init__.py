"""One file a stage or command, and `artifacts`: what each stage leaves, its paths, reading and writing."""
