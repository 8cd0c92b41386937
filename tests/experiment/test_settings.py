from __future__ import annotations

import json
from typing import Any

import pytest

from hwnas.errors import HwnasError
from hwnas.experiment import STRATEGIES, SearchSettings


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_settings_survive_json(strategy: str) -> None:
    settings = SearchSettings(max_latency_ms=1.5, strategy=strategy, seed=3, threads=2, profile_s=1.0)
    assert SearchSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_latency_ms": 0.0},
        {"max_latency_ms": -1.0},
        {"max_latency_ms": float("nan")},
        {"max_latency_ms": float("inf")},
        {"profile_s": 0.0},
        {"strategy": "luck"},
        {"precision": "fp16"},
        {"confidence": 0.4},
        {"confidence": 1.0},
        {"confidence": float("nan")},
        *({name: 0} for name in ("batch_size", "threads", "supernet_epochs", "train_epochs", "evaluations")),
        {"finalists": -1},
    ],
    ids=str,
)
def test_a_wrong_value_is_named(wrong: dict[str, Any]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(HwnasError, match=name) as caught:
        SearchSettings(**{"max_latency_ms": 1.0, **wrong})
    assert str(value) in str(caught.value)
    assert "expected" in str(caught.value)


def test_the_strategies_are_told() -> None:
    with pytest.raises(HwnasError, match="random-oneshot, darts"):
        SearchSettings(1.0, strategy="luck")


def test_settings_of_another_version_are_told() -> None:
    written = SearchSettings(1.0).to_dict()
    with pytest.raises(HwnasError, match="novelty"):
        SearchSettings.from_dict({**written, "novelty": 1})
    del written["seed"]
    with pytest.raises(HwnasError, match="seed"):
        SearchSettings.from_dict(written)
