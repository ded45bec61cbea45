"""Procedural talking heads with procedural voices, written as real media files in VoxCeleb's layout.

    build_demo_corpus(Path("data/demo"), CorpusSettings(), workers=2)

Sound: phonemes -> voice -> channel. Picture: face -> painting -> rendering. Files: clips. All together: session, build.
"""

from avspk.data.demo_corpus.build import build_demo_corpus
from avspk.data.demo_corpus.settings import CorpusSettings, Nuisance

__all__ = ["CorpusSettings", "Nuisance", "build_demo_corpus"]
