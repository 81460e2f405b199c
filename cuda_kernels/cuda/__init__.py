"""The kernels on CUDA: neuron.cu and event.cu, compiled at run time (compile.py) and launched through CuPy (launch.py, event.py)."""
