"""Labels against the documents of a corpus. Run: pytest tests/evaluation/test_labelled_queries.py"""

import pytest

from dream.commands.train import train
from dream.corpora.base import Labels
from dream.evaluation.labelled_queries import LabelledQueries
from dream.evaluation.metrics import DEPTH
from dream.indexes.bm25 import BM25Index
from dream.utils.errors import DataError


class Labelled:
    """The tiny corpus's labels with other ids of documents: `rename` maps them."""

    name = "tiny"

    def __init__(self, corpus, rename) -> None:
        labels = corpus.labels("dev")
        self.found = Labels(labels.queries, {query: {rename(document): grade for document, grade in graded.items()}
                                             for query, graded in labels.qrels.items()})  # fmt: skip

    def labels(self, split: str) -> Labels:
        return self.found


def test_labels_that_all_name_documents_give_no_warning(corpus, store, caplog):
    assert len(LabelledQueries(corpus, store, "dev")) == 80
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_labels_that_name_no_document_are_refused_in_one_line(corpus, store):
    with pytest.raises(DataError) as error:
        LabelledQueries(Labelled(corpus, lambda document: f"id-{document}"), store, "dev")
    message = str(error.value)
    assert "\n" not in message
    for part in ("split dev", "corpus tiny", "80 relevant", "'id-d0'", "'d0'", "corpus.id_field", "qrels"):
        assert part in message


def test_some_missing_documents_are_warned_of_once(corpus, store, capsys):
    """4 of 80 relevant documents are missing: the four queries count as not found."""
    labelled = Labelled(corpus, lambda document: f"x{document}" if document in ("d3", "d7", "d8", "d9") else document)
    for _ in range(2):
        queries = LabelledQueries(labelled, store, "dev")
    assert sum(map(bool, queries.judgements.missing)) == 4
    assert capsys.readouterr().out == (
        "warning: split dev of corpus tiny: 5.0% of the relevant documents (4 of 80) are not in the corpus, e.g. "
        "'xd3', 'xd7', 'xd8': they count as not found\n"
    )


def test_a_split_without_a_relevant_document_is_refused(corpus, store):
    labelled = Labelled(corpus, str)
    labelled.found = Labels({"q": "text"}, {"q": {"d0": 0}})
    with pytest.raises(DataError, match="split dev of corpus tiny: no query has a relevant document"):
        LabelledQueries(labelled, store, "dev")


def test_a_query_that_is_a_document_does_not_find_itself(corpus, store):
    """As in ArguAna and Quora. The same id alone is not enough (Cranfield numbers queries and documents from 1)."""
    names, texts = [store.document_names[row] for row in range(4)], store.texts
    labelled = Labelled(corpus, str)
    labelled.found = Labels(
        {names[0]: texts[0], names[1]: "another  text", names[2]: " ".join(texts[2].split()[1:]), names[3]: texts[3]},
        {names[0]: {names[1]: 1}, names[1]: {names[0]: 1}, names[2]: {names[3]: 1}, names[3]: {names[3]: 1}},
    )
    queries = LabelledQueries(labelled, store, "dev")
    assert queries.own_Q.tolist() == [0, -1, 2, -1], "a document that is labelled as relevant stays"
    ranking = queries.by_bm25(BM25Index.open_or_build(store, "document"))
    assert 0 not in ranking.rows_QR[0]
    assert 2 not in ranking.rows_QR[2]
    assert ranking.rows_QR[3, 0] == 3
    assert ranking.rows_QR.shape == (4, DEPTH)


@pytest.mark.parametrize(
    ("option", "split"), [("evaluation.report_split=none", "dev"), ("evaluation.dev_split=none", "test")]
)
def test_a_training_is_refused_before_its_first_step(training, tmp_path, option, split):
    """The corpus takes its ids from another field than the labels. `split` is ranked during training, or at its end."""
    cfg = training(tmp_path, "run", "corpus.id_field=title", option)
    with pytest.raises(DataError, match=f"split {split} of corpus jsonl: none of the .* 'd.*', .*'Document 0'"):
        train(cfg)
    assert not list(tmp_path.rglob("last.ckpt"))
