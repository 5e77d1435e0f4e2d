"""The damage per layer, predicted and measured."""
