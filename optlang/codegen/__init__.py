"""Code generation: one writer per dialect, and the helpers that generated code calls."""
