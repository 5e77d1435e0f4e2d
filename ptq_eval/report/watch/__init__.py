"""What `ptq-eval watch` prints, for people and for programs."""
