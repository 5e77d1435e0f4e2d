"""Two sets of results side by side: what is comparable, what became worse, and what could have been seen."""
