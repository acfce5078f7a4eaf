"""Names that OpenRLHF imports from flash-attn, which needs CUDA to be built. Nothing here is ever called."""
