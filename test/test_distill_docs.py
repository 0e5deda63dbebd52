"""The page about distillation tells every switch as it is, and its example runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from lix_core.distill.config import DistillConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "distillation.md"


def switches(config: object, path: str = "") -> list[str]:
    """A row of the page's table for each option of the tree."""
    rows = []
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            rows += switches(value, f"{key}.")
        else:
            default = yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
            rows.append(f"| `{key}` | `{default}` | {field.metadata['meaning']} |")
    return rows


def test_the_page_has_every_switch_with_its_default_and_meaning():
    found = [line for line in PAGE.read_text().split("## Every switch")[1].splitlines() if line.startswith("| `")]
    assert found == switches(DistillConfig())


def test_the_example_of_the_page_runs():
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
        names=["a", "b"],
    )
    names = {"torch": torch, "student": student, "teacher": teacher, "batch": batch}
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], names)
    assert set(names["terms"]) == {"logit", "feature"} and all(torch.isfinite(term) for term in names["terms"].values())
    assert names["alpha"].shape == names["ncld"].shape == (2, 32, 48)
