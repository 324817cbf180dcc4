"""What the backends share: signatures, generated modules, the cache of built kernels, the C++ toolchain."""
