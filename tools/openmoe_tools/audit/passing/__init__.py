"""One pass of a model over text: rows, calls, what routers decide, and tables."""
