"""The search page and the JSON API. Both show the same documents.

GET /?q=QUERY                                       the page: three rankings side by side
GET /api/search?q=QUERY&mode=dense|bm25|hybrid&k=5  {"query", "mode", "milliseconds", "hits": [{"rank", "id", …}]}
GET /api/about                                      {"corpus", "documents", "passages", "modes", "gain"}
"""

import threading
import time
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from dream.evaluation.searcher import MODES, Searcher
from dream.indexes.words import Analyzer
from dream.serving.gain import Gain
from dream.serving.highlight import snippet

HOSTS = ["127.0.0.1", "localhost"]  # a page of another site could otherwise read results through a changed DNS name
TITLES = {"bm25": "BM25", "dense": "Encoder", "hybrid": "Hybrid"}  # columns of the page
MOST = 100  # documents of an answer
MOST_CHARACTERS = 4000  # of a query


class Pages:
    """Answers requests with one opened run.

    Args:
        searcher: the run.
        k: documents shown of each ranking.
        gain: the language model's gain of documents; None: it is not loaded.
    """

    def __init__(self, searcher: Searcher, k: int, gain: Gain | None) -> None:
        self.searcher, self.k, self.gain = searcher, k, gain
        self.analyzer = Analyzer(searcher.store.language)
        self.lock = threading.Lock()  # requests come from several threads
        environment = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
        self.template = environment.get_template("page.html")

    def about(self) -> dict[str, Any]:
        """Facts about the run."""
        store = self.searcher.store
        return {"corpus": self.searcher.corpus_name, "documents": len(store.texts), "passages": len(store.passages),
                "modes": list(MODES), "gain": self.gain is not None}  # fmt: skip

    def find(self, query: str, mode: str, k: int) -> dict[str, Any]:
        """One ranking, as JSON values. The time is that of the search, without the language model."""
        with self.lock:
            began = time.perf_counter()
            hits = self.searcher.search(query, k, mode) if query.strip() else []
            milliseconds = round(1000 * (time.perf_counter() - began), 1)
            rows = [{"rank": rank, "id": hit.id, "title": hit.title, "score": hit.score, "text": hit.text,
                     "snippet": [part._asdict() for part in snippet(hit.text, query, self.analyzer)]}
                    for rank, hit in enumerate(hits, start=1)]  # fmt: skip
            if self.gain:
                for row, gain in zip(rows, self.gain(query, [hit.row for hit in hits]), strict=True):
                    row["gain"] = gain
        return {"query": query, "mode": mode, "milliseconds": milliseconds, "hits": rows}

    def page(self, request: Request) -> Response:
        """The page. Documents of several rankings are marked with their other ranks."""
        query = request.query_params.get("q", "")[:MOST_CHARACTERS]
        columns = [self.find(query, mode, self.k) | {"title": title} for mode, title in TITLES.items()] if query else []
        ranks = {column["title"]: {hit["id"]: hit["rank"] for hit in column["hits"]} for column in columns}
        return HTMLResponse(self.template.render(query=query, columns=columns, ranks=ranks, about=self.about()))

    def search(self, request: Request) -> Response:
        """One ranking as JSON. A wrong parameter is answered with status 400 and the reason."""
        query, mode = request.query_params.get("q", ""), request.query_params.get("mode", "hybrid")
        k = request.query_params.get("k", str(self.k))
        if not query.strip() or len(query) > MOST_CHARACTERS:
            return _refuse(f"q: give a query of 1 to {MOST_CHARACTERS} characters")
        if mode not in MODES:
            return _refuse(f"mode={mode}: choose {', '.join(MODES)}")
        if not k.isascii() or not k.isdigit() or not 1 <= int(k[:9]) <= MOST:
            return _refuse(f"k={k}: a number from 1 to {MOST}")
        return JSONResponse(self.find(query, mode, int(k)))

    def facts(self, request: Request) -> Response:
        """`about` as JSON."""
        return JSONResponse(self.about())


def _refuse(reason: str) -> Response:
    return JSONResponse({"error": reason}, status_code=400)


def make_app(searcher: Searcher, k: int, gain: Gain | None = None) -> Starlette:
    """The web application over an opened run. `gain`: see `Pages`."""
    pages = Pages(searcher, k, gain)
    routes = [Route("/", pages.page), Route("/api/search", pages.search), Route("/api/about", pages.facts)]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)])
