# SPDX-License-Identifier: Apache-2.0
"""Routes to sub-models: who is asked first, who is asked last, and when a device that is back is asked first again."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

from edvit_hf.runtime.engines.routes import Prober, Routes


def test_a_device_in_doubt_is_asked_last_until_it_answers():
    routes = Routes({0: ["a", "b", "c"], 1: ["b"]})
    routes.missed(0, "a")
    assert routes.order(0) == ("b", "c", "a")
    routes.failed(0, "b")
    assert routes.order(0) == ("c", "a", "b")  # of two in doubt the one that failed longer ago
    routes.answered(0, "a")
    assert routes.order(0) == ("a", "c", "b")
    assert routes.order(1) == ("b",)  # what befell another sub-model there says nothing of this one
    assert routes.order(7) == ()


def test_only_where_another_stands_in_is_a_device_in_doubt_probed_here():
    routes = Routes({0: ["a", "b"], 1: ["a"]})
    routes.failed(0, "a")
    routes.failed(1, "a")
    assert routes.doubtful() == [(0, "a")]


def test_changing_endpoints_keeps_what_is_known_of_those_that_stay():
    routes = Routes({0: ["a", "b"]})
    routes.failed(0, "a")
    routes.change(0, ["a", "c"])
    assert routes.order(0) == ("c", "a")
    routes.failed(0, "b")  # it was given up meanwhile
    assert routes.status() == {"0": [{"endpoint": "a", "health": "unreachable"}, {"endpoint": "c", "health": "up"}]}


def test_endpoints_that_are_found_at_once_by_several_threads_are_all_kept_in_order():
    names = [f"d{number:02d}" for number in range(40)]
    routes = Routes({0: []})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: routes.add(0, name, names), reversed(names)))
    assert routes.order(0) == tuple(names)


def test_the_prober_takes_a_device_back_and_ends_with_its_owner():
    routes, probed = Routes({0: ["a", "b"]}), threading.Event()
    routes.failed(0, "a")

    class Owner:
        def probe(self, index, endpoint):
            probed.set()
            answer = Future()
            answer.set_result((index, endpoint))
            return answer

    owner = Owner()
    prober = Prober(routes, owner.probe, pause_s=0.01)
    assert probed.wait(30)
    end = threading.Event()
    for _ in range(3000):
        if routes.order(0) == ("a", "b"):
            break
        end.wait(0.01)
    assert routes.order(0) == ("a", "b")
    prober.close()
