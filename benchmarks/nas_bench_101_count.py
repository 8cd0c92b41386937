"""How many different cells NAS-Bench-101 has: all with at most 7 nodes, 9 edges and three operations, counted by form.

    python benchmarks/nas_bench_101_count.py [--nodes 7]

Every graph in which each node lies on a path from IN to OUT is listed and its canonical form taken; then every
assignment of operations to the different graphs. Beside the count stands a second one that needs no form of a graph
with operations: by Burnside's lemma, from the graphs without operations and all renamings that leave them as they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from hwnas.hub.nas_bench_101 import MAX_EDGES, OPERATIONS
from hwnas.nn import NasBench101Graph

PUBLISHED = {3: 7, 4: 91, 5: 2532, 7: 423624}


def wirings(num_nodes: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    subsets = [
        [sources for k in range(1, node + 1) for sources in itertools.combinations(range(node), k)]
        for node in range(1, num_nodes)
    ]
    for inputs in itertools.product(*subsets):
        if sum(map(len, inputs)) <= MAX_EDGES and len(set().union(*inputs)) == num_nodes - 1:
            yield inputs


def burnside(graph: NasBench101Graph) -> int:
    """Count the assignments of operations to a graph up to renaming of its nodes."""
    last = graph.num_nodes - 1
    edges = {(source, node) for node, sources in enumerate(graph.inputs, 1) for source in sources}
    symmetries = fixed = 0
    for order in itertools.permutations(range(1, last)):
        rename = [0, *order, last]
        if {(rename[a], rename[b]) for a, b in edges} == edges:
            symmetries += 1
            fixed += len(OPERATIONS) ** cycles(order)
    assert fixed % symmetries == 0
    return fixed // symmetries


def cycles(order: tuple[int, ...]) -> int:
    left, found = set(order), 0
    while left:
        found += 1
        node = next(iter(left))
        while node in left:
            left.remove(node)
            node = order[node - 1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "nas_bench_101_count.json")
    arguments = parser.parse_args()

    rows, cells, independent = [], 0, 0
    print(f"{'nodes':>5} {'graphs':>7} {'cells':>8} {'up to here':>10} {'Burnside':>9} {'published':>9} {'seconds':>8}")
    for num_nodes in range(2, arguments.nodes + 1):
        started = time.perf_counter()
        graphs = {NasBench101Graph(("",) * (num_nodes - 2), inputs).canonical() for inputs in wirings(num_nodes)}
        different = {
            NasBench101Graph(operations, graph.inputs).canonical()
            for graph in graphs
            for operations in itertools.product(OPERATIONS, repeat=num_nodes - 2)
        }
        cells += len(different)
        independent += sum(map(burnside, graphs))
        row = {
            "nodes": num_nodes,
            "graphs": len(graphs),
            "cells": len(different),
            "cells_up_to_here": cells,
            "burnside_up_to_here": independent,
            "published": PUBLISHED.get(num_nodes),
            "seconds": time.perf_counter() - started,
        }
        rows.append(row)
        print(
            f"{num_nodes:>5} {len(graphs):>7} {len(different):>8} {cells:>10} {independent:>9} "
            f"{row['published'] or '':>9} {row['seconds']:>8.1f}",
            flush=True,
        )
        if cells != independent or row["published"] not in (None, cells):
            raise SystemExit("the counts disagree")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "max_edges": MAX_EDGES,
        "operations": list(OPERATIONS),
        "rows": rows,
    }
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
