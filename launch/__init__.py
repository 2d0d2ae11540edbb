"""Entry points: flags, configs, the run's folder."""
