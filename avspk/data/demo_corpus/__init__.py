"""Procedural talking heads with procedural voices, written as real media files in VoxCeleb's layout.

    build_demo_corpus(Path("data/demo"), CorpusSettings(), workers=2)

Sound: phonemes -> voice -> channel. Picture: face -> painting -> rendering. Files: clips. All together: session, build.
"""
