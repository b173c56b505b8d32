"""Tensors that are no strided bytes: sparse, quantized, nested; as objects, and made dense."""
