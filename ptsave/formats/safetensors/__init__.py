"""safetensors, in one file or in shards."""
