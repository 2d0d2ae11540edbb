"""ml_collections configs: one file an experiment."""
