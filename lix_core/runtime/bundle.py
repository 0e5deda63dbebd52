"""The model bundle: one `.lix` file with all that a robot needs to run a model, and no code.

A bundle is an uncompressed zip archive of three members:

- `manifest.json`: the fields of `Manifest`;
- `model.onnx`: the graph. Input: one image, as `InputSpec` says; of a model that sees X too, also `x` and `known`, as
  `XSpec` says. Outputs: `logits` (1, C, h, w), and, where the graph computes them, `mask` (1, H, W) uint8 of ids and
  `confidence` (1, h, w) float32 0..1, at the size of the input H x W or a fraction of it;
- `CARD.md`: the model card, for people.

The manifest carries the SHA-256 of the other two; loading checks it and executes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from lix_core.errors import BundleError, LabelError
from lix_core.files import expanded
from lix_core.labels import LabelSet

FORMAT, FORMAT_WITH_X = 1, 2
"""A model of RGB alone is written as format 1 as ever; with X it is format 2, which a lix from before there was X refuses by its number."""
SUFFIX = ".lix"
DEFAULT_MODEL = "street"
GRAPH, CARD, MANIFEST = "model.onnx", "CARD.md", "manifest.json"
SHIPPED = Path(__file__).resolve().parents[1] / "bundles"
PATH_VARIABLE = "LIX_MODEL_PATH"
MAX_PIXELS = 1 << 26
"""No network is given more; a bundle that asks for it is damaged or hostile."""
MAX_X_CHANNELS = 64


@dataclass(frozen=True)
class InputSpec:
    """What the graph's input holds.

    layout: `NHWC` or `NCHW`, batch of one, RGB.
    dtype: `uint8` (pixels as they are) or `float32` (normalised by the runtime, (x - mean) / std).
    mean, std: per channel, RGB, on the 0..255 scale; with `uint8` the graph itself applies them.
    """

    layout: str = "NHWC"
    dtype: str = "uint8"
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.layout not in ("NHWC", "NCHW") or self.dtype not in ("uint8", "float32"):
            raise BundleError(f"input must be NHWC or NCHW of uint8 or float32, got {self.layout} of {self.dtype}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(math.isfinite(v) for v in self.mean + self.std) or min(self.std) <= 0:
            raise BundleError(f"mean and std need three finite numbers each, std above 0; got {self.mean} and {self.std}")


@dataclass(frozen=True)
class XSpec:
    """The geometry that the graph takes beside the image: `x` (1, channels, H, W) float32 and `known` (1, H, W) bool.

    kind: the encoding of x, one of `lix_core.geometry.encodings.ENCODINGS`, or the name of one of your own. x is 0 and
        known False where nothing is known, which may be everywhere.
    """

    kind: str
    channels: int

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not self.kind or type(self.channels) is not int or not 1 <= self.channels <= MAX_X_CHANNELS:
            raise BundleError(f"X needs a kind and 1 to {MAX_X_CHANNELS} channels, got {self.kind!r} and {self.channels!r}")


@dataclass(frozen=True)
class Fit:
    """How one image lies on the network's canvas [pixels]: its content at the top left, padding right and below."""

    canvas: tuple[int, int]
    content: tuple[int, int]


@dataclass(frozen=True)
class SizePolicy:
    """How an image of any size is fitted to the network.

    policy: `letterbox` keeps the aspect and pads to the right and below; `stretch` fills the canvas.
    height, width: the canvas where the graph has a fixed size; 0 = any multiple of `multiple_of`.
    max_pixels: largest image content; larger images are scaled down (never up). Unused with a fixed canvas.
    """

    policy: str = "letterbox"
    height: int = 0
    width: int = 0
    multiple_of: int = 32
    max_pixels: int = 220_000

    def __post_init__(self) -> None:
        if self.policy not in ("letterbox", "stretch"):
            raise BundleError(f"size policy must be letterbox or stretch, got {self.policy!r}")
        numbers = (self.height, self.width, self.multiple_of, self.max_pixels)
        if any(type(v) is not int for v in numbers) or max(numbers) > MAX_PIXELS or self.height * self.width > MAX_PIXELS:
            raise BundleError(
                f"sizes must be whole numbers up to {MAX_PIXELS} pixels, got height, width, multiple_of, max_pixels = {numbers}"
            )
        if min(self.height, self.width) < 0 or (self.height == 0) != (self.width == 0):
            raise BundleError(f"canvas must have both sides or none (0, 0), got {self.height}x{self.width}")
        if self.multiple_of < 1 or self.max_pixels < self.multiple_of**2:
            raise BundleError(f"needs multiple_of >= 1 and max_pixels >= its square, got {self.multiple_of} and {self.max_pixels}")

    def fit(self, height: int, width: int) -> Fit:
        """Fit an image of `height` x `width` pixels."""
        if self.height:
            canvas = (self.height, self.width)
            if self.policy == "stretch":
                return Fit(canvas, canvas)
            scale = min(self.height / height, self.width / width)
            return Fit(canvas, (min(self.height, max(1, round(height * scale))), min(self.width, max(1, round(width * scale)))))
        scale = min(1.0, math.sqrt(self.max_pixels / (height * width)))
        # Rounded down, so that the bound holds; 1e-9 forgives the root's last digit. A strip cannot keep its aspect below 1 pixel.
        rows = min(max(1, math.floor(height * scale + 1e-9)), self.max_pixels)
        columns = min(max(1, math.floor(width * scale + 1e-9)), self.max_pixels // rows)
        content, m = (rows, columns), self.multiple_of
        canvas = (math.ceil(content[0] / m) * m, math.ceil(content[1] / m) * m)
        return Fit(canvas, canvas if self.policy == "stretch" else content)


@dataclass(frozen=True)
class Manifest:
    """All that a bundle says of its graph.

    outputs: names of the graph's outputs, of `logits`, `mask`, `confidence`.
    licence: of the weights. data: `{"name", "licence", "source"}` of each training set.
    training: the record of the run. metrics: measured figures, each with what it was measured on.
    x: the geometry that the graph takes too; None: it sees RGB alone.
    """

    name: str
    labels: LabelSet
    description: str = ""
    input: InputSpec = InputSpec()
    size: SizePolicy = SizePolicy()
    outputs: tuple[str, ...] = ("logits",)
    licence: str = "unknown"
    data: tuple[dict[str, str], ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    x: XSpec | None = None

    def __post_init__(self) -> None:
        texts = {"name": self.name, "description": self.description, "licence": self.licence}
        wrong = [n for n, v in texts.items() if not isinstance(v, str)]
        wrong += [n for n in ("training", "metrics") if not isinstance(getattr(self, n), dict)]
        wrong += [] if all(isinstance(d, dict) for d in self.data) else ["data"]
        if wrong:
            raise BundleError(f"manifest has values of the wrong type in {', '.join(wrong)}")
        object.__setattr__(self, "outputs", tuple(self.outputs))
        object.__setattr__(self, "data", tuple(self.data))
        if "logits" not in self.outputs or not set(self.outputs) <= {"logits", "mask", "confidence"}:
            raise BundleError(f"outputs must be logits and maybe mask and confidence, got {', '.join(self.outputs)}")

    @property
    def needs_x(self) -> str:
        """Why images alone will not do: the network was never without X in training, as its record says. Empty: they do.

        Older records do not say it; of them it holds where `data.x_dropout` is 0.
        """
        config = self.training.get("config")
        data = config.get("data") if isinstance(config, dict) else None
        dropout = data.get("x_dropout") if isinstance(data, dict) else None
        if self.x is None or not self.training.get("needs_x", dropout == 0):
            return ""
        return f"{self.name} is a teacher that never was without {self.x.kind}: what it says of images alone means nothing"

    def to_dict(self) -> dict[str, Any]:
        plain = dataclasses.asdict(dataclasses.replace(self, labels=None))
        if self.x is None:
            del plain["x"]
        return {"format": FORMAT if self.x is None else FORMAT_WITH_X, **plain, "labels": self.labels.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Manifest":
        """Raises BundleError where a field is missing, unknown or impossible."""
        found = data.get("format") if isinstance(data, dict) else None
        if found not in (FORMAT, FORMAT_WITH_X):
            raise BundleError(f"bundle format is {found!r}; this version of lix reads formats {FORMAT} and {FORMAT_WITH_X}")
        fields = {k: v for k, v in data.items() if k not in ("format", "sha256")}
        try:
            fields["labels"] = LabelSet.from_dict(fields["labels"])
            fields["input"] = InputSpec(**fields["input"])
            fields["size"] = SizePolicy(**fields["size"])
            if found == FORMAT_WITH_X:
                fields["x"] = XSpec(**fields["x"])
            elif "x" in fields:
                raise BundleError(f"a bundle of format {FORMAT} has no X; that is format {FORMAT_WITH_X}")
            return cls(**fields)
        except (LabelError, BundleError):
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(f"manifest is incomplete or has unknown fields: {error}") from None


@dataclass(frozen=True)
class Bundle:
    """A model in memory: what it says of itself, its serialised ONNX graph, and its card (Markdown)."""

    manifest: Manifest
    graph: bytes
    card: str = ""
    path: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Write the bundle; `path` holds the old file or the whole new one, never a part.

        Raises:
            BundleError: the place cannot be written, or training or metrics hold what JSON cannot.
        """
        path = Path(path)
        members = {GRAPH: self.graph, CARD: self.card.encode()}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
        try:
            manifest = json.dumps({**self.manifest.to_dict(), "sha256": digests}, indent=1)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"training or metrics of bundle {path} hold what JSON cannot ({error}); give them plain numbers, texts, lists and dicts"
            ) from None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            raise BundleError(f"cannot write bundle {path}: {error.strerror}") from None
        try:
            with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w") as archive:
                for name, content in ((MANIFEST, manifest), *members.items()):
                    # A fixed date, so that the same model is the same file.
                    archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except OSError as error:
            Path(temporary).unlink(missing_ok=True)
            raise BundleError(f"cannot write bundle {path}: {error.strerror}") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Read and check a bundle.

        Raises:
            BundleError: no such file, not a bundle, a compressed one, a checksum that does not match, or an impossible manifest.
        """
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                for name in (MANIFEST, GRAPH, CARD):
                    # A small compressed file may unpack to more than there is memory.
                    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
                        raise BundleError(f"{name} in {path} is compressed; a bundle is stored uncompressed, export it again")
                members = {name: archive.read(name) for name in (MANIFEST, GRAPH, CARD)}
            data = json.loads(members[MANIFEST])
        except BundleError:
            raise
        except FileNotFoundError:
            raise BundleError(f"no bundle at {path}") from None
        except Exception as error:  # zipfile lets through whatever its decompressors raise on damaged data
            if isinstance(error, OSError) and error.strerror:
                raise BundleError(f"cannot read bundle {path}: {error.strerror}") from None
            raise BundleError(f"{path} is damaged or not a bundle ({error}); copy or export it again") from None
        digests = data.get("sha256") if isinstance(data, dict) else None
        for name in (GRAPH, CARD):
            actual = hashlib.sha256(members[name]).hexdigest()
            if not isinstance(digests, dict) or digests.get(name) != actual:
                raise BundleError(f"checksum of {name} in {path} does not match its manifest; copy or export it again")
        try:
            return cls(Manifest.from_dict(data), members[GRAPH], members[CARD].decode("utf-8", "replace"), path)
        except (BundleError, LabelError) as error:
            raise BundleError(f"{path}: {error}") from None


def search_path() -> list[Path]:
    """Folders in which a model is looked for by name: $LIX_MODEL_PATH, the user's, the shipped ones."""
    given = [Path(p) for p in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if p]
    data_home = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return [*given, data_home / "lix" / "models", SHIPPED]


def list_bundles() -> Iterator[Path]:
    """Paths of every bundle on the search path; where two share a name, only the one that is found first. A folder that cannot be looked
    into has none.
    """
    seen: set[str] = set()
    for folder in search_path():
        try:
            found = sorted(folder.glob(f"*{SUFFIX}"))
        except PermissionError:
            continue
        for path in found:
            if path.stem not in seen:
                seen.add(path.stem)
                yield path


def find_bundle(model: str | Path) -> Path:
    """The bundle file of a model name or a path.

    Raises:
        BundleError: there is none; says what there is.
    """
    text = str(model)
    path = expanded(text)
    if path.suffix == SUFFIX or os.sep in text:
        if not path.is_file():
            raise BundleError(f"no bundle at {path}")
        return path
    known = {p.stem: p for p in list_bundles()}
    if text not in known:
        raise BundleError(f"no model {text!r}; known are {', '.join(known) or 'none'} (or give the path of a {SUFFIX} file)")
    return known[text]
