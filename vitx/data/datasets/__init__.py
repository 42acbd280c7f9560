"""Datasets, one module each: the module's name is the dataset's, and a new module is a new dataset.

A module defines `open_records(config, split, data_dir)`, which returns `Records` of a whole split; it may define
`CONFIGS`, the names that may follow the dataset's as in "shapes/tiny", and `open_own(split, data_dir, classes)`, which
reads data of the user's with the classes in a file.
"""
