"""The page of a study of sensitivity by part."""
