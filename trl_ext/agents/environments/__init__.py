"""The environments that ship: each with its players, and rows to begin episodes from."""
