"""Does it stay gone? A study: erase once, tune many ways, measure."""
