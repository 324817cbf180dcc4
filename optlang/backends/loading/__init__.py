"""Shared code of the backends: signatures, generated modules, the cache of built kernels, the C++ toolchain."""
