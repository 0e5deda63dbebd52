"""The methods of distillation behind their one interface: each against a loop of its own, its limits, and what may be configured."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from lix_core.data.sample import Batch
from lix_core.distill.config import CIRKDConfig, DistillConfig, DKDConfig, KDConfig, LIXConfig, MGDConfig, PseudoConfig
from lix_core.distill.distiller import Networks, at_cells, away_from_edges, lesson_of, sure_classes
from lix_core.distill.feature import draw_points, recalibrated_feature_loss
from lix_core.distill.logit import weighed_logit_loss
from lix_core.distill.objective import METHODS, build_controller, build_distiller
from lix_core.distill.peers import last_common_stage
from lix_core.errors import TrainingError
from lix_core.models.networks import Output

IMAGES, CLASSES, HEIGHT, WIDTH, X_CHANNELS = 3, 4, 8, 12, 2
STUDENT = {"stage1": 3, "stage2": 4, "stage3": 5, "stage4": 6, "stage5": 7, "decoder": 3}
TEACHER = {"stage1": 4, "stage2": 4, "stage3": 6, "stage4": 6, "stage5": 8, "decoder": 5}
TEACHING = [name for name in METHODS if name != "none"]
FULL_LIX = LIXConfig(x=0.5, controller="learned")


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def output_of(seed: int, channels: dict[str, int], classes: int = CLASSES, grad: bool = False) -> Output:
    """What a network with a stride of 2 might say, its encoder's stages from 4 x 6 cells down to 2 x 3."""
    sizes = {name: (2, 3) if name in ("stage4", "stage5") else (4, 6) for name in channels}
    features = {name: noise(seed + i, IMAGES, width, *sizes[name]).requires_grad_(grad) for i, (name, width) in enumerate(channels.items())}
    return Output((3 * noise(seed + 99, IMAGES, classes, 4, 6)).requires_grad_(grad), features)


def leaves(output: Output) -> list[torch.Tensor]:
    return [output.logits, *output.features.values()]


def batch_of(classes: int = CLASSES, labelled: tuple[bool, ...] = (True, True, False), ignored: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, classes, (IMAGES, HEIGHT, WIDTH), generator=generator)
    labels[:, :3, :4] = 255
    labels[~torch.tensor(labelled)] = 255
    known = torch.rand(IMAGES, HEIGHT, WIDTH, generator=generator) < 0.7
    known[1] = False
    return Batch(
        image=torch.zeros(IMAGES, 3, HEIGHT, WIDTH, dtype=torch.uint8),
        labels=torch.full_like(labels, 255) if ignored else labels,
        x=noise(6, IMAGES, X_CHANNELS, HEIGHT, WIDTH) * known[:, None],
        known=known,
        labelled=torch.tensor(labelled),
        shown=torch.ones(IMAGES, HEIGHT, WIDTH, dtype=torch.bool),
        names=list("abc"),
    )


def distiller_of(method: str, lix: LIXConfig = FULL_LIX, classes: int = CLASSES, student: dict[str, int] = STUDENT, **options):
    torch.manual_seed(0)
    return build_distiller(DistillConfig(method, lix=lix, **options), student, TEACHER, classes, X_CHANNELS)


def log_softmax(values: list[float]) -> list[float]:
    highest = max(values)
    total = highest + math.log(sum(math.exp(v - highest) for v in values))
    return [v - total for v in values]


def kl(teacher: list[float], student: list[float]) -> float:
    """Of two rows of logits."""
    log_t, log_s = log_softmax(teacher), log_softmax(student)
    return sum(math.exp(a) * (a - b) for a, b in zip(log_t, log_s))


# Each method against its definition.


def test_kd_is_the_mean_divergence_of_pixels_that_count():
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    found = []
    labels = at_cells(batch.labels, (4, 6))
    for b, i, j in torch.cartesian_prod(torch.arange(IMAGES), torch.arange(4), torch.arange(6)).tolist():
        if labels[b, i, j] != 255 or not batch.labelled[b]:
            found.append(16 * kl((teacher.logits[b, :, i, j] / 4).tolist(), (student.logits[b, :, i, j] / 4).tolist()))
    assert 24 < len(found) < 72
    assert distiller_of("kd")(student, teacher, batch)["kd"].item() == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_cwd_is_the_mean_divergence_of_channels_over_their_pixels():
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)
    found = [
        16 * kl((t / 4).tolist(), (s / 4).tolist())
        for t, s in zip(teacher.logits.view(IMAGES * CLASSES, -1), student.logits.view(IMAGES * CLASSES, -1))
    ]
    assert distiller_of("cwd")(student, teacher, batch_of())["cwd"].item() == pytest.approx(3 * sum(found) / len(found), rel=1e-5)


def test_cirkd_compares_the_similarities_of_pixels_across_images():
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)
    rows = []
    seen, known = (torch.nn.functional.normalize(o.features["decoder"].flatten(2), dim=1) for o in (student, teacher))
    for i in range(IMAGES):
        for j in range(IMAGES):
            for n in range(24):
                theirs, ours = ([float(f[i, :, n] @ f[j, :, m]) / 0.1 for m in range(24)] for f in (known, seen))
                rows.append(kl(theirs, ours))
    terms = distiller_of("cirkd")(student, teacher, batch_of())
    assert terms["cirkd"].item() == pytest.approx(sum(rows) / len(rows), rel=1e-4)
    plain = DistillConfig("kd")
    plain.kd.tau = 1.0
    kd = build_distiller(plain, STUDENT, TEACHER, CLASSES, 0)(student, teacher, batch_of())["kd"]
    torch.testing.assert_close(terms["kd"], kd)


def test_cirkd_pools_what_is_more_than_its_tokens_and_weighs_the_kd_beside_it():
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    pooled = [
        output._replace(features={"decoder": torch.nn.functional.adaptive_avg_pool2d(output.features["decoder"], (2, 3))})
        for output in (student, teacher)
    ]
    few = distiller_of("cirkd", cirkd=CIRKDConfig(tokens=6, kd_weight=0))
    torch.testing.assert_close(few(student, teacher, batch), distiller_of("cirkd", cirkd=CIRKDConfig(kd_weight=0))(*pooled, batch))
    # The coarser of two grids has the tokens.
    coarse, every = pooled[1]._replace(logits=teacher.logits), distiller_of("cirkd", cirkd=CIRKDConfig(kd_weight=0))
    torch.testing.assert_close(every(student, coarse, batch), every(pooled[0], coarse, batch))
    weights = torch.tensor([1.0, 5.0, 0.5, 2.0])
    terms = [
        build_distiller(DistillConfig(method, class_weights=True, cirkd=cirkd, kd=kd), STUDENT, TEACHER, CLASSES, 0, weights)(
            student, teacher, batch
        )
        for method, cirkd, kd in (("cirkd", CIRKDConfig(kd_weight=2.5, kd_tau=3.0), KDConfig()), ("kd", CIRKDConfig(), KDConfig(tau=3.0)))
    ]
    torch.testing.assert_close(terms[0]["kd"], 2.5 * terms[1]["kd"])


def test_mgd_sums_squared_errors_of_what_is_generated():
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)
    distiller = distiller_of("mgd", mgd=MGDConfig(weight=0.5, ratio=0.0, feature="stage4"))
    # Equal widths: nothing is aligned.
    assert isinstance(distiller.align, torch.nn.Identity)
    generated = distiller.generate(student.features["stage4"])
    total = sum((a - b) ** 2 for a, b in zip(generated.flatten().tolist(), teacher.features["stage4"].flatten().tolist()))
    assert distiller(student, teacher, batch_of())["mgd"].item() == pytest.approx(0.5 * total / IMAGES, rel=1e-5)


def test_mgd_masks_the_share_of_pixels_it_is_told_and_all_channels_of_each():
    distiller = distiller_of("mgd", mgd=MGDConfig(weight=1.0, ratio=0.75, feature="decoder"))
    assert distiller.align.weight.shape == (5, 3, 1, 1) and distiller.generate[0].kernel_size == (3, 3)
    distiller.align, distiller.generate = torch.nn.Identity(), torch.nn.Identity()
    logits = torch.zeros(1, CLASSES, 4, 6)
    student, teacher = (Output(logits, {"decoder": torch.full((1, 5, 64, 64), value)}) for value in (1.0, 0.0))
    kept = distiller(student, teacher, batch_of())["mgd"].item()
    assert kept % 5 == 0 and kept / (5 * 64 * 64) == pytest.approx(0.25, abs=0.03)


def test_mgd_takes_the_last_stage_both_have_and_brings_grids_together():
    student = {name: width for name, width in STUDENT.items() if name != "stage5"}
    assert distiller_of("mgd", student=student).feature == "stage4" and distiller_of("mgd").feature == "stage5"
    many = {f"stage{number}": 2 for number in range(1, 12)}
    assert last_common_stage(Networks(many, many, CLASSES, 0)) == "stage11"
    distiller = distiller_of("mgd", mgd=MGDConfig(ratio=0.0, feature="stage4"))
    distiller.generate = torch.nn.Identity()
    logits = torch.zeros(1, CLASSES, 4, 6)
    ours, theirs = (Output(logits, {"stage4": torch.full((1, 6, *size), 2.0)}) for size in ((2, 3), (5, 7)))
    assert distiller(ours, theirs, batch_of())["mgd"].item() == pytest.approx(0)


def test_mgd_interpolates_between_the_middles_of_cells():
    distiller = distiller_of("mgd", mgd=MGDConfig(weight=1.0, ratio=0.0, feature="stage4"))
    distiller.generate = torch.nn.Identity()
    logits = torch.zeros(1, CLASSES, 4, 6)
    ours = Output(logits, {"stage4": torch.tensor([0.0, 4.0]).expand(1, 6, 1, 2)})
    theirs = Output(logits, {"stage4": torch.tensor([0.0, 1.0, 3.0, 4.0]).expand(1, 6, 1, 4)})
    assert distiller(ours, theirs, batch_of())["mgd"].item() == pytest.approx(0)


def test_pseudo_labels_are_the_teachers_classes_where_it_is_sure_and_nobody_labelled():
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)
    found = []
    for b, i, j in torch.cartesian_prod(torch.tensor([1, 2]), torch.arange(4), torch.arange(6)).tolist():
        probabilities = [math.exp(v) for v in log_softmax(teacher.logits[b, :, i, j].tolist())]
        if max(probabilities) >= 0.8:
            found.append(-log_softmax(student.logits[b, :, i, j].tolist())[probabilities.index(max(probabilities))])
    assert 5 < len(found) < 43
    distiller = distiller_of("pseudo", pseudo=PseudoConfig(2.0, threshold=0.8))
    terms = distiller(student, teacher, batch_of(labelled=(True, False, False)))
    assert terms["pseudo"].item() == pytest.approx(2 * sum(found) / len(found), rel=1e-5)
    assert distiller(student, teacher, batch_of(labelled=(True, True, True)))["pseudo"] == 0


@pytest.mark.parametrize("labelled", [(True, False, False), (True, True, True)])
def test_lix_adds_its_terms_to_those_of_pseudo_labels(labelled):
    """L_P is `pseudo` itself, with the class weights of all terms, and changes no other term."""
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of(labelled=labelled)
    config = DistillConfig("pseudo", True, pseudo=PseudoConfig(1.5, 0.8), lix=LIXConfig(x=1.0, pseudo=1.5, threshold=0.8))

    def terms(config: DistillConfig) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return build_distiller(config, STUDENT, TEACHER, CLASSES, X_CHANNELS, torch.tensor([3.0, 1, 2, 1]))(student, teacher, batch)

    lix = dataclasses.replace(config, method="lix")
    without = terms(dataclasses.replace(lix, lix=dataclasses.replace(lix.lix, pseudo=0.0)))
    found, pseudo = terms(lix), terms(config)
    assert set(without) == {"logit", "feature", "x"} and set(found) == {*without, "pseudo"}
    torch.testing.assert_close(found, without | pseudo, rtol=0, atol=0)
    assert (pseudo["pseudo"] > 0) == (not all(labelled))


def test_dkd_is_lix_with_fixed_weights_and_no_features():
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    dkd = distiller_of("dkd", dkd=DKDConfig(weight=0.7, tau=2.0, alpha=1.5, beta=3.0, warmup=0))(student, teacher, batch)["dkd"]
    lix = distiller_of("lix", LIXConfig(logit=0.7, feature=0, controller="fixed", alpha=1.5, beta=3.0, tau=2.0))
    torch.testing.assert_close(dkd, lix(student, teacher, batch)["logit"])


def test_lix_is_the_weighted_sum_of_its_parts():
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    config = LIXConfig(logit=2.0, feature=3.0, features=["stage2", "decoder"], kernel="none", cka="rbf", unbiased=True, tokens=12, tau=3.0)
    terms = distiller_of("lix", config)(student, teacher, batch)
    assert set(terms) == {"logit", "feature"}
    lesson = lesson_of(student, teacher, batch)
    torch.testing.assert_close(terms["logit"], 2 * weighed_logit_loss(*lesson, build_controller(config))["logit"])
    pairs = [(student.features[name], teacher.features[name]) for name in config.features]
    expected = sum(recalibrated_feature_loss(s, t, 12, "none", "rbf", True) for s, t in pairs)
    torch.testing.assert_close(terms["feature"], 3 * expected / 2)


def test_the_regulariser_of_a_controller_has_the_weight_of_its_term():
    student, teacher, batch, found = output_of(1, STUDENT), output_of(2, TEACHER), batch_of(), []
    for weight in (1.0, 2.5):
        distiller = distiller_of("lix", LIXConfig(logit=weight, feature=0, controller="learned"))
        distiller.controller.net[-1].bias.data[:] = torch.tensor([0.3, 0.1])
        found.append(distiller(student, teacher, batch))
    assert set(found[0]) == {"logit", "controller"} and found[0]["controller"] < -0.01
    torch.testing.assert_close(found[1], {name: 2.5 * term for name, term in found[0].items()})


def test_what_all_logits_of_a_pixel_share_is_no_feature():
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    distiller = distiller_of("lix", LIXConfig(logit=0, features=["logits"]))
    raised = [output._replace(logits=output.logits + 10 * noise(seed, IMAGES, 1, 4, 6)) for seed, output in ((7, student), (8, teacher))]
    torch.testing.assert_close(distiller(*raised, batch), distiller(student, teacher, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sampling", ["points", "balanced"])
def test_features_may_be_compared_at_points_of_the_classes_that_are_taught(sampling):
    student, teacher, batch = output_of(1, STUDENT), output_of(20, TEACHER), batch_of()
    config = LIXConfig(logit=0, features=["stage2", "decoder"], tokens=7, sampling=sampling)
    distiller = distiller_of("lix", config)
    torch.manual_seed(4)
    terms = distiller(student, teacher, batch)
    torch.manual_seed(4)
    points = draw_points(lesson_of(student, teacher, batch).classes, 7, sampling == "balanced")
    losses = [recalibrated_feature_loss(student.features[name], teacher.features[name], points=points) for name in config.features]
    torch.testing.assert_close(terms["feature"], sum(losses) / 2)
    # Edges and the gate are of terms over logits: here their cells count.
    less = distiller_of("lix", dataclasses.replace(config, gate=1.0), edge=1)
    torch.manual_seed(4)
    torch.testing.assert_close(less(student, teacher, batch)["feature"], terms["feature"])


@pytest.mark.parametrize("off", ["logit", "feature", "x"])
def test_a_term_of_lix_with_weight_zero_is_left_out(off):
    config = LIXConfig(**({"logit": 1, "feature": 1, "x": 1} | {off: 0}))
    assert set(distiller_of("lix", config)(output_of(1, STUDENT), output_of(2, TEACHER), batch_of())) == {"logit", "feature", "x"} - {off}


def test_x_is_predicted_by_a_linear_map_where_it_is_known():
    distiller = distiller_of("lix", LIXConfig(logit=0, feature=0, x=2.0, x_feature="stage1"))
    distiller.x_head = torch.nn.Conv2d(3, X_CHANNELS, 1)
    distiller.x_head.weight.data[:] = torch.tensor([[1.0, 0, 0], [0, 2, 0]]).view(2, 3, 1, 1)
    distiller.x_head.bias.data[:] = torch.tensor([0.5, 0])
    student, batch = output_of(1, STUDENT), batch_of()
    errors = []
    for b in range(IMAGES):
        for i in range(4):
            for j in range(6):
                # Cells of 2 x 2 pixels: the lower right one is at their centre.
                if batch.known[b, 2 * i + 1, 2 * j + 1]:
                    feature, truth = student.features["stage1"][b, :, i, j].tolist(), batch.x[b, :, 2 * i + 1, 2 * j + 1].tolist()
                    for error in (feature[0] + 0.5 - truth[0], 2 * feature[1] - truth[1]):
                        errors.append(0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5)
    assert 30 < len(errors) < 96
    term = distiller(student, output_of(2, TEACHER), batch)["x"]
    assert term.item() == pytest.approx(2 * sum(errors) / len(errors), rel=1e-5)
    batch.known[:] = False
    assert distiller(student, output_of(2, TEACHER), batch)["x"] == 0


# What every method has in common.


@pytest.mark.parametrize("method", TEACHING)
@pytest.mark.parametrize("kind", ["as usual", "no labels", "only ignored", "all labelled", "two classes"])
def test_terms_are_finite_scalars_and_teach_the_student_alone(method, kind):
    classes = 2 if kind == "two classes" else CLASSES
    labelled = {"no labels": (False,) * 3, "all labelled": (True,) * 3}.get(kind, (True, True, False))
    batch = batch_of(classes, labelled, kind == "only ignored")
    student, teacher = output_of(1, STUDENT, classes, grad=True), output_of(2, TEACHER, classes, grad=True)
    terms = distiller_of(method, classes=classes)(student, teacher, batch)
    assert terms and all(term.shape == () and term.dtype == torch.float32 and torch.isfinite(term) for term in terms.values())
    sum(terms.values()).backward()
    gradients = [tensor.grad for tensor in leaves(student) if tensor.grad is not None]
    assert gradients and all(torch.isfinite(g).all() for g in gradients)
    if method != "pseudo" or kind == "no labels":
        assert any(g.abs().sum() > 0 for g in gradients)
    assert all(tensor.grad is None for tensor in leaves(teacher))


@pytest.mark.parametrize("method", TEACHING)
def test_terms_of_bfloat16_networks_are_those_of_the_same_numbers_in_float32(method):
    rounded = [
        Output(o.logits.bfloat16(), {k: f.bfloat16() for k, f in o.features.items()})
        for o in (output_of(1, STUDENT), output_of(2, TEACHER))
    ]
    exact = [Output(o.logits.float(), {k: f.float() for k, f in o.features.items()}) for o in rounded]
    distillers = [distiller_of(method) for _ in rounded]
    torch.manual_seed(1)
    expected = distillers[0](*exact, batch_of())
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = distillers[1](*rounded, batch_of())
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("method", sorted(set(TEACHING) - {"mgd", "pseudo"}))
def test_a_student_that_is_its_teacher_has_nothing_to_learn(method):
    student = output_of(1, STUDENT)
    distiller = build_distiller(DistillConfig(method), STUDENT, STUDENT, CLASSES, 0)
    terms = distiller(student, student, batch_of())
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-5)
    assert sum(distiller(student, output_of(2, STUDENT), batch_of()).values()) > 0.1


@pytest.mark.parametrize("method", sorted(set(TEACHING) - {"lix"}))
def test_a_weight_multiplies_its_term(method):
    student, teacher, found = output_of(1, STUDENT), output_of(2, TEACHER), []
    for weight in (1.0, 2.5):
        config = DistillConfig(method)
        getattr(config, method).weight = weight
        torch.manual_seed(0)
        distiller = build_distiller(config, STUDENT, TEACHER, CLASSES, 0)
        found.append(distiller(student, teacher, batch_of())[method])
    torch.testing.assert_close(found[1], 2.5 * found[0])


@pytest.mark.parametrize("method", TEACHING)
def test_a_teacher_with_other_strides_teaches_too(method):
    teacher = output_of(2, TEACHER)
    coarser = Output(teacher.logits[..., ::2, ::2], {name: f[..., :2, :2] for name, f in teacher.features.items()})
    terms = distiller_of(method)(output_of(1, STUDENT), coarser, batch_of())
    assert all(torch.isfinite(term) for term in terms.values())


def test_the_control_has_no_terms_and_nothing_to_train():
    distiller = distiller_of("none")
    assert distiller(output_of(1, STUDENT), output_of(2, TEACHER), batch_of()) == {} and not list(distiller.parameters())


def test_terms_rise_over_the_batches_of_training_and_remember_how_far_they_were():
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    distiller = distiller_of("dkd", dkd=DKDConfig(warmup=4))
    risen = [distiller(student, teacher, batch)["dkd"].item() for _ in range(6)]
    full = risen[-1]
    assert [value / full for value in risen] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    again = distiller_of("dkd", dkd=DKDConfig(warmup=4))
    again(student, teacher, batch)
    resumed = distiller_of("dkd", dkd=DKDConfig(warmup=4))
    resumed.load_state_dict(again.state_dict())
    assert resumed.eval()(student, teacher, batch)["dkd"].item() == pytest.approx(0.25 * full)
    assert resumed.train()(student, teacher, batch)["dkd"].item() == pytest.approx(0.5 * full)


def test_the_terms_of_lix_rise_too():
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    distiller = distiller_of("lix", LIXConfig(x=0.5, warmup=2))
    half, full = distiller(student, teacher, batch), distiller(student, teacher, batch)
    torch.testing.assert_close({name: 2 * term for name, term in half.items()}, full)


def test_the_controllers_maps_are_blank_where_nothing_counts():
    distiller, batch = distiller_of("lix", LIXConfig(gate=0.7)), batch_of()
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)
    maps, counted = distiller.maps(student, teacher, batch), lesson_of(student, teacher, batch, 0.7).classes != 255
    assert all(values.shape == (IMAGES, 4, 6) and values.isnan().equal(~counted) for values in maps)
    loss = (maps.alpha * maps.tcld + maps.beta * maps.ncld)[counted].mean()
    torch.testing.assert_close(loss, distiller(student, teacher, batch)["logit"])


# Class weights.


@pytest.mark.parametrize("method", ["kd", "dkd", "pseudo", "lix"])
def test_class_weights_are_how_often_a_pixel_counts(method):
    """Weights of whole numbers do what as many copies of the pixel would do, and equal ones nothing."""
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    options = {"kd": {}, "dkd": {"dkd": DKDConfig(warmup=0)}, "pseudo": {"pseudo": PseudoConfig(threshold=0.0)}, "lix": {}}[method]
    config = DistillConfig(method, class_weights=True, lix=LIXConfig(feature=0, controller="entropy"), **options)

    def loss(*weights: float, config: DistillConfig = config) -> float:
        distiller = build_distiller(config, STUDENT, TEACHER, CLASSES, 0, torch.tensor(weights))
        return sum(distiller(student, teacher, batch).values()).item()

    plain = loss(1.0, 2.0, 3.0, 4.0, config=dataclasses.replace(config, class_weights=False))
    assert loss(3.0, 3.0, 3.0, 3.0) == pytest.approx(plain, rel=1e-5)
    target = lesson_of(student, teacher, batch).classes
    if method == "pseudo":
        target = target.masked_fill(batch.labelled[:, None, None], 255)
    first, others = loss(1.0, 0.0, 0.0, 0.0), loss(0.0, 1.0, 1.0, 1.0)
    n, m = int((target == 0).sum()), int(((target != 0) & (target != 255)).sum())
    assert n and m and abs(first - others) > 1e-2  # or weights that are not looked at would do as well
    assert plain == pytest.approx((n * first + m * others) / (n + m), rel=1e-5)
    assert loss(3.0, 1.0, 1.0, 1.0) == pytest.approx((3 * n * first + m * others) / (3 * n + m), rel=1e-5)


def test_without_a_class_that_weighs_something_the_terms_are_zero():
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)
    config = DistillConfig("kd", class_weights=True)
    (term,) = build_distiller(config, STUDENT, TEACHER, CLASSES, 0, torch.zeros(CLASSES))(student, teacher, batch_of()).values()
    assert term.item() == 0


# Edges.


@pytest.mark.parametrize("radius", [1, 2])
def test_cells_are_left_out_where_another_class_is_near(radius):
    classes = torch.randint(0, 9, (2, 7, 11), generator=torch.Generator().manual_seed(3)).clamp(max=1)
    classes[0, :4] = 1
    classes[1, 2:, 3:] = 255
    found = away_from_edges(classes, radius)
    for b, y, x in itertools.product(range(2), range(7), range(11)):
        near = classes[b, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        others = set(near.flatten().tolist()) - {255, classes[b, y, x].item()}
        assert found[b, y, x] == (255 if others else classes[b, y, x])
    assert (found[0] != 255).any() and ((found == 255) & (classes != 255)).any()


@pytest.mark.parametrize("method", ["kd", "dkd", "cirkd", "pseudo", "lix"])
def test_without_edges_the_terms_are_those_of_the_other_cells(method):
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    config = DistillConfig(method, lix=LIXConfig(feature=0), pseudo=PseudoConfig(threshold=0.0))
    # In halves of one class each, so that columns 2 and 3 of 6 cells are at an edge; the teacher is sure of the same.
    halves = torch.arange(WIDTH).expand(IMAGES, HEIGHT, WIDTH) // (WIDTH // 2)
    labels = torch.where(batch.labelled[:, None, None], halves, 255)
    teacher = teacher._replace(logits=teacher.logits + 50 * torch.nn.functional.one_hot(at_cells(halves, (4, 6)), CLASSES).movedim(3, 1))
    batch = dataclasses.replace(batch, labels=labels)

    def terms(edge: int, columns: list[int]) -> dict[str, torch.Tensor]:
        distiller = build_distiller(dataclasses.replace(config, edge=edge), STUDENT, TEACHER, CLASSES, 0)
        some = [output._replace(logits=output.logits[..., columns]) for output in (student, teacher)]
        pixels = [x for column in columns for x in (2 * column, 2 * column + 1)]
        torch.manual_seed(0)
        return distiller(*some, dataclasses.replace(batch, labels=labels[..., pixels]))

    without, others = terms(1, list(range(6))), terms(0, [0, 1, 4, 5])
    assert set(without) == set(others)
    for name in without:
        torch.testing.assert_close(without[name], others[name], msg=name)


# The target.


def test_the_pixel_at_the_centre_stands_for_its_cell():
    pixels = torch.arange(6 * 12).view(6, 12)
    assert at_cells(pixels, (6, 12)).equal(pixels)
    assert at_cells(pixels, (3, 6)).equal(pixels[1::2, 1::2])
    assert at_cells(pixels, (2, 4)).equal(pixels[1::3, 1::3])
    assert at_cells(pixels, (1, 1)).item() == 3 * 12 + 6
    assert at_cells(pixels[None, None], (3, 6)).shape == (1, 1, 3, 6)


def test_without_labels_the_target_is_what_the_teacher_is_sure_of():
    logits = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]).log().T.reshape(1, 3, 1, 3)
    assert sure_classes(logits, 0.0).tolist() == [[[0, 1, 2]]]
    assert sure_classes(logits, 0.55).tolist() == [[[0, 1, 255]]]
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of()
    lesson = lesson_of(student, teacher, batch, gate=0.7)
    assert lesson.classes[:2].equal(at_cells(batch.labels, (4, 6))[:2])
    assert lesson.classes[2].equal(sure_classes(teacher.logits, 0.7)[2])
    assert 0 < (lesson.classes[2] == 255).sum() < 24


@pytest.mark.parametrize("method", ["kd", "dkd", "cirkd", "pseudo", "lix"])
def test_what_a_view_without_labels_does_not_show_does_not_count(method):
    student, teacher, batch = output_of(1, STUDENT), output_of(2, TEACHER), batch_of(labelled=(True, False, False))
    batch.shown[1, :, : WIDTH // 2] = False  # columns 0 to 2 of 6 cells
    distiller = distiller_of(method, pseudo=PseudoConfig(threshold=0.0)).eval()
    distiller.batches.fill_(1000)  # past the warm-up
    lesson = lesson_of(student, teacher, batch)
    assert (lesson.classes[1, :, :3] == 255).all() and (lesson.classes[1, :, 3:] != 255).all() and (lesson.classes[2] != 255).all()

    def terms(noise: float, row: int) -> dict[str, torch.Tensor]:
        changed = teacher.logits.clone()
        changed[row, 0, :, :3] += noise
        torch.manual_seed(0)
        return distiller(student, teacher._replace(logits=changed), batch)

    plain, padded, shown = terms(0, 1), terms(5, 1), terms(5, 2)
    for name in {"kd", "dkd", "logit", "pseudo"} & set(plain):  # the others are of features
        assert padded[name].equal(plain[name]) and not shown[name].equal(plain[name])


def test_a_teacher_just_as_sure_as_it_must_be_is_sure():
    assert sure_classes(torch.zeros(1, 2, 1, 1), 0.5).item() == 0 and sure_classes(torch.zeros(1, 2, 1, 1), 0.51).item() == 255
    assert sure_classes(torch.tensor([200.0, 0.0]).view(1, 2, 1, 1), 1.0).item() == 0


def test_a_teachers_logits_are_brought_to_the_students_grid():
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)
    constant = torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1)
    for size in ((2, 3), (8, 12), (4, 6)):
        lesson = lesson_of(student, teacher._replace(logits=constant.expand(IMAGES, 4, *size)), batch_of())
        torch.testing.assert_close(lesson.teacher, constant.expand(IMAGES, 4, 4, 6))


@pytest.mark.parametrize("factor", [0.5, 2, 4])
def test_a_teachers_logits_lie_where_the_students_cells_do(factor):
    rows, columns = int(4 * factor), int(6 * factor)
    line = (torch.arange(columns) + 0.5) / factor - 0.5
    ramp = line.expand(IMAGES, CLASSES, rows, columns)
    student, teacher = output_of(1, STUDENT), output_of(2, TEACHER)._replace(logits=ramp)
    found = lesson_of(student, teacher, batch_of()).teacher[..., 1:-1]
    torch.testing.assert_close(found, torch.arange(1.0, 5.0).expand(IMAGES, CLASSES, 4, 4), rtol=1e-5, atol=1e-5)


def test_no_pixel_of_a_much_finer_teacher_is_skipped():
    stripes = (torch.arange(24) % 4 % 3 == 0).float().expand(IMAGES, CLASSES, 16, 24)
    lesson = lesson_of(output_of(1, STUDENT), output_of(2, TEACHER)._replace(logits=stripes), batch_of())
    torch.testing.assert_close(lesson.teacher[..., 1:-1], torch.full((IMAGES, CLASSES, 4, 4), 0.5), rtol=0, atol=0.02)


def test_networks_of_different_classes_are_refused():
    with pytest.raises(TrainingError, match="the student has 4 classes, the teacher 5; both need the same label set"):
        distiller_of("kd")(output_of(1, STUDENT), output_of(2, TEACHER, 5), batch_of())


# The configuration.


def wrong(chosen: str, /, **fields) -> DistillConfig:
    """A configuration that was right when it was made, and then was changed: `lix__tau=0` sets lix.tau."""
    config = DistillConfig(chosen)
    for path, value in fields.items():
        *parents, name = path.split("__")
        owner = config
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, value)
    return config


@pytest.mark.parametrize(
    "config, message",
    [
        (wrong("lix", method="lxi"), r"method must be one of .*; got 'lxi' \(did you mean lix\?\)"),
        (wrong("lix", lix__controller="dynamc"), r"controller must be one of .*; got 'dynamc' \(did you mean dynamic\?\)"),
        (wrong("lix", lix__kernel="gauss"), r"kernel must be one of laplace, none; got 'gauss'"),
        (wrong("lix", lix__cka="rfb"), r"cka must be one of linear, rbf; got 'rfb' \(did you mean rbf\?\)"),
        (wrong("lix", lix__tau=0.0), r"tau must be at least 0.01, got 0.0"),
        (wrong("lix", lix__tau=math.nan), r"tau must be at least 0.01, got nan"),
        (wrong("lix", lix__gate=1.1), r"gate must be 0 to 1, got 1.1"),
        (wrong("lix", lix__features=["stage3", "decodr"]), r"lix.features: the student has no feature 'decodr' \(did you mean decoder\?\)"),
        (wrong("lix", lix__features=["extra"]), r"lix.features: the teacher has no feature 'extra'; it has stage1, "),
        (wrong("lix", lix__features=[]), r"lix.features is empty: name features, or set distill.lix.feature=0"),
        (wrong("lix", lix__x=1.0, lix__x_feature="stag1"), r"lix.x_feature: the student has no feature 'stag1' \(did you mean stage1\?\)"),
        (wrong("cirkd", cirkd__feature="Decoder"), r"cirkd.feature: the student has no feature 'Decoder' \(did you mean decoder\?\)"),
        (wrong("mgd", mgd__feature="stage9"), r"mgd.feature: the student has no feature 'stage9' \(did you mean stage"),
    ],
)
def test_what_cannot_be_is_refused_with_the_nearest_that_can(config, message):
    with pytest.raises(TrainingError, match=message):
        build_distiller(config, {**STUDENT, "extra": 2}, TEACHER, CLASSES, X_CHANNELS)


def test_x_that_the_data_do_not_have_cannot_be_learned():
    with pytest.raises(TrainingError, match=r"distill.lix.x needs X in the data: set data.x, or distill.lix.x=0"):
        build_distiller(DistillConfig("lix", lix=LIXConfig(x=1.0)), STUDENT, TEACHER, CLASSES, 0)


def test_x_of_other_channels_than_were_set_up_is_refused():
    batch = batch_of()
    batch.x = batch.x[:, :1]
    with pytest.raises(TrainingError, match="X has 1 channels, distill.lix.x was set up for 2"):
        distiller_of("lix")(output_of(1, STUDENT), output_of(2, TEACHER), batch)


def test_one_class_cannot_be_distilled():
    with pytest.raises(TrainingError, match="at least two classes, got 1"):
        build_distiller(DistillConfig("kd"), STUDENT, TEACHER, 1, 0)


def test_networks_without_a_common_stage_have_nothing_to_generate():
    with pytest.raises(TrainingError, match="no stage in common"):
        build_distiller(DistillConfig("mgd"), {"stage1": 3}, {"decoder": 3}, CLASSES, 0)


@pytest.mark.parametrize(
    "config",
    [
        wrong("kd", lix__features=["nowhere"], mgd__feature="nowhere", cirkd__feature="nowhere", lix__x=1.0),
        wrong("lix", lix__feature=0.0, lix__features=["nowhere"]),
        wrong("lix", lix__x=0.0, lix__x_feature="nowhere"),
        wrong("none", lix__features=["nowhere"]),
    ],
)
def test_features_that_are_not_asked_for_need_not_be_there(config):
    build_distiller(config, STUDENT, TEACHER, CLASSES, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_configuration_fits_every_method_and_encoder_of_five_stages(method):
    distiller = build_distiller(DistillConfig(method), STUDENT, TEACHER, CLASSES, 0)
    assert type(distiller) is METHODS[method]
