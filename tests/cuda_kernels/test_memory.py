"""The arena: blocks come back, within a bound, from any thread, across a fork and at exit."""

import subprocess
import sys
import tempfile
import threading

import pytest
import torch
from spiking.cuda_kernels import backend, memory

from spiking import functional as F

pytestmark = pytest.mark.skipif(backend.compiled() is None, reason="the compiled module was not built")
CPU = torch.device("cpu")
LARGE = (1 << 20,)  # 4 MB of float32


@pytest.fixture(autouse=True)
def fresh_arena():
    limit = memory.stats()["limit"]
    memory.limit(256 << 20)
    memory.release()
    yield
    memory.limit(limit)


def test_a_block_that_is_dropped_is_handed_out_again():
    first = memory.empty(LARGE, torch.float32, CPU)
    address, before = first.data_ptr(), memory.stats()
    assert before["in_use"] >= first.nbytes
    del first
    assert memory.stats()["cached"] >= 4 << 20
    again = memory.empty(LARGE, torch.float32, CPU)
    assert again.data_ptr() == address
    assert memory.stats()["hits"] == before["hits"] + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int16])
def test_an_arena_tensor_is_an_ordinary_tensor(dtype):
    tensor = memory.empty((3, 5, 1 << 17), dtype, CPU)
    assert tensor.shape == (3, 5, 1 << 17)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    tensor.fill_(1)
    assert tensor.double().sum() == tensor.numel()
    view = tensor[1]
    del tensor
    assert view.double().sum() == view.numel()  # the view keeps the block


def test_two_live_tensors_never_share_a_block():
    tensors = [memory.empty(LARGE, torch.float32, CPU) for _ in range(6)]
    for value, tensor in enumerate(tensors):
        tensor.fill_(value)
    assert [t[0].item() for t in tensors] == list(range(6))
    assert all((t == t[0]).all() for t in tensors)


def test_the_cache_is_bounded_and_can_be_emptied_and_switched_off():
    memory.limit(10 << 20)
    tensors = [memory.empty(LARGE, torch.float32, CPU) for _ in range(5)]
    del tensors
    assert 0 < memory.stats()["cached"] <= 10 << 20
    memory.release()
    assert memory.stats()["cached"] == 0
    memory.limit(0)
    misses = memory.stats()["misses"]
    memory.empty(LARGE, torch.float32, CPU)
    assert memory.stats()["misses"] == misses
    assert not backend.arena_on()


def test_a_training_loop_meets_no_new_block_after_its_first_steps():
    x = torch.randn(8, 1, 1 << 18, requires_grad=True)
    for step in range(5):
        if step == 2:
            misses = memory.stats()["misses"]
        F.lif(x)[0].sum().backward()
        x.grad = None
    assert memory.stats()["misses"] == misses


def test_threads_may_take_and_drop_at_once():
    failed = []

    def work(value):
        for _ in range(200):
            tensor = memory.empty(LARGE, torch.float32, CPU)
            tensor[::4096] = value
            if not (tensor[::4096] == value).all():
                failed.append(value)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
    assert memory.stats()["in_use"] == 0


def _python(code):
    elsewhere = tempfile.gettempdir()  # python -c looks into the working directory first: never the repository
    return subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True, timeout=120, check=False
    )


def test_tensors_that_live_until_exit_do_no_harm():
    code = """
import torch
from spiking.cuda_kernels import memory
kept = memory.empty((1 << 20,), torch.float32, torch.device("cpu"))
print("end")
"""
    done = _python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_forked_child_runs_the_kernels_on_one_thread():
    code = """
import os, torch
from spiking import functional as F
from spiking.cuda_kernels import backend
torch.set_num_threads(2)
x = torch.randn(16, 4, 50000, requires_grad=True)
s = F.lif(x)[0]
pid = os.fork()
if pid == 0:
    again = F.lif(x)[0]
    same = bool((again.detach().numpy() == s.detach().numpy()).all())  # torch's own threads do not survive a fork either
    os._exit(0 if same and backend.threads() == 1 else 1)
_, status = os.waitpid(pid, 0)
F.lif(x)[0].sum().backward()
print(os.waitstatus_to_exitcode(status), backend.threads())
"""
    done = _python(code)
    assert done.stdout == "0 2\n", done.stderr


def test_page_faults_are_measured():
    seconds = backend.compiled().page_fault_seconds(16 << 20)
    assert 0 < seconds < 10
