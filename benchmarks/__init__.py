"""Measurements quoted in docs/; each module's docstring has its command.

Common arguments: `model` is a name in vitx's registry, `batch` how many images a call has, `size` the side of an image,
and `runs` how often each alternative is timed.
"""
