"""From laws to decisions: what fits and presets say of a model that is to be trained and served."""
