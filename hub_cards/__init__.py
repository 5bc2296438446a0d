"""What is published on the Hub: model cards, pushes, ONNX exports, converted official checkpoints and Spaces."""
