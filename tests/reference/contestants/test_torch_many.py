"""Calls in threads at the same time: who goes on is no chance, and a lock of the layer's own is no end."""

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from zipfmax_reference.contestants.torch_many import GIVES_AWAY, Turns


def order_of(calls, n_threads, round_):
    order, turns = [], Turns(n_threads)

    def one(number):
        with turns.taken(number, round_):
            for _ in range(calls):
                order.append(number)

    with ThreadPoolExecutor(n_threads) as pool:
        for running in [pool.submit(one, number) for number in range(n_threads)]:
            running.result()
    return order


@pytest.mark.parametrize("n_threads", [2, 3])
@pytest.mark.parametrize("round_", range(len(GIVES_AWAY)))
def test_the_order_of_turns_follows_from_the_round(round_, n_threads):
    first = order_of(200, n_threads, round_)
    assert [first.count(number) for number in range(n_threads)] == [200] * n_threads
    assert sum(a != b for a, b in pairwise(first)) >= n_threads
    assert [order_of(200, n_threads, round_) for _ in range(3)] == [first] * 3


def test_a_thread_that_waits_for_a_lock_is_passed_by():
    lock, held = threading.Lock(), []

    def one(turns, number):
        with turns.taken(number, 0):
            for _ in range(3):
                with lock:
                    held.append(number)
                    len(held)

    with ThreadPoolExecutor(2) as pool:
        turns = Turns(2)
        for running in [pool.submit(one, turns, number) for number in range(2)]:
            running.result(timeout=30)
    assert sorted(held) == [0, 0, 0, 1, 1, 1]
