"""ops.layer among threads and processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from layers import assert_same, gradients, random_layer
from test_core import ISAS


def test_many_python_threads_at_once() -> None:
    layers = [
        random_layer(T=9, B=4 + k, I=17, H=33, D=2, P=5 + k, dtype=torch.float32) for k in range(8)
    ]

    def work(k: int) -> tuple[torch.Tensor, ...]:
        results = layers[k].run()
        return (*results, *gradients(results, layers[k].leaves))

    alone = [work(k) for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert_same(list(pool.map(work, range(8))), alone, atol=0, rtol=0)


def test_one_layer_shared_by_threads() -> None:
    layer = random_layer(T=20, B=16, I=40, H=64, dtype=torch.float32)
    expected = layer.run()
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: layer.run(), range(40)):
            assert_same(found, expected, atol=0, rtol=0)


def test_short_work_keeps_pythons_lock() -> None:
    """Else a thread that waits for the lock may have it for 5 ms, at each of many short calls."""
    _run("""
        import gc, sys, threading, time, torch, gatewise

        gc.disable()
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        sys.setswitchinterval(100)  # seconds: others go on where the lock is given away, or never
        turns, ended = 0, False

        def other():
            global turns
            while not ended:
                turns += 1
                time.sleep(0)

        waiting = threading.Thread(target=other)
        waiting.start()

        def turns_during(call, calls):
            kept = [call()]  # torch gives the lock away when a tensor is freed
            before = turns
            kept += [call() for _ in range(calls)]
            return turns - before

        try:
            for H, short in ((32, True), (1500, False)):
                x = torch.randn(4, 1, H)
                lstm, cell = gatewise.LSTM(H, H), gatewise.LSTMCell(H, H)
                stream = gatewise.Stream(lstm)
                step = (x[0], torch.empty(1, H))
                for call in (lambda: lstm(x), lambda: cell(step[0]), lambda: stream.step(*step)):
                    found = turns_during(call, 50)
                    assert (found == 0) == short, (H, found)
        finally:
            ended = True
            waiting.join()
    """)


_SETUP = """
    import os, sys, torch
    from gatewise import ops
    from gatewise.reference import Weights
    from gatewise.spec import CELLS

    torch.set_num_threads(2)
    torch.manual_seed(0)
    H = 64
    w = [
        Weights(*(torch.randn(*s).requires_grad_() for s in ((4 * H, H), (4 * H, H), (4 * H,))))
        for _ in range(2)
    ]
    x, d_y = torch.randn(50, 32, H), torch.randn(50, 32, 2 * H)
    (x @ w[0].W_ih.T).sum().item()  # torch's own pool is awake too

    # In a child torch's larger operations hang, so a step has none but ours, and numpy compares.
    def step():
        y = ops.layer(CELLS["lstm"], x, None, None, w).output
        found = (y.detach(), *torch.autograd.grad(y, [w[0].W_ih, w[1].W_hh], d_y))
        return [t.numpy() for t in found]

    def same(a, b):
        return all((p == q).all() for p, q in zip(a, b, strict=True))
"""


def test_cells_obey_torchs_threads_in_a_new_thread() -> None:
    """There torch tells OpenMP only when it is asked, and OpenMP says what the environment said."""
    _run(
        """
        import threading, gatewise

        torch.set_num_threads(1)
        cell, x = gatewise.LSTMCell(512, 512), torch.randn(64, 512)

        def threads_of_the_process():
            return set(os.listdir("/proc/self/task"))

        def run():
            before = threads_of_the_process()
            h, c = cell(x)
            h.sum().backward()
            new.update(threads_of_the_process() - before)

        x.requires_grad_()
        cell(x)[0].sum().backward()  # torch's own threads, of backward
        new = set()
        worker = threading.Thread(target=run)
        worker.start()
        worker.join()
        assert not new, new
    """,
        OMP_NUM_THREADS="4",
    )


def test_cells_whose_weights_are_sharded() -> None:
    """FSDP takes a module's gradients when its inputs have theirs, in every pass."""
    _run("""
        import copy, tempfile, torch, gatewise
        from torch import distributed, nn
        from torch.distributed.fsdp import fully_shard

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.before, self.cell = nn.Linear(5, 5), gatewise.LSTMCell(5, 6)

            def forward(self, x):
                state = None
                for x_t in x:
                    state = self.cell(self.before(x_t), state)
                return state[0]

        with tempfile.NamedTemporaryFile() as file:
            distributed.init_process_group("gloo", f"file://{file.name}", rank=0, world_size=1)
            torch.manual_seed(0)
            whole = Net()
            sharded = copy.deepcopy(whole)
            fully_shard(sharded.cell)
            fully_shard(sharded)
            for _ in range(3):
                x = torch.randn(3, 4, 5)
                for net in (whole, sharded):
                    net.zero_grad()
                    net(x).square().sum().backward()
                for p, q in zip(whole.parameters(), sharded.parameters(), strict=True):
                    torch.testing.assert_close(q.grad.full_tensor(), p.grad)
            distributed.destroy_process_group()
    """)


def _run(code: str, **environment: str) -> None:
    """In a fresh process that may not hang."""
    program = textwrap.dedent(_SETUP) + textwrap.dedent(code)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_child_forked_after_the_parent_ran() -> None:
    _run("""
        before = step()
        child = os.fork()
        if child == 0:
            os._exit(0 if same(step(), before) else 1)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
        assert same(step(), before)
    """)


def test_a_child_of_a_child_forked_among_threads() -> None:
    _run("""
        from concurrent.futures import ThreadPoolExecutor

        before = step()
        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(step) for _ in range(8)]
            child = os.fork()
            if child == 0:
                grandchild = os.fork()
                if grandchild == 0:
                    os._exit(0 if same(step(), before) else 1)
                _, status = os.waitpid(grandchild, 0)
                os._exit(0 if status == 0 and same(step(), before) else 1)
            assert all(same(r.result(), before) for r in running)
        _, status = os.waitpid(child, 0)
        assert status == 0, status
    """)


def test_workers_of_a_data_loader() -> None:
    _run("""
        import torch.utils.data

        class Encoded(torch.utils.data.Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, k):
                with torch.no_grad():
                    return ops.layer(CELLS["lstm"], x[:, k : k + 1], None, None, w).output[:, 0]

        whole = torch.from_numpy(step()[0])
        loader = torch.utils.data.DataLoader(
            Encoded(), batch_size=2, num_workers=2, multiprocessing_context="fork"
        )
        torch.testing.assert_close(torch.cat(list(loader)), whole[:, :4].transpose(0, 1))
    """)


AT_THE_EDGE = """
import torch
from gatewise import _core
import gatewise
_core.work_per_thread(0.0)
_core.select_isa({isa!r})
torch.set_num_threads({threads})
for H in range(304, 321, 4):
    for I in range(300, 372, 4):
        lstm = gatewise.LSTM(I, H).requires_grad_(False)
        lstm(torch.zeros(6, 7, I))
"""


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_workers_decide_alike(isa: str, threads: int) -> None:
    """About half of these weights fits the caches, so one share may fit and another not; workers
    who took different ways would wait for each other forever."""
    code = AT_THE_EDGE.format(isa=isa, threads=threads)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
