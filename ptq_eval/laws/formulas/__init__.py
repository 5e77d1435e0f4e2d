"""The laws, one per file, each with its formula, exact derivatives and starting values; and published constants."""
