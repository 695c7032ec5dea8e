"""Test vectors for peers in any language: `make` writes docs/vectors, `judged` asks our own verifiers."""
