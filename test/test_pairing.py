"""Pairing by nearest stamp: against a slow reference, and by hand where the time of a decision matters."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from lix_core.errors import GeometryError
from lix_core.pairing import NS, WAITING_BYTES, Pairer

MS = 1_000_000


def pairer(slop: float = 0.02, **options: object) -> Pairer[str]:
    return Pairer(("left", "right"), slop, **options)


def feed(pairs: Pairer[str], *arrivals: tuple[str, int]) -> list[list[tuple[str, ...]]]:
    """What each arrival (stream, stamp [ms]) decides; the items are named after stream and stamp."""
    return [pairs.add(stream, stamp * MS, f"{stream[0]}{stamp}") for stream, stamp in arrivals]


def everything(streams: dict[str, list[int]], order: list[str], pairs: Pairer[int]) -> list[tuple[int, ...]]:
    """Feed all stamps [ms], each stream in its order, the streams interleaved as `order` says; then a late end that decides the rest."""
    left = {name: list(stamps) for name, stamps in streams.items()}
    sets = []
    for name in [*order, *(n for n, stamps in streams.items() for _ in stamps)]:
        if left[name]:
            stamp = left[name].pop(0)
            sets += pairs.add(name, stamp * MS, stamp)
    end = max(s for stamps in streams.values() for s in (*stamps, 0)) + 500
    for name in streams:
        sets += pairs.add(name, end * MS, end)
    assert sets.pop() == (end,) * len(streams)
    return sets


def brute_force(streams: dict[str, list[int]], slop: int) -> list[tuple[int, ...]]:
    """All sets within slop of a stamp of the first stream; unique where intervals are longer than two slops."""
    first, *others = streams.values()
    found = [(s, *(next((o for o in other if abs(o - s) <= slop), None) for other in others)) for s in first]
    return [row for row in found if None not in row]


spaced = st.lists(st.integers(21, 60), max_size=12).map(lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))])


@given(st.tuples(spaced, spaced, spaced), st.integers(2, 3), st.lists(st.integers(0, 2), max_size=40))
def test_pairs_are_those_of_a_slow_reference_in_whatever_order_the_streams_come(stamps: tuple, count: int, order: list[int]) -> None:
    names = ("a", "b", "c")[:count]
    streams = dict(zip(names, stamps))
    pairs: Pairer[int] = Pairer(names, 0.010, rooms=dict.fromkeys(names, 50))
    assert everything(streams, [names[i] for i in order if i < count], pairs) == brute_force(streams, 10)


@given(
    st.lists(st.tuples(st.sampled_from(("left", "right")), st.integers(0, 900)), max_size=60),
    st.integers(0, 80),
    st.integers(1, 8),
)
def test_nothing_is_used_twice_or_lost_whatever_comes(arrivals: list[tuple[str, int]], slop: int, capacity: int) -> None:
    pairs = pairer(slop / 1e3, rooms={"left": capacity, "right": capacity})
    sets = [pair for decided in feed(pairs, *arrivals) for pair in decided]
    lefts, rights = ([int(pair[i][1:]) for pair in sets] for i in (0, 1))
    assert (lefts, rights) == (sorted(set(lefts)), sorted(set(rights)))
    assert all(abs(a - b) <= slop for a, b in zip(lefts, rights))
    for name in ("left", "right"):
        side = pairs.streams[name]
        assert len(side.waiting) == len(side.items) <= capacity
        assert len(sets) + side.unpaired + len(side.waiting) == sum(stream == name for stream, _ in arrivals)
    assert pairs.paired == len(sets)


def test_equal_stamps_pair_at_once_and_so_does_a_partner_that_is_stamped_later() -> None:
    assert feed(pairer(), ("left", 0), ("right", 0), ("right", 100), ("left", 100)) == [[], [("l0", "r0")], [], [("l100", "r100")]]
    assert feed(pairer(), ("left", 0), ("right", 12)) == [[], [("l0", "r12")]]


def test_a_partner_stamped_earlier_pairs_at_once_unless_the_next_may_be_nearer() -> None:
    pairs = pairer()
    assert feed(pairs, ("right", 95), ("left", 100), ("right", 195), ("left", 200)) == [[], [("l100", "r95")], [], [("l200", "r195")]]
    # With an interval of 25 ms, one may come 9 ms after the left one.
    assert feed(pairs, ("right", 220), ("right", 284), ("left", 300)) == [[], [], []]
    assert feed(pairs, ("right", 309)) == [[("l300", "r309")]]


def test_the_nearest_wins_not_the_first_within_slop() -> None:
    pairs = pairer(0.025)
    rights = [("right", stamp) for stamp in (-53, -20, 13)]
    assert feed(pairs, *rights[:2], ("left", 0), rights[2]) == [[], [], [], [("l0", "r13")]]
    assert pairs.streams["right"].unpaired == 2


def test_an_item_goes_to_the_nearer_of_two_that_want_it() -> None:
    pairs = pairer(0.030)
    assert feed(pairs, ("left", 0), ("left", 33), ("right", 20)) == [[], [], [("l33", "r20")]]
    assert (pairs.streams["left"].unpaired, pairs.streams["right"].unpaired) == (1, 0)


def test_a_lonely_item_is_dropped_when_its_partner_cannot_come_any_more() -> None:
    pairs = pairer()
    assert feed(pairs, ("left", 0), ("right", 19)) == [[], [("l0", "r19")]]
    assert feed(pairs, ("left", 100), ("left", 200), ("right", 200)) == [[], [], [("l200", "r200")]]
    assert pairs.streams["left"].unpaired == 1
    feed(pairs, ("right", 300))
    feed(pairs, ("left", 321))  # the right of 300 is out of reach for this one and all that follow
    assert pairs.streams["right"].unpaired == 1
    assert [s.waiting for s in pairs.streams.values()] == [[321 * MS], []]


def test_a_dead_stream_holds_up_no_more_than_there_is_room_for() -> None:
    pairs = pairer(rooms={"left": 3})
    feed(pairs, *(("left", 100 * i) for i in range(10)))
    assert (len(pairs.streams["left"].items), pairs.streams["left"].unpaired) == (3, 7)
    assert feed(pairs, ("right", 900))[0] == [("l900", "r900")]


def test_each_stream_has_its_own_room() -> None:
    pairs = pairer(rooms={"left": 200})
    feed(pairs, *(("left", 10 * i) for i in range(150)))
    assert feed(pairs, ("right", 0))[0] == [("l0", "r0")]  # which 149 younger ones came before
    plain = pairer()
    feed(plain, *(("left", 10 * i) for i in range(150)))
    assert feed(plain, ("right", 0)) == [[]] and plain.streams["left"].unpaired == 90


@pytest.mark.parametrize("late", [30, -30])
def test_an_offset_takes_the_lateness_off(late: int) -> None:
    arrivals = [a for i in range(3, 8) for a in (("left", 100 * i), ("right", 100 * i + late))]
    assert not any(feed(pairer(), *arrivals))
    told = pairer()
    feed(told, *arrivals)
    assert told.difference("right") == pytest.approx(late / 1e3)
    pairs = [p for decided in feed(pairer(offsets={"right": late / 1e3}), *arrivals) for p in decided]
    assert pairs == [(f"l{100 * i}", f"r{100 * i + late}") for i in range(3, 8)]


@pytest.mark.parametrize("interval, late", [(33, 363), (20, 160), (17, 255), (10, 150), (10, 550)])
def test_a_sensor_that_comes_long_after_its_stamp_is_told_no_offset(interval: int, late: int) -> None:
    """A fast camera has gone on for many frames when the points of a stamp come; equal stamps differ by nothing all the same."""
    frames = [(i * interval, "left", i * interval) for i in range(300)]
    scans = [(i * 6 * interval + late, "right", i * 6 * interval) for i in range(50)]
    pairs = pairer(interval / 2e3)
    found = [pair for decided in feed(pairs, *((name, stamp) for _, name, stamp in sorted(frames + scans))) for pair in decided]
    assert found == [(f"l{i * 6 * interval}", f"r{i * 6 * interval}") for i in range(50)]
    assert pairs.difference("right") == 0.0


def seconds_of(
    wrong: float, late: float = 0.03, camera: int = 33, lidar: int = 100, seconds: int = 40, begin: int = 100
) -> list[tuple[str, int]]:
    """Stamps [ms] of a camera (left) and a LiDAR (right) with these periods [ms], in the order in which they come: images at their stamps,
    points `late` after theirs, by a clock that is wrong [s]."""
    images = [(t, "left", t) for t in range(0, 1000 * seconds, camera)]
    clouds = [(t + 1e3 * late, "right", t + round(1e3 * wrong)) for t in range(4, 1000 * seconds, lidar)]
    return [(name, 1000 * begin + stamp) for _, name, stamp in sorted(images + clouds)]


@pytest.mark.parametrize("camera, lidar", [(33, 100), (100, 100), (20, 1000), (1000, 100)])
@pytest.mark.parametrize("wrong", [0.0, 1.0, -3.0, 7.0, 37.0, -37.0])
def test_a_clock_that_is_wrong_by_seconds_is_told_though_partners_are_found(wrong: float, camera: int, lidar: int) -> None:
    pairs = pairer(min(camera, lidar) / 1.9e3, rooms={"left": 1000})
    feed(pairs, *seconds_of(wrong, 0.03, camera, lidar))
    assert abs(pairs.lag("right") + wrong) < 0.04 + min(camera, lidar) / 1e3
    if not wrong:
        assert abs(pairs.lag("right")) < 0.03, "what the time between two messages may explain is none"
    told = pairer(min(camera, lidar) / 1.9e3, offsets={"right": wrong})
    feed(told, *seconds_of(wrong, 0.03, camera, lidar))
    assert abs(told.lag("right")) < 0.04


@pytest.mark.parametrize("late", [0.0, 0.03, 0.7, 1.5])
def test_a_slow_sensor_has_the_lag_that_it_takes(late: float) -> None:
    pairs = pairer(rooms={"left": 1000})
    feed(pairs, *seconds_of(0.0, late))
    assert late - 0.04 < pairs.lag("right") <= late + 1e-9


def test_a_lag_is_not_told_of_few_messages_nor_of_a_stream_that_fell_silent_and_begins_anew_with_the_stamps() -> None:
    pairs = pairer()
    feed(pairs, *seconds_of(7.0, 0.03, 100, 100, seconds=1)[:9])
    assert pairs.lag("right") is None
    feed(pairs, *seconds_of(0.0, 0.03, 100, 100, seconds=2))
    lag = pairs.lag("right")
    feed(pairs, *(("left", 102_000 + 100 * i) for i in range(300)))  # the LiDAR's cable is out
    assert pairs.lag("right") == lag
    feed(pairs, ("left", 1000))
    assert pairs.lag("right") is None


def test_a_clock_that_is_set_back_starts_anew() -> None:
    pairs = pairer()
    feed(pairs, ("left", 50_000), ("right", 50_000), ("left", 50_100))
    assert feed(pairs, ("left", 100), ("right", 100)) == [[], [("l100", "r100")]]
    assert (pairs.streams["left"].unpaired, pairs.restarts) == (1, 1)


@pytest.mark.parametrize("stream", ["left", "right"])
def test_as_many_items_wait_as_there_is_room_for(stream: str) -> None:
    pairs: Pairer[str] = Pairer(("left", "right"), 0.02, rooms={"left": 3, "right": 3})
    found = []
    for stamp in range(0, 500, 100):
        feed(pairs, (stream, stamp))
        found.append((len(pairs.streams[stream].waiting), pairs.streams[stream].unpaired))
    assert found == [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]


@pytest.mark.parametrize("stream", ["left", "right"])
def test_large_items_wait_while_there_is_room_for_their_bytes(stream: str) -> None:
    pairs: Pairer[str] = Pairer(("left", "right"), 0.02)
    for number in range(8):
        pairs.add(stream, number * NS // 10, f"{number}", WAITING_BYTES // 3)
    side = pairs.streams[stream]
    assert (side.items, side.unpaired) == (["5", "6", "7"], 5)
    pairs.add(stream, NS, "huge", 2 * WAITING_BYTES)
    assert (side.items, side.sizes, side.unpaired) == (["huge"], [2 * WAITING_BYTES], 8)
    other = {"left": "right", "right": "left"}[stream]
    assert [set(found) for found in pairs.add(other, NS, "partner")] == [{"huge", "partner"}] and side.sizes == []


def test_a_single_stamp_from_the_future_does_no_lasting_harm() -> None:
    pairs = pairer()
    feed(pairs, ("left", 0), ("right", 10**9), ("left", 100))
    assert feed(pairs, ("right", 200), ("left", 200))[-1] == [("l200", "r200")]


def test_repeated_and_late_stamps_are_dropped_and_counted() -> None:
    pairs = pairer()
    decided = feed(pairs, ("left", 100), ("left", 100), ("right", 100), ("left", 100), ("left", 90), ("right", 90))
    assert [d for d in decided if d] == [[("l100", "r100")]]
    assert (pairs.streams["left"].unpaired, pairs.streams["right"].unpaired) == (3, 1)


def test_single_items_out_of_order_are_sorted_in() -> None:
    assert feed(pairer(), ("left", 100), ("left", 0), ("right", 0), ("right", 100)) == [[], [], [("l0", "r0")], [("l100", "r100")]]


def test_a_set_of_three_lacks_no_stream() -> None:
    pairs: Pairer[str] = Pairer(("left", "right", "points"), 0.02)
    decided = feed(pairs, *((name, 100 * i) for i in range(4) for name in ("left", "right", "points") if (name, i) != ("right", 2)))
    assert [d for d in decided if d] == [[(f"l{t}", f"r{t}", f"p{t}")] for t in (0, 100, 300)]
    assert [s.unpaired for s in pairs.streams.values()] == [1, 0, 1]


def test_the_share_of_the_slower_sensor_is_all() -> None:
    pairs = pairer()
    assert (pairs.share("left"), pairs.difference("right")) == (None, None)
    feed(pairs, *sorted([("left", 33 * i) for i in range(60)] + [("right", 99 * i) for i in range(20)], key=lambda a: a[1]))
    assert pairs.share("left") == pytest.approx(1 / 3, abs=0.02)
    assert pairs.share("right") == 1.0


@pytest.mark.parametrize("period", [20, 50])
def test_the_difference_is_that_of_the_slower_sensor_too(period: int) -> None:
    pairs = pairer()
    feed(pairs, *sorted([("left", period * i) for i in range(60)] + [("right", 100 * i + 5) for i in range(20)], key=lambda a: a[1]))
    assert pairs.difference("right") == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("streams", "options"),
    [
        (("a",), {}),
        (("a", "a"), {}),
        (("a", "b"), {"slop": -1.0}),
        (("a", "b"), {"rooms": {"a": 0}}),
        (("a", "b"), {"rooms": {"c": 5}}),
        (("a", "b"), {"offsets": {"c": 1.0}}),
    ],
)
def test_what_cannot_be_paired_is_refused(streams: tuple[str, ...], options: dict) -> None:
    with pytest.raises(GeometryError, match="pairing needs|slop must be"):
        Pairer(streams, **{"slop": 0.02, **options})
