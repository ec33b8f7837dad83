"""Quantised weights in .safetensors files: each layout recognised, checked, and dequantised."""
