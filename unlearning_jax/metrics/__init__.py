"""What a model draws, in numbers: each evaluator yields named intervals."""
