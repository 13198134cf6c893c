from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from client import UsageError, run_load
from client.load.result import Level
from client.load.scenario import Asked, Scenario, allowed_over, batch_of, fewest_queries, judge_scenario, loads_of
from client.load.schedule import Load
from client.load.server_usage import ServerUsage
from client.load.verdict import Verdict
from tests.client.load.fake_server import Script, fake_server
from tests.client.load.test_statistics import evenly, store_of, summary
from tests.client.load.test_verdict import QUIET

SERVER = Asked(Scenario.SERVER, 15.0)


def level(latencies_ms: npt.ArrayLike, load: Load, reasons: tuple[str, ...] = ()) -> Level:
    store = store_of(evenly(np.size(latencies_ms)), np.asarray(latencies_ms) * 1e6)
    return Level(load, "", summary(store), None, (), None, QUIET, Verdict(reasons), (), (), ServerUsage())


def binomial(queries: int, most: int, over: float) -> float:
    """The probability that ``most`` or fewer of ``queries`` are over, by the textbook's sum."""
    return sum(math.comb(queries, k) * over**k * (1 - over) ** (queries - k) for k in range(most + 1))


@pytest.mark.parametrize("quantile", [0.9, 0.99])
@pytest.mark.parametrize("queries", [1, 43, 64, 459, 662, 1000])
def test_early_stopping_is_the_binomial_test(quantile: float, queries: int) -> None:
    found = allowed_over(queries, quantile)
    assert binomial(queries, found + 1, 1 - quantile) >= 0.01
    assert found == -1 or binomial(queries, found, 1 - quantile) < 0.01


def test_fewest_queries_are_loadgens() -> None:
    assert fewest_queries(0.9) == 64
    assert fewest_queries(0.99) == 662  # MultiStream.min_query_count in LoadGen's mlperf.conf


def test_a_large_sample_comes_near_the_percentile_itself() -> None:
    expected = 270_336 * 0.01
    deviation = math.sqrt(expected * 0.99)
    assert allowed_over(270_336, 0.99) == pytest.approx(
        expected - 2.326 * deviation, abs=2
    )  # by the normal distribution
    assert allowed_over(30_000_000, 0.99) == pytest.approx(300_000, rel=0.01)


def test_single_stream_estimates_p90_from_above() -> None:
    latencies = np.random.default_rng(0).permutation(np.arange(1, 1001))
    found = judge_scenario(Asked(Scenario.SINGLE_STREAM), [level(latencies, Load(concurrency=1))], 1, 600.0)
    over = allowed_over(1000, 0.9)
    assert found.value == pytest.approx(1000 - over + 1, rel=1e-3)  # the over-th largest
    assert 900 < (found.value or 0) < 930
    assert found.shortfalls == ()


def test_too_few_queries_give_no_estimate() -> None:
    found = judge_scenario(Asked(Scenario.MULTI_STREAM), [level([1.0] * 661, Load(concurrency=1))], 8, 600.0)
    assert (found.value, found.reason) == (None, "661 queries are too few for early stopping, which takes 662")
    assert judge_scenario(Asked(Scenario.MULTI_STREAM), [level([1.0] * 662, Load(concurrency=1))], 8, 600.0).value


def test_server_reports_the_highest_rate_within_the_bound() -> None:
    kept, broken = [5.0] * 999 + [99.0], [5.0] * 980 + [99.0] * 20
    levels = [level(kept, Load(rate=100)), level(kept, Load(rate=200)), level(broken, Load(rate=300))]
    found = judge_scenario(SERVER, levels, 1, 600.0)
    assert (found.value, found.unit) == (200, "queries/s")
    invalid = [levels[0], replace(levels[1], verdict=Verdict(("the generator was late",)))]
    assert judge_scenario(SERVER, invalid, 1, 600.0).value == 100
    none = judge_scenario(SERVER, levels[2:], 1, 600.0)
    assert none.value is None
    assert "300 requests/s: 20 of 1,000 queries took longer" in none.reason


def test_shortened_runs_say_so() -> None:
    one = [level([1.0] * 1000, Load(concurrency=16))]
    found = judge_scenario(Asked(Scenario.OFFLINE), one, 8, 10.0)
    assert found.shortfalls == ("10.0 s of at least 600 s", "8,000 of at least 24,576 samples")
    assert judge_scenario(Asked(Scenario.OFFLINE), one, 32, 600.0).shortfalls == ()


def test_loads() -> None:
    assert loads_of(SERVER, (), (10.0, 20.0)) == (Load(rate=10.0, poisson=True), Load(rate=20.0, poisson=True))
    assert loads_of(Asked(Scenario.SINGLE_STREAM), (), ()) == (Load(concurrency=1),)
    assert loads_of(Asked(Scenario.OFFLINE), (4, 8), ()) == (Load(concurrency=4), Load(concurrency=8))
    for asked, concurrencies, rates in (
        (SERVER, (), ()),
        (Asked(Scenario.SERVER), (), (10.0,)),
        (Asked(Scenario.OFFLINE), (), (10.0,)),
        (Asked(Scenario.MULTI_STREAM), (2,), ()),
    ):
        with pytest.raises(UsageError):
            loads_of(asked, concurrencies, rates)


def test_samples_of_a_query() -> None:
    assert batch_of(Scenario.MULTI_STREAM, None, 16) == 8
    assert batch_of(Scenario.OFFLINE, None, 16) == 16
    assert batch_of(Scenario.OFFLINE, 4, 16) == 4
    assert batch_of(Scenario.SINGLE_STREAM, None, 0) is None  # a model without batch axis
    for scenario, batch, largest in ((Scenario.MULTI_STREAM, None, 4), (Scenario.SERVER, 2, 8)):
        with pytest.raises(UsageError):
            batch_of(scenario, batch, largest)


def test_a_whole_run() -> None:
    with fake_server(Script(delays_s=(0.001,))) as url:
        result = run_load(url=url, scenario="multi-stream", requests=700, warmup_s=0, floor=False)
    assert result.settings.batch == 8
    assert result.settings.percentile == 0.99
    assert result.scenario is not None
    assert result.scenario.value is not None
    p99 = result.levels[0].statistics.response
    assert p99 is not None
    assert p99.percentile(0.99).ms.value * 0.999 <= result.scenario.value <= p99.max_ms * 1.001
