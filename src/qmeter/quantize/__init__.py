"""Making checkpoints: GGUF to safetensors, and quantization by llm-compressor in a process of its own."""
