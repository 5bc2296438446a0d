"""What is published on the Hub: model cards, pushes, converted official checkpoints and the Space."""
