"""The pages: their links lead somewhere, and what they show runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("results/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    lost = []
    for place, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        if "://" in place:
            continue
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            lost.append(f"{place}#{anchor}" if anchor else place)
    assert not lost, f"{page.name} links to {lost}"


def test_the_example_of_the_page_about_distillation_runs():
    torch = pytest.importorskip("torch")
    pytest.importorskip("timm")
    from lix_core.data.sample import Batch
    from lix_core.models.networks import Student, Teacher

    torch.manual_seed(0)
    student, teacher = Student(11, "mobilenetv3_small_050", weights="none"), Teacher(11, 3, "mobilenetv3_small_050", weights="none").eval()
    known = torch.rand(2, 64, 96) < 0.8
    batch = Batch(
        image=torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8),
        labels=torch.randint(0, 11, (2, 64, 96)),
        x=torch.randn(2, 3, 64, 96) * known[:, None],
        known=known,
        labelled=torch.tensor([True, True]),
        shown=torch.ones(2, 64, 96, dtype=torch.bool),
        names=["a", "b"],
    )
    names = {"torch": torch, "student": student, "teacher": teacher, "batch": batch}
    exec(re.search(r"```python\n(.*?)```", (ROOT / "docs" / "distillation.md").read_text(), re.DOTALL)[1], names)
    assert set(names["terms"]) == {"logit", "feature"} and all(torch.isfinite(term) for term in names["terms"].values())
    assert names["alpha"].shape == names["ncld"].shape == (2, 32, 48)


def test_the_method_of_the_page_on_distillation_takes_networks_of_other_strides() -> None:
    """And counts what every term over logits counts: not the upper half, which is unlabelled."""
    torch = pytest.importorskip("torch")
    from lix_core.data.sample import Batch
    from lix_core.distill import config as config_module
    from lix_core.distill import distiller as distiller_module
    from lix_core.distill.distiller import Networks
    from lix_core.models.networks import Output

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "distillation.md").read_text(), re.DOTALL)
    names = {**vars(config_module), **vars(distiller_module)}
    for block in blocks:
        if "MSE" in block:
            exec(block, names)
    labels = torch.full((1, 16, 16), 255)
    labels[:, 8:] = 1
    known, labelled = torch.ones(1, 16, 16, dtype=torch.bool), torch.tensor([True])
    batch = Batch(torch.zeros(1, 3, 16, 16, dtype=torch.uint8), labels, torch.zeros(1, 1, 16, 16), known, labelled, known, ["a"])
    logits = torch.zeros(1, 3, 8, 8)
    logits[:, :, :4] = 7.0
    logits[:, 1, 4:] = 3.0
    terms = names["MSE"](names["MSEConfig"](), Networks({}, {}, 3, 1)).terms(Output(logits, {}), Output(torch.zeros(1, 3, 4, 4), {}), batch)
    assert terms["mse"].item() == pytest.approx(9 / 3)
