"""GGUF, llama.cpp's models: their metadata, and their tensors, quantized ones as the blocks that they are."""
