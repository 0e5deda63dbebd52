"""`lix models`: which model bundles there are, and what one says of itself."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from lix_core.cli.tables import print_table
from lix_core.errors import BundleError
from lix_core.runtime.bundle import PATH_VARIABLE, Bundle, find_bundle, list_bundles


def models(model: str = typer.Argument("", help="A model's name or path: prints its card.")) -> None:
    """List the models that can be named, or print the card of one."""
    console = Console()
    if model:
        bundle = Bundle.load(find_bundle(model))
        console.print(Markdown(bundle.card or f"# {bundle.manifest.name}\n\n{bundle.manifest.description}\n\n(no card)"))
        console.print(f"\nfile: {bundle.path}", highlight=False, soft_wrap=True, markup=False)
        return
    table = Table("model", "classes", "size [MB]", "mIoU", "licence")
    paths = list(list_bundles())
    for path in paths:
        try:
            manifest = Bundle.load(path).manifest
        except BundleError as error:
            table.add_row(Text(path.stem), "-", "-", "-", Text(f"damaged: {error}"))
            continue
        measured = {name: m.get("miou") for name, m in manifest.metrics.items() if isinstance(m, dict)}
        scores = ", ".join(f"{score:.3f} ({name})" for name, score in measured.items() if isinstance(score, float))
        size = f"{path.stat().st_size / 1e6:.1f}"
        row = (path.stem, str(len(manifest.labels)), size, scores or "-", manifest.licence)
        table.add_row(*map(Text, row))
    print_table(table)
    for path in paths:  # in one piece each, however narrow the terminal
        console.print(Text(f"{path.stem}: {path}"), soft_wrap=True)
    console.print(
        f"Folders of your own: ${PATH_VARIABLE}, ~/.local/share/lix/models. `lix models NAME` prints a card.",
        highlight=False,
        soft_wrap=True,
    )
