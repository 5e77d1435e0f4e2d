"""Which of several laws the same records support, and whether they can tell."""
