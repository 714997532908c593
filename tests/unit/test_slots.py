"""Tables share the readers: none waits while another one has two."""

from __future__ import annotations

import threading
from collections import Counter

from cdc.names import TableName
from snapshot.slots import Slots

A, B = TableName("s", "a"), TableName("s", "b")


def test_a_table_with_many_readers_does_not_keep_another_one_from_reading() -> None:
    slots, stop = Slots(2), threading.Event()
    taken: Counter[TableName] = Counter()
    most: Counter[TableName] = Counter()
    held: Counter[TableName] = Counter()
    lock = threading.Lock()

    def read(table: TableName) -> None:
        while not stop.is_set():
            with slots.taken(table, stop) as got:
                if not got:
                    return
                with lock:
                    held[table] += 1
                    taken[table] += 1
                    most["all"] = max(most["all"], held.total())  # type: ignore[index]
                stop.wait(0.002)
                with lock:
                    held[table] -= 1

    threads = [threading.Thread(target=read, args=(table,)) for table in (A, A, A, A, A, A, B)]
    for thread in threads:
        thread.start()
    stop.wait(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert most["all"] == 2  # type: ignore[index]
    assert taken[B] > taken.total() / 3


def test_a_wait_ends_when_it_is_told_to() -> None:
    slots, stop = Slots(1), threading.Event()
    with slots.taken(A, stop) as first:
        assert first
        threading.Timer(0.1, stop.set).start()
        with slots.taken(B, stop) as second:
            assert not second
    with slots.taken(B, threading.Event()) as third:
        assert third
