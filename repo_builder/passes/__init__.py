"""Graph-to-graph passes: each returns the graph it was given when nothing is to change, else a changed copy."""
