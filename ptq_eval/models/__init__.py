"""Language models: loading one, what of it may be quantized, how many parameters it has, running it from disk."""
