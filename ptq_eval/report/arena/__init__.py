"""What `ptq-eval arena` found, to read."""
