"""GPU kernels behind the functions of `genomem.ops`, chosen by device. Only the modules that hold kernels import Triton."""
