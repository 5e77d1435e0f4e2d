"""The page of `adapt`: adapters on quantized bases beside those on the base as it is."""
