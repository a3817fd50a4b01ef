"""A hook of MkDocs: the pages of the site are the Markdown files where they lie in the repository.

MkDocs reads one folder, but README.md and the pages of ``launch/``, ``shards/`` and others stay
beside what they describe. Each file keeps its path in the repository as its source, so that the
links that work on GitHub work in the site too, and MkDocs checks them.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "docs/*.md",
    *(f"{folder}/README.md" for folder in ("benchmarks", "findings", "launch", "shards", "slurm")),
    "benchmarks/results/*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)
OTHERS = ("docs/*.png", "docs/*.jpg", "docs/*.css", "docs/*.ipynb")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of ``docs_dir`` by those of the repository."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for pattern in (*PAGES, *OTHERS):
        for path in sorted(ROOT.glob(pattern)):
            source = path.relative_to(ROOT).as_posix()
            file = File.generated(config, source, abs_src_path=str(path))
            file.dest_uri = file.dest_uri.removeprefix("docs/").lower()
            files.append(file)
    return files
