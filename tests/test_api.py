"""The Python API, as in the README's first screen. Run: pytest tests/test_api.py"""

import subprocess
import sys

import numpy as np
import pytest

import dream


@pytest.fixture(scope="module")
def run(run_overrides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    return dream.train([*run_overrides, f"paths.data={folder / 'data'}", f"paths.logs={folder / 'logs'}"])


def test_train_returns_the_folder_of_a_finished_run(run):
    assert (run / "summary.json").is_file()
    assert (run / "train.log").is_file()
    assert (run.parents[1] / "latest").resolve() == run


def test_load_searches_and_encodes(run):
    retriever = dream.load(run)
    hits = retriever.search("some words", k=4)
    assert len(hits) == 4
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    queries, documents = retriever.encode_queries(["some words"]), retriever.encode_documents([hits[0].text, "b"])
    assert (queries.dtype, documents.dtype) == (np.float32, np.float32)
    assert (queries.shape, documents.shape) == ((1, retriever.encoder.width), (2, retriever.encoder.width))
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, atol=1e-5)


def test_a_mistake_is_one_line(run):
    with pytest.raises(dream.DreamError, match="no run is there"):
        dream.load(run / "nowhere")
    with pytest.raises(dream.DreamError, match="mode=fast: choose dense, bm25, hybrid"):
        dream.load(run).search("some words", mode="fast")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.temperature=-1", r"objective\.temperature=-1"),
        ("objective.temprature=1", r"objective\.temprature: no such key; did you mean objective\.temperature\?"),
        ("objective=unknown", "objective=unknown: no such option; choose from"),
        ("trainer.max_steps=-1", r"trainer\.max_steps=-1: a number of steps, at least 1, or auto"),
    ],
)
def test_a_mistake_in_an_override_is_one_line(run_overrides, tmp_path, override, message):
    folders = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]
    with pytest.raises(dream.DreamError, match=message) as mistake:
        dream.train([*run_overrides, *folders, override])
    assert "\n" not in str(mistake.value)


def test_the_log_of_a_run_has_levels_and_the_table(run):
    text = (run / "train.log").read_text()
    assert "INFO" in text
    assert "DREAM: training the static encoder" in text
    assert "hybrid" in text


def test_importing_the_package_imports_no_torch():
    code = "import dream, sys; print(dream.__version__); assert not {'torch', 'hydra', 'lightning'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_search_with_a_static_encoder_imports_neither_transformers_nor_lightning(run):
    code = (f"import dream, sys; print(len(dream.load({str(run)!r}).search('some words', k=4))); "
            "assert not {'transformers', 'lightning', 'bm25s'} & set(sys.modules)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "4\n"
