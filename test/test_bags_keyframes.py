"""Which frames are kept, with which partners, and why."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bags import STORE
from lix_core.bags.keyframes import (
    KeyframePolicy,
    KeyframeSelector,
    KeyframeSettings,
    Message,
    RingBuffer,
    keyframe_message,
    keyframe_record,
    view_of,
)
from lix_core.errors import DataError

MS, S = 1_000_000, 1_000_000_000
OFF = {"uncertainty": 0.0, "disagreement": 0.0, "view": 0.0, "interval": 0.0, "least": 0.0, "before": 0.0, "after": 0.0}
RECORDS = "/logger/keyframes"


def only(**some: float) -> KeyframeSettings:
    """Settings with all but some reasons switched off."""
    return KeyframeSettings(**{**OFF, **some})


def scene(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(30, 220, (4, 6), np.uint8)
    return np.kron(coarse, np.ones((height // 4, width // 6), np.uint8))


# The policy


def test_a_fixed_rate_is_kept_on_average_whatever_the_camera_does():
    policy = KeyframePolicy(only(interval=0.1))
    dice = np.random.default_rng(1)
    stamps = [round((n / 30 + dice.normal(0, 0.002)) * S) for n in range(900)]
    kept = [s for s in stamps if policy.image(s) == ["interval"]]
    assert abs(len(kept) - 300) <= 1  # 30 s at 10 Hz
    assert np.diff(kept).min() > 0.05 * S


def test_the_interval_counts_from_the_last_image_kept_for_whatever_reason():
    policy = KeyframePolicy(only(interval=10.0, uncertainty=0.5))
    said = {4: 0.9, 9: 0.2}
    kept = {second: policy.image(second * S, uncertainty=said.get(second)) for second in range(26)}
    expected = {0: ["interval"], 4: ["uncertain"], 14: ["interval"], 24: ["interval"]}
    assert {second: reasons for second, reasons in kept.items() if reasons} == expected


def test_a_camera_that_paused_is_not_made_up_for():
    policy = KeyframePolicy(only(interval=1.0))
    stamps = [*range(0, 1500, 100), *range(7000, 9500, 100)]
    assert [ms for ms in stamps if policy.image(ms * MS)] == [0, 1000, 7000, 8000, 9000]


def test_no_image_comes_sooner_than_allowed_unless_somebody_asks():
    policy = KeyframePolicy(only(uncertainty=0.5, least=1.0))
    kept = [ms for ms in range(0, 4000, 100) if policy.image(ms * MS, uncertainty=0.8)]
    assert kept == [0, 1000, 2000, 3000]
    assert policy.image(3100 * MS, uncertainty=0.8, triggered=True) == ["trigger"]
    assert policy.image(3900 * MS, uncertainty=0.8) == [], "least counts from the triggered one"


def test_all_reasons_that_hold_are_named():
    policy = KeyframePolicy(KeyframeSettings(disagreement=0.2))
    assert policy.image(0, scene(1), 0.3, 0.2, triggered=True) == ["trigger", "uncertain", "disagreement", "view", "interval"]
    assert policy.image(1 * S, scene(1), 0.29, 0.19) == []


@pytest.mark.parametrize("height, width", [(24, 32), (64, 96), (375, 1242)])
def test_views_are_compared_without_brightness_and_contrast(height, width):
    image = np.random.default_rng(3).integers(80, 160, (height, width), np.uint8)
    view = view_of(image)
    assert view.shape == (24, 32) and view.dtype == np.float32
    assert abs(view.mean()) < 1e-5
    brighter = view_of((image.astype(np.float32) * 1.5).astype(np.uint8))
    if height == 24:  # no averaging: known exactly
        assert view.std() == pytest.approx(1.0, abs=1e-4) and np.abs(view - brighter).mean() < 0.05


def test_a_view_is_of_the_means_of_its_cells():
    means = np.random.default_rng(4).integers(0, 250, (24, 32)).astype(np.uint8)
    image = np.zeros((240, 320), np.uint8)
    for row in range(4):
        for column in range(4):
            image[row::10, column::10] = means  # in a corner of each cell
    np.testing.assert_allclose(view_of(image), (means - means.mean()) / means.std(), atol=0.06)


def test_the_distance_of_two_unlike_views_is_what_statistics_says():
    """The mean difference of two independent normal variables is 2 / sqrt(pi)."""
    dice = np.random.default_rng(0)
    one, other = (np.clip(dice.normal(128, 30, (24, 32)), 0, 255).astype(np.uint8) for _ in range(2))
    assert np.abs(view_of(one) - view_of(other)).mean() == pytest.approx(2 / np.sqrt(np.pi), rel=0.06)


def test_a_change_of_view_is_measured_against_the_last_image_that_was_kept():
    """A slow pan: no image differs much from the one before, yet every so often one is kept."""
    wide = np.repeat(scene(5, 64, 600), 2, axis=1)
    policy = KeyframePolicy(only(view=0.5))
    kept = [x for x in range(0, 1000, 10) if policy.image(x * MS, wide[:, x : x + 96]) == ["view"]]
    assert kept[0] == 0 and 8 <= len(kept) <= 50 and np.diff(kept).min() >= 20
    assert policy.image(2 * S, None) == [], "without a picture there is no view"


def test_a_triggered_image_is_the_view_that_later_ones_are_compared_with_even_amid_the_rest():
    policy = KeyframePolicy(only(view=0.5, least=1.0))
    assert policy.image(0, scene(1)) == ["view"] and policy.image(100 * MS, scene(2), triggered=True) == ["trigger"]
    assert policy.image(2 * S, scene(2)) == [] and policy.image(3 * S, scene(1)) == ["view"]


def test_noise_in_the_dark_is_no_change_of_view():
    policy = KeyframePolicy(only(view=0.3))
    dice = np.random.default_rng(2)
    kept = [n for n in range(50) if policy.image(n * S, dice.integers(0, 3, (24, 32)).astype(np.uint8))]
    assert kept == [0]


def test_a_clock_that_is_set_back_does_not_end_the_keyframes():
    policy = KeyframePolicy(only(interval=1.0, least=0.5))
    assert [bool(policy.image(t * S)) for t in (100, 101, 3, 4)] == [True] * 4


@pytest.mark.parametrize(
    ("settings", "every"),
    [({"interval": 1.0}, 1000), ({"interval": 10.0, "least": 0.5}, 10_000), ({"uncertainty": 0.5, "least": 0.5}, 600)],
)
def test_images_a_little_out_of_order_are_kept_no_more_often(settings, every):
    policy = KeyframePolicy(only(**settings))
    stamps = [100 * number - 150 * (number % 2) for number in range(1200)]
    assert [ms for ms in stamps if policy.image(ms * MS, uncertainty=0.9)] == list(range(0, 120_000, every))


def test_after_a_late_image_of_a_trigger_the_rest_counts_from_the_newest_one():
    policy = KeyframePolicy(only(interval=2.0, least=0.5))
    asked = {300: True}
    kept = [ms for ms in (1000, 300, 1400, 2400, 2900, 3000) if policy.image(ms * MS, triggered=asked.get(ms, False))]
    assert kept == [1000, 300, 3000]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(0, 1), st.booleans()), max_size=60),
    st.floats(0, 1),
    st.sampled_from([0.0, 0.1, 0.7]),
    st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_the_policy_agrees_with_its_description(steps, threshold, least, interval):
    """Written anew, image by image, from what the settings say; the interval without its averaging of rates."""
    policy = KeyframePolicy(only(uncertainty=threshold, least=least, interval=interval))
    now, last = 0, None
    for step, uncertainty, asked in steps:
        now += step * MS
        reasons = policy.image(now, None, uncertainty, triggered=asked)
        rested = last is None or now - last >= least * S
        assert ("trigger" in reasons) == asked
        assert ("uncertain" in reasons) == (rested and threshold > 0 and uncertainty >= threshold)
        if interval and rested and (last is None or now - last >= interval * S):
            assert "interval" in reasons
        if not rested or not interval:
            assert "interval" not in reasons
        last = now if reasons else last


# The ring


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 400)), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_the_ring_holds_the_newest_messages_of_its_seconds_and_bytes(steps):
    ring, messages, now, gone = RingBuffer(1.0, 1000), [], 0, []
    for step, size in steps:
        now += step * MS
        messages.append(Message("/a", now, now, b"x" * size))
        gone += ring.add(messages[-1])
        held = list(ring)
        assert gone + held == messages and ring.size == sum(len(m.raw) for m in held)
        assert all(m.recorded >= now - S for m in held) and (ring.size <= 1000 or len(held) == 1)
        if gone and gone[-1].recorded >= now - S:
            assert ring.size + len(gone[-1].raw) > 1000, "it went without need"


# The selector


def stream(selector: KeyframeSelector, *messages: tuple) -> list[tuple[str, int]]:
    """What comes out for messages (topic, stamp [ms]) or (topic, stamp [ms], recorded [ms]); of records, what they say."""
    kept = []
    for topic, stamp, *recorded in messages:
        kept += selector.add(topic, stamp * MS, f"{topic} {stamp}".encode(), recorded[0] * MS if recorded else None)
    return told(kept)


def told(kept: list) -> list:
    return [keyframe_record(raw) if topic == RECORDS else raw.decode() for topic, _, raw in kept]


def test_an_uncertain_image_comes_with_the_partner_that_is_nearest():
    selector = KeyframeSelector(only(uncertainty=0.5), "/image", ["/points"], ["/tf"])
    assert stream(selector, ("/points", 70), ("/image", 100), ("/tf", 101), ("/points", 120), ("/image", 133)) == ["/tf 101"]
    assert selector.uncertainty(100 * MS, 0.2) == []
    kept = told(selector.uncertainty(133 * MS, 0.7))
    assert kept == ["/image 133"], "a nearer cloud may still come"
    kept = stream(selector, ("/image", 166), ("/points", 170))
    record = {"stamp": 133 * MS, "topic": "/image", "reasons": ["uncertain"], "uncertainty": 0.7, "partners": {"/points": 120 * MS}}
    assert kept == ["/points 120", record]
    assert (selector.images, selector.keyframes) == (3, 1)


def test_what_is_written_carries_the_time_at_which_it_was_recorded():
    selector = KeyframeSelector(only(interval=1.0), "/image", ["/points"])
    assert selector.add("/image", 100 * MS, b"i", 140 * MS) == [("/image", 140 * MS, b"i")]
    points, record = selector.add("/points", 100 * MS, b"p", 190 * MS)
    assert points == ("/points", 190 * MS, b"p")
    assert record[:2] == (RECORDS, 140 * MS) and keyframe_record(record[2])["partners"] == {"/points": 100 * MS}


def test_partners_that_do_not_come_are_waited_for_no_longer_than_allowed():
    selector = KeyframeSelector(only(interval=10.0, patience=0.3), "/image", ["/points", "/right"])
    assert stream(selector, ("/image", 0), ("/right", 1)) == ["/image 0", "/right 1"]
    assert told(selector.tick(299 * MS)) == []
    assert told(selector.tick(301 * MS)) == [{"stamp": 0, "topic": "/image", "reasons": ["interval"], "partners": {"/right": 1 * MS}}]


def test_a_partner_out_of_tolerance_is_none():
    selector = KeyframeSelector(only(interval=10.0, tolerance=0.05), "/image", ["/points"])
    kept = stream(selector, ("/points", 49), ("/image", 100), ("/points", 151))
    assert kept == ["/image 100", {"stamp": 100 * MS, "topic": "/image", "reasons": ["interval"], "partners": {}}]
    selector = KeyframeSelector(only(interval=10.0, tolerance=0.05), "/image", ["/points"])
    assert stream(selector, ("/image", 100), ("/points", 150))[-1]["partners"] == {"/points": 150 * MS}, "just within"


def drive_with_a_wrong_clock(selector: KeyframeSelector, wrong: int, late: int = 60, seconds: int = 10) -> list:
    """Images of 30 Hz and clouds of 10 Hz, stamped `wrong`, never quite as an image, and coming `late` [ms]; raws say when."""
    images = [(ms, "/image", ms, ms) for ms in range(0, 1000 * seconds, 33)]
    clouds = [(ms + late, "/points", ms + wrong, ms) for ms in range(4, 1000 * seconds, 100)]
    kept = []
    for now, topic, stamp, taken in sorted(images + clouds):
        kept += selector.add(topic, 100 * S + stamp * MS + 7 * (topic == "/points"), f"{topic} {taken}".encode(), 100 * S + now * MS)
    return told(kept + selector.finish())


@pytest.mark.parametrize("wrong", [37_000, -37_000, 1_500, -1_500, 700])
def test_of_a_topic_whose_clock_is_wrong_what_came_about_then_is_kept(wrong):
    """Among it is the cloud that was taken nearest to the image, though it comes later than half its interval."""
    selector = KeyframeSelector(only(interval=1.0), "/image", ["/points"])
    kept = drive_with_a_wrong_clock(selector, wrong)
    images = [int(k.split()[1]) for k in kept if isinstance(k, str) and k.startswith("/image")]
    clouds = np.array([int(k.split()[1]) for k in kept if isinstance(k, str) and k.startswith("/points")])
    assert len(images) == 10 and len(set(clouds)) == len(clouds) <= 30
    assert all(np.abs(clouds - image).min() <= 50 for image in images[2:]), "it takes a second to tell the clock"
    assert selector.pairers["/points"].lag("/points") == pytest.approx((60 - wrong) / 1000, abs=0.07)
    if abs(wrong) > 2000:
        assert selector.share("/points") == 0.0 and all(k["partners"] == {} for k in kept if isinstance(k, dict))


def test_of_a_topic_whose_clock_is_right_nothing_but_the_partners_is_kept():
    selector = KeyframeSelector(only(interval=1.0), "/image", ["/points"])
    kept = drive_with_a_wrong_clock(selector, 0)
    assert sum(k.startswith("/points") for k in kept if isinstance(k, str)) == 10 and selector.share("/points") == 1.0


def test_the_share_that_finds_a_partner_is_of_keyframes_during_which_the_topic_came():
    selector = KeyframeSelector(only(interval=0.1, patience=0.5, tolerance=0.02), "/image", ["/points"])
    stream(selector, *(("/image", ms) for ms in range(0, 2000, 100)))
    assert selector.share("/points") is None, "nothing came: that is another matter"
    for ms in range(2000, 6000, 100):
        stream(selector, ("/image", ms), *[("/points", ms)] * (ms % 400 == 0))
    assert selector.share("/points") == 0.25
    stream(selector, *(("/image", ms) for ms in range(6000, 12_000, 100)))
    assert 0 < selector.share("/points") < 0.25, "it went silent, and that is another matter soon"


def test_a_message_that_is_the_partner_of_two_images_is_written_once():
    selector = KeyframeSelector(only(interval=0.001), "/image", ["/points"])
    kept = stream(selector, ("/image", 90), ("/image", 110), ("/points", 110))
    assert kept.count("/points 110") == 1
    assert [r["partners"] for r in kept if isinstance(r, dict)] == [{"/points": 110 * MS}] * 2


def test_images_are_decided_without_an_uncertainty_that_does_not_come():
    """The student leaves images out: what it says of a later one tells that. Where it says nothing at all, time does."""
    selector = KeyframeSelector(only(uncertainty=0.5, interval=0.1, patience=0.5), "/image")
    assert stream(selector, ("/image", 0), ("/image", 33), ("/image", 66)) == []
    kept = told(selector.uncertainty(66 * MS, 0.9))
    assert [k for k in kept if isinstance(k, str)] == ["/image 0", "/image 66"]
    assert [(r["reasons"], r.get("uncertainty")) for r in kept if isinstance(r, dict)] == [(["interval"], None), (["uncertain"], 0.9)]
    assert stream(selector, ("/image", 200)) == []
    assert "/image 200" in told(selector.tick(700 * MS))


def test_images_do_not_wait_for_what_nobody_says():
    selector = KeyframeSelector(only(uncertainty=0.5, disagreement=0.5, interval=0.1), "/image")
    assert stream(selector, ("/image", 0)) == []
    selector.expected = frozenset(["uncertainty"])
    assert told(selector.tick(10 * MS)) == []
    assert told(selector.uncertainty(0, 0.9))[1]["reasons"] == ["uncertain", "interval"]
    assert stream(selector, ("/image", 200)) == [], "somebody may still say something of it"
    selector.expected = frozenset()
    assert "/image 200" in stream(selector, ("/image", 210))
    assert "/image 320" in stream(selector, ("/image", 320)), "at once"


def test_nothing_that_is_written_was_held_for_longer_than_the_patience():
    """Though neither uncertainty nor partner comes, and by the clock of arrival, which here runs ahead of the stamps."""
    selector = KeyframeSelector(only(uncertainty=0.5, interval=0.2, patience=0.5), "/image", ["/points", "/right"])
    held = []
    for ms in range(0, 5000, 20):
        kept = selector.tick((7000 + ms) * MS)
        if ms % 100 == 0:
            kept += selector.add("/image", ms * MS, b"image", (7000 + ms) * MS)
            kept += selector.add("/points", (ms + 3) * MS, b"points", (7000 + ms + 1) * MS) if ms % 500 == 0 else []
        held += [(topic, (7000 + ms) * MS - recorded) for topic, recorded, _ in kept]
    assert {topic for topic, _ in held} == {"/image", "/points", RECORDS}
    assert len(held) > 50 and max(age for _, age in held) == 500 * MS


def test_an_uncertainty_that_overtakes_its_image_is_remembered():
    selector = KeyframeSelector(only(uncertainty=0.5), "/image")
    assert selector.uncertainty(100 * MS, 0.8) == []
    assert stream(selector, ("/image", 100))[0] == "/image 100"


def test_many_uncertainties_may_overtake_their_images_and_old_ones_are_forgotten():
    selector = KeyframeSelector(only(uncertainty=0.5), "/image")
    for ms in range(300):
        assert selector.uncertainty(ms * MS, 0.8) == []
    kept = [k for k in stream(selector, *(("/image", ms) for ms in range(300))) if isinstance(k, str)]
    assert kept == [f"/image {ms}" for ms in range(100, 300)]


def test_messages_a_little_out_of_order_are_no_clock_set_back():
    selector = KeyframeSelector(only(uncertainty=0.5, patience=1.0), "/image")
    assert stream(selector, ("/image", 2000)) == [] and selector.uncertainty(1500 * MS, 0.9) == []
    assert told(selector.tick(1990 * MS)) == [], "it waits still"
    kept = stream(selector, ("/image", 1500, 2010))
    assert kept == [], "nor was it decided when an older one came"
    assert [k for k in told(selector.uncertainty(2000 * MS, 0.7)) if isinstance(k, str)] == ["/image 2000", "/image 1500"]


def test_both_uncertainty_and_disagreement_are_waited_for():
    selector = KeyframeSelector(only(uncertainty=0.5, disagreement=0.3), "/image")
    assert stream(selector, ("/image", 0)) == [] and selector.uncertainty(0, 0.6) == []
    kept = told(selector.disagreement(0, 0.4))
    assert kept[1]["reasons"] == ["uncertain", "disagreement"] and kept[1]["disagreement"] == 0.4


def test_a_trigger_keeps_everything_of_the_time_around_it_once():
    selector = KeyframeSelector(only(before=0.1, after=0.2), "/image", ["/points"], ["/tf"])
    before = [(topic, stamp) for stamp in range(0, 200, 10) for topic in ("/image", "/points", "/imu", "/tf")]
    first = stream(selector, *before)
    assert {k for k in first} == {f"/tf {stamp}" for stamp in range(0, 200, 10)}
    kept = told(selector.trigger(195 * MS))
    kept += stream(selector, *((topic, stamp) for stamp in range(200, 500, 10) for topic in ("/image", "/points", "/imu")))
    kept += told(selector.finish())
    words = [k for k in kept if isinstance(k, str)]
    assert sorted(words) == sorted(f"{topic} {stamp}" for topic in ("/image", "/points", "/imu") for stamp in range(100, 400, 10))
    records = [k for k in kept if isinstance(k, dict)]
    assert [r["stamp"] // MS for r in sorted(records, key=lambda r: r["stamp"])] == list(range(100, 400, 10))
    assert all(r["reasons"] == ["trigger"] and r["partners"] == {"/points": r["stamp"]} for r in records)


def test_how_much_a_trigger_keeps_is_what_the_buffer_has_room_for():
    for buffer, held in ((1000, 2.0), (100, 0.9)):  # ten messages of ten bytes, one every 0.1 s
        selector = KeyframeSelector(KeyframeSettings(**{**OFF, "before": 2.0, "patience": 0.0, "buffer": buffer}), "/image")
        assert selector.held(0) == 2.0, "nothing has gone yet"
        for ms in range(0, 10_000, 100):
            selector.add("/image", ms * MS, bytes(10))
        assert selector.held(9_900 * MS) == pytest.approx(min(held + 0.1, 2.0)) and selector.held(20 * S) == 2.0
        kept = [recorded for topic, recorded, _ in selector.trigger(9_900 * MS) if topic == "/image"]
        assert (9_900 * MS - min(kept)) / S == pytest.approx(held)
        selector.tick(0)  # the clock is set back
        assert selector.held(0) == 2.0


def test_a_second_trigger_lengthens_the_first():
    selector = KeyframeSelector(only(before=0.1, after=0.2), "/image")
    kept = told(selector.trigger(0))
    kept += stream(selector, *(("/imu", stamp) for stamp in range(0, 160, 10)))
    kept += told(selector.trigger(150 * MS)) + stream(selector, *(("/imu", stamp) for stamp in range(160, 500, 10)))
    assert kept == [f"/imu {stamp}" for stamp in range(0, 360, 10)]

    selector = KeyframeSelector(only(uncertainty=0.5, before=0.1, after=0.2), "/image")
    assert told(selector.trigger(0)) + stream(selector, ("/image", 10)) + told(selector.trigger(150 * MS)) == []
    image, record = told(selector.uncertainty(10 * MS, 0.1))
    assert image == "/image 10" and record["reasons"] == ["trigger"], "an image that waits is of the first trigger still"


def test_an_image_of_a_trigger_that_waits_still_is_kept_though_another_trigger_comes():
    selector = KeyframeSelector(only(uncertainty=0.5, before=0.0, after=0.2, patience=0.5), "/image")
    assert told(selector.trigger(0)) + stream(selector, ("/image", 150)) + told(selector.trigger(400 * MS)) == []
    (name, record) = told(selector.uncertainty(150 * MS, 0.1))
    assert name == "/image 150" and record["reasons"] == ["trigger"]


def test_after_the_clock_was_set_back_the_first_view_is_new():
    policy = KeyframePolicy(only(view=0.5, least=1.0))
    assert [policy.image(stamp * S, scene(1)) for stamp in (100, 102, 50)] == [["view"], [], ["view"]]


def test_what_is_between_two_triggers_is_of_neither():
    selector = KeyframeSelector(only(uncertainty=0.5, before=0.1, after=0.2, patience=20.0), "/image")
    assert told(selector.trigger(0)) + stream(selector, ("/image", 5000), ("/imu", 5001)) == []
    assert told(selector.trigger(10 * S)) + told(selector.uncertainty(5 * S, 0.1)) == []


def test_images_that_memory_has_no_room_for_are_decided_before_they_go():
    chosen = KeyframeSettings(**{**OFF, "uncertainty": 0.5, "interval": 1.0, "buffer": 25})
    selector = KeyframeSelector(chosen, "/image")
    kept = stream(selector, *(("/image", stamp) for stamp in (10, 20, 30)))
    assert kept[0] == "/image 10" and selector.ring.size <= 25


def test_a_picture_is_asked_for_only_where_it_may_matter():
    asked = []

    def gray(raw: bytes) -> np.ndarray:
        asked.append(raw)
        return scene(len(asked))

    selector = KeyframeSelector(only(view=0.5, least=1.0), "/image", gray=gray)
    for ms in range(0, 3000, 100):
        selector.add("/image", ms * MS, str(ms).encode())
    assert asked == [b"0", b"1000", b"2000"] and selector.keyframes == 3


def test_a_clock_that_is_set_back_begins_a_new_drive():
    selector = KeyframeSelector(only(interval=1.0, before=5.0, after=5.0), "/image", ["/points"])
    first = stream(selector, ("/image", 100_000), ("/image", 1_000), ("/points", 1_000))
    assert first[:2] == ["/image 100000", {"stamp": 100 * S, "topic": "/image", "reasons": ["interval"], "partners": {}}]
    assert first[2:4] == ["/image 1000", "/points 1000"] and first[4]["partners"] == {"/points": S}
    assert told(selector.trigger(2 * S)) == [], "what was before is forgotten, what is kept is written"


def test_a_trigger_of_before_the_clock_was_set_back_keeps_nothing_after_it():
    selector = KeyframeSelector(only(view=0.5, least=1.0, before=1.0, after=50.0), "/image", gray=lambda raw: scene(len(raw)))
    assert told(selector.trigger(100 * S)) == [] and stream(selector, ("/imu", 140_000), ("/imu", 110_000)) == ["/imu 140000"]
    assert stream(selector, ("/image", 111_000))[1]["reasons"] == ["view"]
    assert stream(selector, ("/image", 30_000))[1]["reasons"] == ["view"], "its picture is asked for, though it does not come after"


def test_a_bag_that_is_played_in_a_loop_has_its_partners_in_every_lap():
    """The time of recording goes on, the stamps begin anew; depth comes 250 ms late, so that of one lap comes in the next."""
    lap = [(topic, stamp, stamp + delay) for stamp in range(0, 5000, 100) for topic, delay in (("/image", 0), ("/depth", 250))]
    selector = KeyframeSelector(only(interval=1.0), "/image", ["/depth"])
    messages = sorted(((topic, stamp, n * 5000 + after) for n in range(3) for topic, stamp, after in lap), key=lambda m: m[2])
    kept = []
    for topic, stamp, after in messages:
        kept += selector.add(topic, stamp * MS, f"{topic} {stamp}".encode(), (50_000 + after) * MS)
    records = [k for k in told(kept + selector.finish()) if isinstance(k, dict)]
    assert [r["stamp"] // (1000 * MS) for r in records] == [0, 1, 2, 3, 4] * 3
    assert all(r["partners"] == {"/depth": r["stamp"]} for r in records)
    assert [k for k in told(kept) if isinstance(k, str) and k.startswith("/depth")] == [f"/depth {s}" for s in range(0, 5000, 1000)] * 3


def test_in_a_loop_the_student_is_heard_of_every_lap_anew():
    """It is of another mind each time: of images 0, 5, ..., then of 1, 6, ..., then of 2, 7, ..."""
    selector = KeyframeSelector(only(uncertainty=0.5), "/image")
    kept = []
    for lap in range(3):
        for stamp in range(0, 5000, 100):
            now = 50_000 + lap * 5000 + stamp
            kept += selector.add("/image", stamp * MS, b"image", now * MS)
            kept += selector.tick((now + 80) * MS) + selector.uncertainty(stamp * MS, 0.8 if stamp % 500 == 100 * lap else 0.1)
    records = [keyframe_record(raw) for topic, _, raw in kept if topic == RECORDS]
    assert [r["stamp"] // MS for r in records] == [stamp for lap in range(3) for stamp in range(100 * lap, 5000, 500)]


def test_what_is_said_late_of_the_lap_before_decides_no_image_of_this_one():
    selector = KeyframeSelector(only(uncertainty=0.5, patience=10.0), "/image")
    assert stream(selector, ("/image", 90_000, 1000), ("/image", 0, 1100)) == []
    assert selector.uncertainty(90_000 * MS, 0.9) == [], "its image was decided when the next lap began"
    assert selector.uncertainty(0, 0.7)[0][:2] == ("/image", 1100 * MS)


def test_nothing_is_written_twice_and_all_keyframes_have_records():
    """A long drive with everything on."""
    dice = np.random.default_rng(7)
    chosen, gray = KeyframeSettings(buffer=10_000), lambda raw: scene(int(raw.split()[1]) // 4000)
    selector = KeyframeSelector(chosen, "/image", ["/points"], ["/tf"], gray=gray)
    kept = []
    for stamp in range(0, 60_000, 33):
        kept += selector.add("/image", stamp * MS, f"/image {stamp}".encode(), (stamp + 5) * MS)
        if stamp % 3 == 0:
            kept += selector.add("/points", (stamp + 10) * MS, f"/points {stamp + 10}".encode(), (stamp + 20) * MS)
        if dice.random() < 0.3:
            kept += selector.uncertainty(max(stamp - 66, 0) * MS, float(dice.random() ** 4))
        if stamp % 19_800 == 9_900:
            kept += selector.trigger((stamp + 6) * MS)
    kept += selector.finish()
    raws = [raw for _, _, raw in kept]
    images = [int(raw.split()[1]) for topic, _, raw in kept if topic == "/image"]
    records = [keyframe_record(raw) for topic, _, raw in kept if topic == RECORDS]
    assert len(set(raws)) == len(raws)
    assert sorted(r["stamp"] // MS for r in records) == sorted(images) and selector.keyframes == len(images) > 20
    written = {int(raw.split()[1]) for topic, _, raw in kept if topic == "/points"}
    assert all(r["partners"]["/points"] // MS in written for r in records if r["partners"])
    assert sum(bool(r["partners"]) for r in records) > 0.9 * len(records)
    assert {reason for r in records for reason in r["reasons"]} == {"trigger", "uncertain", "view", "interval"}


# Records


def test_a_record_is_a_message_that_ros_reads():
    record = {"stamp": 5, "topic": "/camera/image_raw", "reasons": ["uncertain"], "uncertainty": 0.31, "partners": {"/ü": 7}}
    raw = keyframe_message(record)
    message = STORE.deserialize_cdr(raw, "std_msgs/msg/String")
    assert bytes(STORE.serialize_cdr(message, "std_msgs/msg/String")) == raw
    assert keyframe_record(raw) == record
    big_endian = STORE.serialize_cdr(message, "std_msgs/msg/String", little_endian=False)
    assert keyframe_record(bytes(big_endian)) == record


@pytest.mark.parametrize(
    "raw", [b"", b"\0\1\0\0", b"\0\1\0\0\3\0\0\0{}\0", keyframe_message({"stamp": "now", "reasons": []}), keyframe_message([1])]
)
def test_what_is_no_record_says_so(raw):
    with pytest.raises(DataError, match="keyframe's record cannot be read"):
        keyframe_record(raw)


def test_settings_and_roles_that_make_no_sense_are_refused():
    with pytest.raises(DataError, match="uncertainty of keyframes must be 0.0 to 1.0, got 1.5"):
        KeyframeSettings(uncertainty=1.5)
    with pytest.raises(DataError, match="least of keyframes must be at least 0.0, got -1"):
        KeyframeSettings(least=-1)
    with pytest.raises(DataError, match="/points cannot be two of them"):
        KeyframeSelector(KeyframeSettings(), "/image", ["/points"], ["/points"])
