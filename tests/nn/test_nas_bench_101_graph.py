from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from hwnas.nn import NasBench101Graph

OPERATIONS = ("conv1", "conv3", "pool")


def raw_graphs(num_nodes: int, operations: tuple[str, ...] = OPERATIONS) -> Iterator[NasBench101Graph]:
    """All graphs in which every node reads something."""
    subsets = [
        [tuple(sources) for k in range(1, node + 1) for sources in itertools.combinations(range(node), k)]
        for node in range(1, num_nodes)
    ]
    for inputs in itertools.product(*subsets):
        for chosen in itertools.product(operations, repeat=num_nodes - 2):
            yield NasBench101Graph(chosen, inputs)


def random_graph(rng: random.Random, num_nodes: int) -> NasBench101Graph:
    inputs = []
    for node in range(1, num_nodes):
        sources = [source for source in range(node) if rng.random() < 0.4]
        inputs.append(tuple(sources or [rng.randrange(node)]))
    return NasBench101Graph(tuple(rng.choices(OPERATIONS, k=num_nodes - 2)), tuple(inputs))


def edges_of(graph: NasBench101Graph) -> set[tuple[int, int]]:
    return {(source, node) for node, sources in enumerate(graph.inputs, 1) for source in sources}


def smallest_of_all_orders(graph: NasBench101Graph) -> tuple[object, ...]:
    """An independent form: the smallest description over every order of the nodes between IN and OUT."""
    graph = graph.pruned()
    last = graph.num_nodes - 1
    edges = edges_of(graph)
    found = []
    for order in itertools.permutations(range(1, last)):
        place = {0: 0, last: last, **{node: i for i, node in enumerate(order, 1)}}
        operations = tuple(graph.operations[node - 1] for node in order)
        found.append((operations, tuple(sorted((place[a], place[b]) for a, b in edges))))
    return min(found)


def walks(edges: set[tuple[int, int]], start: int) -> set[int]:
    reached = {start}
    while any(a in reached and b not in reached for a, b in edges):
        reached |= {b for a, b in edges if a in reached}
    return reached


def test_pruning_keeps_what_is_on_a_path() -> None:
    rng = random.Random(0)
    for _ in range(300):
        graph = random_graph(rng, 7)
        edges = edges_of(graph)
        kept = sorted(walks(edges, 0) & walks({(b, a) for a, b in edges}, 6))
        pruned = graph.pruned()
        assert pruned.operations == tuple(graph.operations[node - 1] for node in kept[1:-1])
        assert edges_of(pruned) == {(kept.index(a), kept.index(b)) for a, b in edges if {a, b} <= set(kept)}
        assert pruned.pruned() == pruned


def test_nodes_that_nothing_leads_to_are_left_out() -> None:
    assert NasBench101Graph(("a", "b"), ((0,), (), (1, 2))).pruned() == NasBench101Graph(("a",), ((0,), (1,)))


def test_a_cell_without_a_path_is_refused() -> None:
    with pytest.raises(ValueError, match="no path leads from IN to OUT"):
        NasBench101Graph(("a",), ((0,), ())).pruned()


def test_the_form_divides_the_small_cells_as_brute_force_does() -> None:
    pairs = {(graph.canonical(), smallest_of_all_orders(graph)) for n in (2, 3, 4) for graph in raw_graphs(n)}
    assert len(pairs) == len({form for form, _ in pairs}) == len({other for _, other in pairs}) == 91


def test_the_form_divides_large_cells_as_brute_force_does() -> None:
    rng = random.Random(1)
    graphs = [random_graph(rng, 7) for _ in range(150)]
    graphs += [random_graph(rng, 5) for _ in range(150)]  # small ones meet each other often
    # Cells with many symmetries: all nodes side by side, and two layers of which each node reads all of the one before.
    graphs += [NasBench101Graph((a, b, "pool", b, a), ((0,),) * 5 + ((1, 2, 3, 4, 5),)) for a in "xy" for b in "xy"]
    graphs += [NasBench101Graph((a, b, b, a), ((0,), (0,), (1, 2), (1, 2), (3, 4))) for a in "xy" for b in "xy"]
    # Two branches of equal nodes: which node of the second layer goes with which of the first is seen by no colour.
    graphs += [
        NasBench101Graph((a, a, b, b), ((0,), (0,), (i,), (3 - i,), (3, 4))) for a in "xy" for b in "xy" for i in (1, 2)
    ]
    pairs = {(graph.canonical(), smallest_of_all_orders(graph)) for graph in graphs}
    assert len(pairs) == len({form for form, _ in pairs}) == len({other for _, other in pairs}) > 150


def test_renaming_nodes_does_not_change_the_form() -> None:
    rng = random.Random(2)
    for _ in range(200):
        graph = random_graph(rng, 7).pruned()
        edges, last = edges_of(graph), graph.num_nodes - 1
        order = [0]
        while len(order) < last:  # any node all of whose sources are placed may be next
            ready = [n for n in range(1, last) if n not in order and all(a in order for a, b in edges if b == n)]
            order.append(rng.choice(ready))
        order.append(last)
        renamed = NasBench101Graph(
            tuple(graph.operations[node - 1] for node in order[1:-1]),
            tuple(tuple(sorted(order.index(a) for a in graph.inputs[node - 1])) for node in order[1:]),
        )
        assert renamed.canonical() == graph.canonical()


def test_the_form_is_a_cell_itself() -> None:
    for graph in itertools.islice(raw_graphs(5), 0, None, 97):
        form = graph.canonical()
        assert form.canonical() == form.pruned() == form
        assert sorted(form.operations) == sorted(graph.pruned().operations)
        assert all(list(sources) == sorted(sources) for sources in form.inputs)
        assert all(source < node for node, sources in enumerate(form.inputs, 1) for source in sources)


@pytest.mark.parametrize(("num_nodes", "cells"), [(2, 1), (3, 7), (4, 91), (5, 2532)])
def test_the_number_of_different_cells(num_nodes: int, cells: int) -> None:
    """Published counts for three operations, of cells with up to so many nodes; 9 edges exclude one graph of five."""
    forms = {
        graph.canonical()
        for n in range(2, num_nodes + 1)
        for graph in raw_graphs(n)
        if graph.num_edges <= 9 and len(set().union(*graph.inputs)) == n - 1  # those with dead nodes are smaller ones
    }
    assert len(forms) == cells


def test_samples_and_graphs_say_the_same() -> None:
    graph = NasBench101Graph(("a", "b"), ((0,), (0, 1), (0, 2)))
    sample = {"c/num_nodes": 4, "c/op1": "a", "c/op2": "b", "c/input1": [0], "c/input2": [0, 1], "c/input3": [0, 2]}
    assert graph.to_sample("c") == sample
    assert NasBench101Graph.from_sample({**sample, "c/op3": "unused"}, "c") == graph
    assert (graph.num_nodes, graph.num_edges) == (4, 5)
