"""The neuron kernels on CUDA: neuron.cu compiled at run time (compile.py) and launched through CuPy (launch.py)."""
