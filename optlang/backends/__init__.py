"""Kernel -> callable, for the devices and compilers of this machine."""
