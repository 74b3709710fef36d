"""Extracts text from PDF with pypdf, page by page."""

import logging
import re
from pathlib import Path

from dream.corpora.bad_documents import BadDocument
from dream.corpora.extract.sections import Extract, Section

# A word that is divided at the end of a line. Words of capitals and numbers keep their hyphen.
DIVIDED = re.compile(r"(?<=[^\W\d_])-\n(?=[^\W\d_])(?=[a-zà-öø-ÿ])")


def extract_pdf(file: Path) -> Extract:
    """The text of a PDF: a section for each page with text. Words that are divided at line ends are joined.

    Raises:
        BadDocument: The file is damaged, encrypted, or has no text at all.
    """
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it logs each small deviation from the standard
    try:
        with pypdf.PdfReader(file) as reader:
            if reader.is_encrypted and not reader.decrypt(""):
                raise BadDocument(str(file), 0, "encrypted PDF", "this PDF needs a password; save it without one")
            pages = [DIVIDED.sub("", page.extract_text()).strip() for page in reader.pages]
            title = " ".join(str((reader.metadata and reader.metadata.title) or "").split())
    except BadDocument:
        raise
    except Exception as error:  # pypdf raises errors of many kinds for damaged files
        reason = str(error) or type(error).__name__
        raise BadDocument(str(file), 0, "damaged PDF", f"no readable PDF ({reason}); write it again") from error
    if not any(pages):
        detail = f"{len(pages)} pages without text: scanned pages need OCR first, e.g. with ocrmypdf"
        raise BadDocument(str(file), 0, "PDF without text", detail)
    return Extract(title, [Section(f"page {number}", text, number) for number, text in enumerate(pages, 1) if text])
