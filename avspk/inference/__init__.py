"""All that a deployed model needs: embeddings, scores, export; nothing of the training."""
