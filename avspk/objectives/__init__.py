"""The losses, and the objectives of stage 1: one file for each; head, regularisers and collapse watch are shared."""
