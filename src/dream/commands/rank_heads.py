"""dream-heads: ranks the scorer's attention heads by how much they attend to the helpful passage."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dream.commands.app import command
from dream.utils.logging import get_logger
from dream.utils.runtime import fast_imports

log = get_logger(__name__)

ABOUT = """
dream-heads ranks the scorer's attention heads by how much they attend to the passage that helps.

  dream-heads scorer=hf scorer.name=NAME corpus=jsonl corpus.path=my.jsonl
"""
KEYS = (
    "shown",
    "objective.finder.windows",
    "objective.finder.gain",
    "objective.finder.candidates",
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dream.scorers.attention.heads import RankedHeads


def heads(cfg: DictConfig) -> float:
    """Rank the heads, or load the stored ranking. Show it as table and picture. Returns the best head's score."""
    with fast_imports():
        from dream.build import ask_questions, build_text, root_device
    from rich.console import Console
    from rich.table import Table
    from torch.utils.tensorboard.writer import SummaryWriter

    from dream.evaluation.plots import pixels
    from dream.objectives.attention import Attention
    from dream.utils.errors import require

    require(cfg.shown > 0, "shown", cfg.shown, "at least 1 head")
    log.info(f"DREAM: ranking the attention heads of the language model on corpus {cfg.corpus.name}")
    text = build_text(cfg)
    is_attention = isinstance(text.objective, Attention)
    require(is_attention, "objective", cfg.objective._target_, "only objective=attention uses heads")
    assert isinstance(text.objective, Attention)
    text.scorer.to(root_device(cfg)).load(text.store)
    ask_questions(text, text.scorer)
    finder = text.objective.finder
    ranked = finder.open_or_find(text.scorer, text.store)
    about = f"{ranked.windows} windows of {cfg.corpus.name}"
    title = f"Attention to the helpful passage minus attention to others and without a question, {about}"
    table = Table("rank", "layer", "head", "score", box=None)
    for rank, (layer, head, score) in enumerate(ranked.rows[: cfg.shown], start=1):
        table.add_row(str(rank), str(layer), str(head), f"{score:+.4f}")
    log.info(f"\n{title}")
    Console().print(table)
    picture = heat_map(ranked, title)
    picture.savefig(ranked.folder.with_suffix(".png"), dpi=150)
    with SummaryWriter(str(ranked.folder.parent / "tensorboard" / ranked.folder.name)) as board:
        board.add_image("heads", pixels(picture), dataformats="HWC")
    log.info(f"\nSaved in {ranked.folder}, picture in {ranked.folder.with_suffix('.png')}. To train with these heads, "
        "use the same corpus, scorer and objective.finder.*:\n  dream-train objective=attention")  # fmt: skip
    return ranked.rows[0][2]


def heat_map(ranked: "RankedHeads", title: str) -> "Figure":
    """Scores of all heads: one row for each layer, one column for each head.

    Blue: the head attends to the helpful passage more than to others; red: less.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores, layers = ranked.matrix()
    rows, columns = scores.shape
    figure = Figure(figsize=(max(6.0, 1.5 + 0.6 * columns), 1.8 + 0.45 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    most = float(np.nanmax(np.abs(scores))) or 1.0
    image = axes.imshow(scores, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows), labels=[str(layer) for layer in layers])
    axes.set(xlabel="head", ylabel="layer")
    axes.set_title(title, fontsize=8, loc="left", wrap=True)
    if scores.size <= 64:
        for row, column in np.ndindex(scores.shape):
            ink = "white" if abs(scores[row, column]) > 0.6 * most else "black"
            axes.text(column, row, f"{scores[row, column]:.3f}", ha="center", va="center", fontsize=8, color=ink)
    figure.colorbar(image, ax=axes, label="share of attention")
    return figure


main = command("rank_heads", ABOUT, KEYS)(heads)

if __name__ == "__main__":
    main()
