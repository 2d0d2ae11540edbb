"""The parts that several attacks share; each method is a module beside it."""
