"""Training of the exact graphs that are exported."""
