"""Tools for the Triton kernels: compile them without a GPU, tune their tiles on one."""
