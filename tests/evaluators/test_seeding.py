"""Random numbers of a fit: seeded, apart from the caller's, and different in each process."""

from __future__ import annotations

import random
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from hwnas.evaluators.seeding import SeedEachStep, isolated_seed


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.random()), random.random()


def test_a_block_is_seeded_and_leaves_no_trace():
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    drawn = []
    for seed in (3, 3, 4, 2**40):
        with suppress(RuntimeError), isolated_seed(seed):
            drawn.append(draw())
            raise RuntimeError
    assert drawn[0] == drawn[1]
    assert len({number for numbers in drawn for number in numbers}) == 9
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1][1] == np.random.get_state()[1]).all()
    assert state[1][2:] == np.random.get_state()[2:]
    assert state[2] == random.getstate()


def test_it_is_what_the_libraries_draw_from_the_seed():
    with isolated_seed(7):
        drawn = draw()
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    assert drawn == draw()


def test_each_step_of_each_process_has_numbers_of_its_own():
    def number(seed: int, epoch: int, batch: int, rank: int) -> float:
        trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        SeedEachStep(seed).on_train_batch_start(trainer, None, None, batch)  # type: ignore[arg-type]
        return float(torch.rand(()))

    places = [(seed, epoch, batch, rank) for seed in (0, 1) for epoch in (0, 1) for batch in (0, 1) for rank in (0, 1)]
    first = [number(*place) for place in places]
    assert len(set(first)) == 16
    assert [number(*place) for place in places] == first
