"""Everything for a deployed model: embeddings, scores, export; no training code."""
