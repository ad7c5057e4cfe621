"""The project's own benchmark: `make bench`. See `bench.__main__`."""
