"""Everything for a deployed model: embeddings, scores, export; the files of weights, which training shares."""
