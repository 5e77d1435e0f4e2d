"""Where the loss after quantization turns upward: observed in the measurements, or predicted by fitted laws."""
